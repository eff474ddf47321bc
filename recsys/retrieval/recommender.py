"""The only recommender: a bundle and requests in, answers out; the server, the batch scorer and the command line call it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from recsys.bundle.arrays import release
from recsys.bundle.manifest import IndexReport
from recsys.bundle.read import Bundle
from recsys.errors import RequestError
from recsys.retrieval import golden, requests, rerank
from recsys.retrieval.ann import AUDIT_BATCH, is_exact
from recsys.retrieval.audit import Audit, AuditReport
from recsys.retrieval.catalogue import NO_ITEMS, Catalogue
from recsys.retrieval.columns import Columns
from recsys.retrieval.explain import causes
from recsys.retrieval.filters import Items, contains, intersection, union, without
from recsys.retrieval.requests import Answer, Cause, Event, Mode, Request
from recsys.retrieval.searcher import Found, Query, Searcher
from recsys.retrieval.topk import nearest
from recsys.retrieval.users import Taste, Tastes, User

KnownUntil = Literal["valid", "test", "end"]


class Recommender:
    """Answers requests from one bundle. Keeps no state between requests that shows in an answer, so threads may share it.

    Eligible are the items that the index holds; for whom nothing personal is known, those watched in training. If `k`
    eligible items are left after what is hidden, `k` come back, by (-score, item).
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        known_until: KnownUntil | None = None,
        audit: Audit | None = None,
        device: str | None = None,
    ) -> None:
        """known_until: cut known users' histories before validation or test, for evaluation; unset: as the bundle says. audit:
        watches the index while it serves; what it finds then shows in answers. device: PyTorch's name of a GPU on which to
        search exactly, such as cuda; unset: the processor.

        Raises ConfigError where there is no such device, BundleError where the bundle does not answer its golden queries as it
        did when it was made.
        """
        whole = bundle
        if bundle.manifest.index is not None and is_exact(bundle.manifest.index):
            bundle = replace(bundle, index=None)  # nobody asks it, and it is as large as the vectors
        self.bundle = bundle
        self.items = Catalogue(bundle.items)
        self._tastes = Tastes(bundle, self.items, known_until or bundle.manifest.known_until)
        self._eligible = np.sort(bundle.popular) if bundle.indexed is None else bundle.indexed
        self._columns = Columns(bundle.items, self._eligible)
        self._searcher = None if bundle.item_vectors is None else Searcher(bundle, audit, device)
        golden.check(bundle, self.recommend)
        golden.check_index(whole)
        if bundle.item_vectors is not None and self.bundle.index is None:
            release(bundle.item_vectors)  # asked for a few at a time from now on

    def check(self, request: Request) -> None:
        """Raises RequestError for a request that cannot be answered."""
        requests.check(request)
        self._columns.check(request.filters)
        if request.recency and self.items.by_arrival is None:
            raise RequestError("bad_recency", "recency: the events of this bundle have no times. Leave it out.")
        if request.diversity and self.bundle.item_vectors is None:
            raise RequestError("bad_diversity", "diversity: this bundle has no vectors to tell what is alike. Leave it out.")

    def recommend(self, asked: Sequence[Request]) -> list[Answer | RequestError]:
        """An answer to each request, in order; in place of a bad request's answer its error, the others being answered."""
        prepared = [self._prepare(request) for request in asked]
        found = iter(self._find([each[0] for each in prepared if not isinstance(each, RequestError)]))
        return [
            each if isinstance(each, RequestError) else self._complete(request, *each, next(found))
            for request, each in zip(asked, prepared, strict=True)
        ]

    def similar(self, item_id: str, k: int = 10) -> Answer:
        """The items nearest to one by cosine. Raises RequestError for an item that is not in the catalogue."""
        self.check(Request(k=k))
        item = self.items.number(item_id)
        if item is None:
            raise RequestError("unknown_item", f"no item {item_id!r} in the catalogue; search by title for its id.")
        query = Query(None, k, np.array([item], np.int32))
        indexed = self.bundle.indexed
        if indexed is None:
            return self._answer(query, Taste(None, reason="the model has no vectors"), [], self._popular(query))
        if not contains(indexed, query.hidden)[0]:
            taste = Taste(None, reason="the item was not watched in training, so it has no vector")
            return self._answer(query, taste, [], self._popular(query))
        return self._answer(query, Taste(None), [], Found(*nearest(self._without_biases, indexed, item, k), "exact"))

    def warm(self) -> None:
        """Make now what is else made by the first request that needs it, while others wait."""
        self.search("a", 1)
        self._columns.warm()
        _ = self.items.by_popularity, self.items.by_arrival
        if self.bundle.item_vectors is not None:
            _ = self._without_biases

    def recalls(self, users: Sequence[str], report: IndexReport) -> list[float]:
        """What the index finds of the exact lists of some users, as they are served: without what they have seen, where the
        bundle says so. Only of those for whom it is asked. report: the settings that it is asked with."""
        if self._searcher is None:
            return []
        prepared = [self._prepare(Request(user=user)) for user in users]
        queries = [each[0] for each in prepared if not isinstance(each, RequestError) and each[0].vector is not None]
        searcher = self._searcher.tuned(report)
        batches = [queries[start : start + AUDIT_BATCH] for start in range(0, len(queries), AUDIT_BATCH)]
        return [recall for batch in batches for recall in searcher.recalls(batch) if recall is not None]

    @property
    def audit(self) -> AuditReport | None:
        """How the index stands; None where it is not watched: there is none, or it leaves nothing out."""
        watched = None if self._searcher is None else self._searcher.audit
        return None if watched is None else watched.report()

    @property
    def columns(self) -> list[str]:
        """Columns of the catalogue that requests can filter by."""
        return self._columns.names

    def search(self, text: str, limit: int = 20) -> list[dict[str, Any]]:
        """Descriptions of the items whose title holds `text`, most likely meant first."""
        return [self.items.describe(int(item)) for item in self.items.search(text, limit)]

    def user(self, user_id: str, limit: int | None = None, since: Sequence[Event] = ()) -> User:
        """A user's events with titles, newest first, `limit` of them: those `since` the bundle, then what it knows.

        Raises RequestError for a stranger.
        """
        return self._tastes.describe(user_id, limit, since)

    def taste(self, user_id: str | None, history: Sequence[Event] | None = None) -> Taste:
        """What a user, or somebody with a history, is searched for with."""
        return self._tastes.of(user_id, history)

    @cached_property
    def _without_biases(self) -> NDArray[np.float32]:
        """What the items are about: how much they are liked by all, ever or now, says nothing of likeness."""
        told, vectors_NL = self.bundle.manifest.fold_in, self.bundle.learnt_vectors
        if not told.parts:
            return vectors_NL[:, : _about(told.parameters, vectors_NL.shape[1])]
        dims = [np.arange(part.first, part.first + _about(part.parameters, part.last - part.first)) for part in told.parts]
        return vectors_NL[:, np.concatenate(dims)]

    def _prepare(self, request: Request) -> tuple[Query, Taste, list[str]] | RequestError:
        try:
            self.check(request)
        except RequestError as error:
            return error
        taste = self._tastes.of(request.user, request.history)
        exclude, unknown_excluded = self.items.numbers(request.exclude)
        allow, unknown_allowed = self.items.numbers(request.allow or ())
        exclude_seen = self.bundle.manifest.exclude_seen if request.exclude_seen is None else request.exclude_seen
        seen = taste.seen if exclude_seen else NO_ITEMS
        hidden = union(exclude, seen) if len(exclude) else seen
        allowed = None if request.allow is None else union(allow)
        if request.filters:
            met = self._columns.allowed(request.filters)
            allowed = met if allowed is None else intersection(allowed, met)
        k = rerank.pool(request.k) if request.reranks else request.k
        query = Query(taste.vector, k, hidden, allowed, request.mode)
        return query, taste, list(dict.fromkeys([*taste.unknown, *unknown_excluded, *unknown_allowed]))

    def _find(self, queries: Sequence[Query]) -> list[Found]:
        personal = [query for query in queries if query.vector is not None]
        found = iter(self._searcher.search(personal) if self._searcher is not None and personal else [])
        return [self._popular(query) if query.vector is None else next(found) for query in queries]

    def _popular(self, query: Query) -> Found:
        popular = self.bundle.popular
        if query.allowed is not None:
            popular = popular[contains(query.allowed, popular)]
        items = without(popular[: query.k + len(query.hidden)], query.hidden)[: query.k]
        return Found(items, self.items.popularity[items], "popular")

    def _complete(self, request: Request, query: Query, taste: Taste, unknown: list[str], found: Found) -> Answer:
        """The answer with what is asked for beyond the list."""
        if request.reranks:
            found, query = self._reranked(request, found), replace(query, k=request.k)
        why = self._why_short(request, found) if len(found.items) < query.k else None
        answer = self._answer(query, taste, unknown, found, why)
        return replace(answer, because=self._because(request, answer)) if request.explain else answer

    def _why_short(self, request: Request, found: Found) -> str | None:
        """What of the request nothing comes of: values that no item has, items that have no place in any list."""
        nowhere = self._columns.nowhere(request.filters) if request.filters else None
        allowed = union(self.items.numbers(request.allow)[0]) if request.allow else NO_ITEMS
        ranked = np.sort(self.bundle.popular) if found.path == "popular" else self._eligible
        unranked = len(allowed) - int(contains(ranked, allowed).sum()) if len(allowed) else 0
        untrained = f"{unranked} of the allowed items were not watched in training" if unranked else None
        return "; ".join(filter(None, [nowhere, untrained])) or None

    def _reranked(self, request: Request, found: Found) -> Found:
        dials = [(request.popularity, self.items.by_popularity[found.items])] if request.popularity else []
        if request.recency:
            assert self.items.by_arrival is not None
            dials.append((request.recency, self.items.by_arrival[found.items]))
        directions = _directions(self._without_biases[found.items]) if request.diversity else None
        # Of counts the first few would stand above whatever a dial adds.
        worths = np.log1p(found.scores) if found.path == "popular" else found.scores
        chosen = rerank.reranked(worths, request.k, dials, request.diversity, directions)
        return replace(found, items=found.items[chosen], scores=found.scores[chosen])

    def _because(self, request: Request, answer: Answer) -> list[tuple[Cause, ...]]:
        if answer.path == "popular":
            return [()] * len(answer.items)
        return causes(self.bundle.learnt_vectors[answer.items], *self._tastes.without_each(request.user, request.history))

    def _answer(self, query: Query, taste: Taste, unknown: list[str], found: Found, why_short: str | None = None) -> Answer:
        reasons = [taste.reason, found.reason, why_short, _shortage(query.k, found.items)]
        return Answer(
            item_ids=[self.items.ids[item] for item in found.items.tolist()],
            items=found.items,
            scores=found.scores,
            path=found.path,
            fallback=found.degraded or (found.path == "popular" and taste.reason is not None),
            version=self.bundle.version,
            reason="; ".join(reason for reason in reasons if reason) or None,
            unknown_items=unknown,
        )


def _directions(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1; zeros stay zeros."""
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), np.float32)


def _about(parameters: Mapping[str, float], dims: int) -> int:
    """Leading dimensions that are no biases."""
    return int(parameters.get("free", dims)) - int("mean" in parameters)


def _shortage(k: int, items: NDArray[np.int32]) -> str | None:
    if len(items) >= k:
        return None
    if len(items) == 1:
        return "only 1 eligible item is left"
    return f"only {len(items)} eligible items are left" if len(items) else "no eligible item is left"


__all__ = ["Answer", "Event", "Items", "KnownUntil", "Mode", "Recommender", "Request", "User"]
