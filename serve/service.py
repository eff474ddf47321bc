"""The questions of the API, asked of whatever is served, without Ray and without addresses.

Bodies become `Request`s, `Batcher` answers them by `Recommender.recommend`, answers become JSON. What to recommend is decided
in `recsys.retrieval` alone.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import orjson

from recsys.errors import RequestError
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.requests import Answer, Request
from serve import problems, schemas
from serve.args import ServeArgs
from serve.batching import Batcher, Overloaded
from serve.convert import Describer, problem_of, to_request, user_json
from serve.events import intake
from serve.events.feed import AWAY, Feed
from serve.live import Live, Served
from serve.metrics import Metrics
from serve.problems import Problem

LONG = 100
"""A diverse list of more items takes milliseconds of its own."""

Provider = Callable[[], Live | None]
Json = dict[str, Any]


class Service:
    """The questions of the API, asked of whatever bundle is current when a batch is answered."""

    def __init__(self, provider: Provider, args: ServeArgs, feed: Feed | None, metrics: Metrics) -> None:
        self.provider, self.args, self.feed, self.metrics = provider, args, feed, metrics
        self.request_model = schemas.request_model(args.max_k)
        self.describer = Describer()
        self.batcher: Batcher[Request, Json | Problem] = Batcher(
            self._answer_batch,
            max_batch=args.max_batch,
            max_queued=args.max_queued,
            wait_s=args.batch_wait_ms / 1000,
            executor=ThreadPoolExecutor(1, "recommend") if args.batch_in_thread or _is_remote(feed) else None,
        )
        # An explanation takes many vectors, and a long list in another order many products: one at a time, holding nobody up.
        self.explainer: Batcher[Request, Json | Problem] = Batcher(
            self._answer_batch, max_batch=1, max_queued=args.max_requests, executor=ThreadPoolExecutor(1, "explain")
        )
        # What goes through the whole catalogue for one caller, the same way.
        self.aside: Batcher[Callable[[], Any], Any] = Batcher(
            lambda calls: [call() for call in calls],
            max_batch=1,
            max_queued=args.max_requests,
            executor=ThreadPoolExecutor(1, "catalogue"),
        )

    def live(self) -> Live:
        """What is served. Raises Problem `not_ready` before there is anything."""
        live = self.provider()
        if live is None:
            raise Problem("not_ready", "Try again in a few seconds.", {"Retry-After": "2"})
        return live

    def recommender(self, user: str | None = None) -> Recommender:
        """The current one, or for some users the canary's."""
        return self.live().served.of(user)

    def admit(self) -> None:
        """Raises Problem while there is more to do than can be: before a body is read."""
        with _told():
            self.batcher.admit()

    async def recommend(self, body: bytes, request_id: str) -> Json:
        """One answer, or with `requests` an answer or a problem for each. Raises Problem if there is nothing to answer."""
        value = parse(body)
        if isinstance(value, dict) and "requests" in value:
            replies = await self._recommend_many(value)
            return {"answers": [{"problem": r.document(request_id)} if isinstance(r, Problem) else r for r in replies]}
        reply = (await self._submit([self._checked(value)]))[0]
        if isinstance(reply, Problem):
            raise reply
        return reply

    async def _recommend_many(self, value: Json) -> list[Json | Problem]:
        entries = self._entries(value)
        if not any(map(_may_be_slow, entries)):
            with _told():
                self.batcher.require_room(len(entries))  # before much is done for them
        asked = [self._checked_or_problem(entry) for entry in entries]
        replies = iter(await self._submit([entry for entry in asked if isinstance(entry, Request)]))
        return [next(replies) if isinstance(entry, Request) else entry for entry in asked]

    def _entries(self, value: Json) -> list[Any]:
        entries, most = value["requests"], self.args.max_requests
        if not isinstance(entries, list) or not 1 <= len(entries) <= most or len(value) > 1:
            raise problems.invalid(
                [{"where": "requests", "what": f"should be a list of 1 to {most} requests, with nothing beside it"}]
            )
        return entries

    def _checked_or_problem(self, value: Any) -> Request | Problem:
        try:
            return self._checked(value)
        except Problem as problem:
            return problem

    def _checked(self, value: Any) -> Request:
        """A request fit for a batch. Everything that one request can have wrong is found here, before it has neighbours."""
        try:
            request = to_request(problems.checked(self.request_model, value))
            self.recommender(request.user).check(request)
        except RequestError as error:
            raise problem_of(error) from None
        return request

    async def _submit(self, requests: Sequence[Request]) -> list[Json | Problem]:
        slow = [request for request in requests if _is_slow(request)]
        others = [request for request in requests if not _is_slow(request)]
        with _told():
            if not slow:
                return await self.batcher.submit(requests)
            self.batcher.require_room(len(others))  # or the slow ones would be computed for nobody
        with _told(slow=True):
            coming = self.explainer.enqueue(slow)
        both = await asyncio.gather(coming, self.batcher.enqueue(others))  # nothing ran in between: there is room
        told, plain = map(iter, both)
        return [next(told) if _is_slow(request) else next(plain) for request in requests]

    async def similar(self, item_id: str, k: int) -> Json:
        """Items like one. Raises RequestError for one that is not in the catalogue, Problem."""
        recommender = self.recommender()
        answer = await self._aside(partial(recommender.similar, item_id, k))
        return self.describer.of(recommender).answers([answer])[0]

    async def search(self, text: str, limit: int) -> Json:
        """Items by words of their titles. Raises Problem."""
        recommender = self.recommender()
        return {"items": await self._aside(partial(recommender.search, text, limit)), "bundle": recommender.bundle.version}

    async def _aside(self, call: Callable[[], Any]) -> Any:
        with _told():
            return (await self.aside.submit([call]))[0]

    async def keep(self, value: Any) -> Json:
        """Take one event, or with `events` several. Raises Problem where nothing was kept."""
        return await intake.keep(self.feed, value, [each.items for each in self.live().served.all])

    async def user(self, user_id: str, limit: int) -> Json:
        """A known user with his latest events, those since the bundle first.

        Raises RequestError for a stranger, Problem for whom the bundle does not know while the store of events is away.
        """
        recommender = self.recommender(user_id)
        found = {} if self.feed is None else await asyncio.to_thread(self.feed.of, [user_id])
        if found is None and recommender.bundle.users.row(user_id) is None:
            raise Problem("no_events", "The bundle does not know this user; ask again.", {"Retry-After": "1"})
        since = (found or {}).get(user_id, [])
        return user_json(recommender.user(user_id, limit, since), recommender.bundle.version)

    def _answer_batch(self, requests: list[Request]) -> list[Json | Problem]:
        began, queued = time.perf_counter(), self.batcher.queued
        replies = self._answer_with_events(requests)
        self.metrics.batch(replies, queued, time.perf_counter() - began)
        return replies

    def _answer_with_events(self, requests: list[Request]) -> list[Json | Problem]:
        served = self.live().served  # one for the whole batch: an answer never mixes two bundles
        if self.feed is None:
            return self._answer_all(served, requests)
        asked, reached = self.feed.added(requests, lambda user: served.of(user).items)
        replies = self._answer_all(served, asked)
        for request, reply in zip(requests, replies, strict=True) if not reached else ():
            if request.user is not None and not isinstance(reply, Problem):
                reply["reason"] = f"{reply['reason']}; {AWAY}" if reply["reason"] else AWAY
        return replies

    def _answer_all(self, served: Served, requests: list[Request]) -> list[Json | Problem]:
        if served.canary is None:
            return self._answers(served.recommender, requests)
        whose = [served.of(request.user) for request in requests]
        answers = {
            id(each): iter(self._answers(each, [request for request, of in zip(requests, whose, strict=True) if of is each]))
            for each in served.all
        }
        return [next(answers[id(of)]) for of in whose]

    def _answers(self, recommender: Recommender, requests: Sequence[Request]) -> list[Json | Problem]:
        answers = recommender.recommend(requests)
        told = iter(self.describer.of(recommender).answers([each for each in answers if isinstance(each, Answer)]))
        return [problem_of(each) if isinstance(each, RequestError) else next(told) for each in answers]


@contextmanager
def _told(*, slow: bool = False) -> Iterator[None]:
    """A full queue as the problem that callers see. slow: that of lists that take long."""
    try:
        yield
    except Overloaded as full:
        if slow:
            detail = f"Try again in {full.retry_after_s} s, or ask without explanations."
            raise Problem("too_many_explanations", detail, {"Retry-After": str(full.retry_after_s)}) from None
        raise problems.overloaded(full.retry_after_s) from None


def _may_be_slow(entry: Any) -> bool:
    return isinstance(entry, dict) and ("explain" in entry or "diversity" in entry)


def _is_slow(request: Request) -> bool:
    return request.explain or (request.diversity > 0 and request.k > LONG)


def _is_remote(feed: Feed | None) -> bool:
    return feed is not None and feed.is_remote


def parse(body: bytes) -> Any:
    """The JSON of a body. Raises Problem."""
    # orjson refuses NaN, lone surrogates, numbers beyond a double and deep nesting, which Python's own parser lets in.
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem("bad_json", f"Send a JSON object. {str(error).capitalize()}.") from None
