"""Routes under /v1. Needs no Ray: any Recommender will do.

Bodies become `Request`s, `Batcher` answers them by `Recommender.recommend`, answers become JSON. What to recommend is decided
in `recsys.retrieval` alone.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path as FilePath
from typing import Annotated, Any

import orjson
from fastapi import FastAPI, Path, Query
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from recsys.errors import RequestError
from recsys.retrieval.answers import answer_json, to_json
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.requests import Request
from serve import problems, schemas
from serve.admin import PREFIX as ADMIN
from serve.admin import add_admin
from serve.args import MAX_ID_LENGTH, MAX_QUERY_LENGTH, ServeArgs
from serve.batching import Batcher, Overloaded
from serve.convert import Describer, manifest_json, problem_of, to_request, user_json
from serve.events import intake
from serve.events.feed import AWAY, Feed
from serve.keys import Keys
from serve.live import Live
from serve.metrics import Metrics, Silent
from serve.middleware import BodyLimit, Envelope, Gate, request_id_of
from serve.openapi import document, refusals
from serve.pages import page_routes
from serve.problems import Problem

FREE = ("", "/healthz", "/readyz", "/openapi.json")
"""Addresses that take no key, beside the pages."""

LONG = 100
"""A diverse list of more items takes milliseconds of its own."""

Provider = Callable[[], Live | None]
Json = dict[str, Any]

IdPath = Annotated[str, Path(min_length=1, max_length=MAX_ID_LENGTH, description="Percent-encoded; slashes may stay.")]


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

    def live(self) -> Live:
        """What is served. Raises Problem `not_ready` before there is anything."""
        live = self.provider()
        if live is None:
            raise Problem("not_ready", "Try again in a few seconds.", {"Retry-After": "2"})
        return live

    def recommender(self, user: str | None = None) -> Recommender:
        """The current one, or for some users the canary's."""
        return self.live().served.of(user)

    async def recommend(self, body: bytes, request_id: str) -> Json:
        """One answer, or with `requests` an answer or a problem for each. Raises Problem if there is nothing to answer."""
        value = _parse(body)
        if isinstance(value, dict) and "requests" in value:
            replies = await self._recommend_many(value)
            return {"answers": [{"problem": r.document(request_id)} if isinstance(r, Problem) else r for r in replies]}
        reply = (await self._submit([self._checked(value)]))[0]
        if isinstance(reply, Problem):
            raise reply
        return reply

    async def _recommend_many(self, value: Json) -> list[Json | Problem]:
        asked = [self._checked_or_problem(entry) for entry in self._entries(value)]
        replies = iter(await self._submit([entry for entry in asked if isinstance(entry, Request)]))
        return [next(replies) if isinstance(entry, Request) else entry for entry in asked]

    def _entries(self, value: Json) -> list[Any]:
        entries, most = value["requests"], self.args.max_requests
        if not isinstance(entries, list) or not 1 <= len(entries) <= most or len(value) > 1:
            raise problems.invalid(
                [{"where": "requests", "what": f"should be a list of 1 to {most} requests, and all there is"}]
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
            request = to_request(self.request_model.model_validate(value))
            self.recommender(request.user).check(request)
        except ValidationError as error:
            raise problems.invalid(problems.explain(error.errors(include_url=False, include_input=False))) from None
        except RequestError as error:
            raise problem_of(error) from None
        return request

    async def _submit(self, requests: Sequence[Request]) -> list[Json | Problem]:
        slow = [request for request in requests if _is_slow(request)]
        try:
            if not slow:
                return await self.batcher.submit(requests)
            others = [request for request in requests if not _is_slow(request)]
            told, plain = map(iter, await asyncio.gather(self.explainer.submit(slow), self.batcher.submit(others)))
        except Overloaded as full:
            raise problems.overloaded(full.retry_after_s) from None
        return [next(told) if _is_slow(request) else next(plain) for request in requests]

    async def keep(self, value: Any) -> Json:
        """Take one event, or with `events` several. Raises Problem where nothing was kept."""
        return await intake.keep(self.feed, value, self.recommender().items)

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
        if self.feed is None:
            return self._answer_all(requests)
        served = self.live().served
        asked, reached = self.feed.added(requests, lambda user, item: served.of(user).items.number(item) is not None)
        replies = self._answer_all(asked)
        for request, reply in zip(requests, replies, strict=True) if not reached else ():
            if request.user is not None and not isinstance(reply, Problem):
                reply["reason"] = f"{reply['reason']}; {AWAY}" if reply["reason"] else AWAY
        return replies

    def _answer_all(self, requests: list[Request]) -> list[Json | Problem]:
        served = self.live().served  # one for the whole batch: an answer never mixes two bundles
        if served.canary is None:
            return self._answers(served.recommender, requests)
        whose = [served.of(request.user) for request in requests]
        answers = {
            id(each): iter(self._answers(each, [request for request, of in zip(requests, whose, strict=True) if of is each]))
            for each in served.all
        }
        return [next(answers[id(of)]) for of in whose]

    def _answers(self, recommender: Recommender, requests: Sequence[Request]) -> list[Json | Problem]:
        describe = self.describer.of(recommender)
        return [
            problem_of(answer) if isinstance(answer, RequestError) else answer_json(answer, describe)
            for answer in recommender.recommend(requests)
        ]


def _is_slow(request: Request) -> bool:
    return request.explain or (request.diversity > 0 and request.k > LONG)


def _is_remote(feed: Feed | None) -> bool:
    return feed is not None and feed.is_remote


def create_app(
    provider: Provider,
    args: ServeArgs,
    feed: Feed | None = None,
    metrics: Metrics | None = None,
    *,
    echo_request_id: bool = True,
) -> FastAPI:
    """The whole HTTP application.

    provider: what is served, asked at every batch; None: not ready. feed: where events go that come; None: nowhere. metrics:
    what counts; None: nothing does.
    echo_request_id: False where an outer server writes X-Request-Id into answers by itself, as Ray's proxy does.
    """
    # Swagger's pages would be loaded from elsewhere: /docs is a page of our own.
    # No redirects to the address without its last slash: they would send a body again, to wherever the Host header says.
    app = FastAPI(title="recsys", version="1", docs_url=None, redoc_url=None, responses=refusals(), redirect_slashes=False)
    metrics = metrics or Silent()
    service = Service(provider, args, feed, metrics)
    app.state.service = service
    _add_recommend(app, service)
    _add_catalogue(app, service)
    _add_state(app, service)
    app.router.routes.extend(page_routes())
    _add_problem_handlers(app)
    app.add_middleware(BodyLimit, max_bytes=args.max_body_bytes)
    if args.keys is not None:
        add_admin(app, service.live, feed, _body_of)
        keys = Keys(FilePath(args.keys), args.replicas)
        app.add_middleware(Gate, keys=keys, free={*FREE, *(route.path for route in page_routes())}, admin=ADMIN)
    app.add_middleware(Envelope, echo=echo_request_id, answered=metrics.answered)
    app.openapi = lambda: document(app, service.request_model, schemas.many_model(service.request_model, args.max_requests))  # type: ignore[method-assign]
    return app


def _add_recommend(app: FastAPI, service: Service) -> None:
    most = service.args.max_k

    @app.post("/v1/recommend", tags=["recommend"], response_model=schemas.Recommendation | schemas.Recommendations)
    async def recommend(request: HttpRequest) -> Response:
        """What to take next: for a known user, for a history, for a stranger, or for each of a list of these."""
        # Read and checked by hand: FastAPI's own way costs more than finding the answer.
        _require_json(request)
        return _json(await service.recommend(await request.body(), request_id_of(request.scope)))

    @app.post("/v1/events", tags=["events"], response_model=schemas.Kept)
    async def events(request: HttpRequest) -> Response:
        """Somebody took something: kept durably, and known to every request from now on."""
        return _json(await service.keep(await _body_of(request)))

    @app.get("/v1/items/{item_id:path}/similar", tags=["catalogue"], response_model=schemas.Recommendation)
    async def similar(item_id: IdPath, k: Annotated[int, Query(ge=1, le=most)] = min(10, most)) -> Response:
        """Items like this one."""
        recommender = service.recommender()
        return _json(answer_json(recommender.similar(item_id, k), service.describer.of(recommender)))


def _add_catalogue(app: FastAPI, service: Service) -> None:
    @app.get("/v1/items", tags=["catalogue"], response_model=schemas.ItemList)
    async def search(
        query: Annotated[str, Query(max_length=MAX_QUERY_LENGTH)], limit: Annotated[int, Query(ge=1, le=100)] = 10
    ) -> Response:
        """Items by words of their titles."""
        recommender = service.recommender()
        return _json({"items": recommender.search(query, limit), "bundle": recommender.bundle.version})

    @app.get("/v1/users/{user_id:path}", tags=["catalogue"], response_model=schemas.User)
    async def user(user_id: IdPath, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> Response:
        """A known user and the latest of what he took."""
        return _json(await service.user(user_id, limit))


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/v1/bundle", tags=["state"], response_model=schemas.BundleInfo)
    async def bundle() -> Response:
        """What is served, what made it, and how good it measured."""
        recommender = service.recommender()
        audit = None if recommender.audit is None else asdict(recommender.audit)
        more = {
            "max_k": service.args.max_k,
            "columns": recommender.columns,
            "audit": audit,
            "takes_events": service.feed is not None,
        }
        more |= _state(service.live())
        return _json(manifest_json(recommender.bundle.manifest, more))

    @app.get("/healthz", tags=["state"], response_model=schemas.Health)
    async def healthz() -> Response:
        """Whether the process answers."""
        return _json({"status": "ok"})

    @app.get("/readyz", tags=["state"], response_model=schemas.Ready)
    async def readyz() -> Response:
        """Whether a bundle is open, so that requests can be answered; 503 if not."""
        return _json({"status": "ok", "bundle": service.recommender().bundle.version})


def _state(live: Live) -> Json:
    canary = live.served.canary
    return {
        "canary": None if canary is None else {"version": canary.bundle.version, "share": live.served.share},
        "rejected": None if live.rejected is None else asdict(live.rejected),
    }


def _add_problem_handlers(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def problem(request: HttpRequest, error: Problem) -> Response:
        return error.response(request_id_of(request.scope))

    @app.exception_handler(RequestError)
    async def refused(request: HttpRequest, error: RequestError) -> Response:
        return problem_of(error).response(request_id_of(request.scope))

    @app.exception_handler(RequestValidationError)
    async def not_valid(request: HttpRequest, error: RequestValidationError) -> Response:
        return problems.invalid(problems.explain(error.errors())).response(request_id_of(request.scope))

    @app.exception_handler(HTTPException)
    async def of_routing(request: HttpRequest, error: HTTPException) -> Response:
        return _routing_problem(request, error).response(request_id_of(request.scope))


def _routing_problem(request: HttpRequest, error: HTTPException) -> Problem:
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return Problem("method_not_allowed", f"Here there is only: {allowed}.", error.headers)
    return Problem("not_found", "See /docs for what there is.", error.headers)


def _require_json(request: HttpRequest) -> None:
    """Also keeps other sites' pages from asking in a browser's name: only `simple` content types go without CORS."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Problem("not_json", "Send the header Content-Type: application/json.")


async def _body_of(request: HttpRequest) -> Any:
    _require_json(request)
    return _parse(await request.body())


def _parse(body: bytes) -> Any:
    # orjson refuses NaN, lone surrogates, numbers beyond a double and deep nesting, which Python's own parser lets in.
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem("bad_json", f"Send a JSON object. {str(error).capitalize()}.") from None


def _json(content: Any) -> Response:
    return Response(to_json(content), media_type="application/json")
