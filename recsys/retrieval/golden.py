"""Golden queries: answers recorded when a bundle was made, asked again before it is used.

They catch what hashes cannot: vectors, ids and index that are whole but do not belong together, or arithmetic that changed.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from recsys.bundle.manifest import AGAIN, GoldenQuery
from recsys.bundle.read import Bundle
from recsys.errors import BundleError, RequestError
from recsys.retrieval import ann
from recsys.retrieval.requests import Answer, Event, Request

ANSWERED = 10
TOLERANCE = 1e-4  # of a score, for other processors' rounding
ROUNDED_ALIKE = 1.25  # times what an index of rounded vectors was off when it was made
History = tuple[Sequence[int], Sequence[float]]
Recommend = Callable[[Sequence[Request]], list[Answer | RequestError]]


def record(bundle: Bundle, recommend: Recommend, histories: Iterable[History]) -> tuple[GoldenQuery, ...]:
    """Golden queries from some histories (items, ratings), answered by exact search."""
    asked = [GoldenQuery(items=tuple(items), ratings=tuple(ratings), answer=(), scores=()) for items, ratings in histories]
    return tuple(
        query.model_copy(update={"answer": tuple(answer.items.tolist()), "scores": tuple(answer.scores.tolist())})
        for query, answer in zip(asked, recommend(_requests(bundle, asked)), strict=True)
        if isinstance(answer, Answer)
    )


def check(bundle: Bundle, recommend: Recommend) -> None:
    """Raises BundleError unless every golden query is answered as recorded."""
    golden, tolerance = bundle.manifest.golden, _tolerance(bundle)
    for query, answer in zip(golden, recommend(_requests(bundle, golden)), strict=True):
        if not isinstance(answer, Answer) or not _same(query, answer, tolerance):
            raise BundleError(f"{bundle.folder}: a golden query is answered otherwise than when it was made. {AGAIN}")


def _requests(bundle: Bundle, queries: Iterable[GoldenQuery]) -> list[Request]:
    ids = bundle.items.column("item_id")
    return [
        Request(
            history=tuple(Event(ids[item].as_py(), rating) for item, rating in zip(query.items, query.ratings, strict=True)),
            k=ANSWERED,
            mode="exact",
            exclude_seen=True,
        )
        for query in queries
    ]


def _tolerance(bundle: Bundle) -> float:
    """Of a score. Where an encoder rounds what comes in to bytes, another processor's rounding can be a byte's."""
    encoder = bundle.manifest.encoder
    return TOLERANCE if encoder is None or encoder.storage == "fp32" else TOLERANCE + encoder.difference


def _same(query: GoldenQuery, answer: Answer, tolerance: float) -> bool:
    """The same scores place by place, and the same items but where scores are too near to tell apart."""
    if len(query.answer) != len(answer.items):
        return False
    then, now = np.array(query.scores), answer.scores.astype(np.float64)
    close = np.abs(then - now) <= tolerance * np.maximum(1.0, np.abs(then))
    moved = np.array(query.answer) != answer.items
    gaps = np.abs(then[:, None] - then[None, :])
    np.fill_diagonal(gaps, np.inf)
    return bool(close.all() and not (moved & (gaps.min(axis=1, initial=np.inf) > tolerance)).any())


def check_index(bundle: Bundle) -> None:
    """Raises BundleError unless the scores that the index gives for a few of its own items are those of the vectors by the same
    ids, as near as they were when it was made."""
    report, indexed = bundle.manifest.index, bundle.indexed
    if report is None or bundle.item_vectors is None or indexed is None or not len(indexed) or bundle.index is None:
        return  # without one it was checked by who left it out
    apart = ann.difference(bundle.index, bundle.item_vectors, indexed)
    if apart > TOLERANCE + ROUNDED_ALIKE * report.difference:
        raise BundleError(f"{bundle.folder}: index and item vectors do not belong together. {AGAIN}")
