"""What is known of who asks: a vector to search with, what he has seen, or why there is no vector.

Shapes: E events of a history, N items, D dimensions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.bundle.read import Bundle
from recsys.data import schema
from recsys.errors import RequestError
from recsys.retrieval.catalogue import Catalogue
from recsys.retrieval.encoder import Encoder
from recsys.retrieval.filters import Items, contains, union
from recsys.retrieval.fold_in import fold_in
from recsys.retrieval.leaning import whole
from recsys.retrieval.requests import Event
from recsys.retrieval.softmax_fold_in import SoftmaxFoldIn
from recsys.retrieval.sum_fold_in import SumFoldIn

NO_ITEMS = np.zeros(0, np.int32)


@dataclass(frozen=True)
class Taste:
    """vector: [D], None where nothing personal can be said, for this `reason`; seen: ascending items."""

    vector: NDArray[np.float32] | None
    seen: Items = field(default_factory=lambda: NO_ITEMS)
    reason: str | None = None
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class User:
    """A known user: how many events he has, and some of them, newest first, as descriptions of items with rating and time."""

    user_id: str
    events: int
    history: list[dict[str, Any]]


class Tastes:
    """Makes tastes from the users, the item vectors and the encoder, if there is one, of a bundle."""

    def __init__(self, bundle: Bundle, items: Catalogue, known_until: str) -> None:
        """Raises BundleError where the encoder does not fit."""
        self._bundle, self._items, self._known_until = bundle, items, known_until
        self._encoder = None if bundle.encoder is None else Encoder(bundle)
        self._folds = _folds(bundle)

    def of(self, user_id: str | None, history: Sequence[Event] | None) -> Taste:
        """A known user is answered from the table, or from his history where the model keeps none or did not train on him;
        a history that is sent is used in place of the table, after what is stored of `user_id`."""
        row = None if user_id is None else self._bundle.users.row(user_id)
        if history is not None:
            return self._of_events(row, history)
        if row is None:
            return Taste(None, reason="no user and no history was given" if user_id is None else "the user is unknown")
        stored = self._stored(row)
        vector = None if self._bundle.user_vectors is None else self._bundle.user_vectors[row]
        if vector is not None and vector.any():
            return Taste(vector, union(self._bundle.histories.item[stored]))
        return self._folded(
            self._bundle.histories.item[stored], self._bundle.histories.rating[stored], "nothing is known of the user"
        )

    def describe(self, user_id: str, limit: int | None) -> User:
        """A known user's events with titles, newest first, `limit` of them. Raises RequestError for a stranger."""
        row = self._bundle.users.row(user_id)
        if row is None:
            raise RequestError("unknown_user", f"no user {user_id!r} in bundle {self._bundle.version}; send a history instead.")
        stored = self._stored(row)
        places = range(stored.stop - 1, stored.start - 1, -1)[:limit]
        return User(user_id, stored.stop - stored.start, [self._describe(place) for place in places])

    def _describe(self, place: int) -> dict[str, Any]:
        histories = self._bundle.histories
        item = self._items.describe(int(histories.item[place]))
        return item | {"rating": float(histories.rating[place]), "time": int(histories.time[place])}

    def _stored(self, row: int) -> slice:
        return self._bundle.histories.events(row, self._known_until)

    def _of_events(self, row: int | None, history: Sequence[Event]) -> Taste:
        known = [(self._items.number(event.item), event.rating) for event in _by_time(history)]
        sent = [(item, rating) for item, rating in known if item is not None]
        items = np.array([item for item, _ in sent], np.int32)
        ratings = np.array([self._rating(rating) for _, rating in sent], np.float32)
        if row is not None:
            stored = self._stored(row)
            items = np.concatenate([self._bundle.histories.item[stored], items])
            ratings = np.concatenate([self._bundle.histories.rating[stored], ratings])
        unknown = tuple(event.item for event in history if self._items.number(event.item) is None)
        why = "no item of the history is in the catalogue" if history else "the history is empty"
        taste = self._folded(items, ratings, why)
        return Taste(taste.vector, taste.seen, taste.reason, unknown)

    def _rating(self, rating: float | None) -> float:
        """An event without a rating says as much as an average one, or, where ratings do not count, one."""
        return self._bundle.manifest.fold_in.parameters.get("mean", 1.0) if rating is None else rating

    def _folded(self, items: Items, ratings: NDArray[np.float32], why_not: str) -> Taste:
        bundle, seen = self._bundle, union(items)
        if not len(items):
            return Taste(None, seen, why_not)
        if bundle.item_vectors is None:
            return Taste(None, seen)
        vector = self._solved(items, ratings) if self._encoder is None else self._encoder(self._as_trained(items))
        if vector is None:
            return Taste(None, seen, "no item of the history was watched in training")
        return Taste(whole(vector, bundle.manifest.dim), seen)

    def _solved(self, items: Items, ratings: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Each item once, with its last rating, ascending: the order of a history cannot move a rounding."""
        bundle = self._bundle
        assert bundle.indexed is not None
        last = _last_of_each(items)
        items, ratings = items[last], ratings[last]
        usable = contains(bundle.indexed, items)
        if not usable.any():
            return None
        vectors = [fold(items[usable], ratings[usable]) for fold in self._folds]
        return vectors[0] if len(vectors) == 1 else np.concatenate(vectors)

    def _as_trained(self, items: Items) -> Items:
        """In order; where the dataset keeps no repeats, an item that comes again moves to its last place."""
        return items[np.sort(_last_of_each(items))] if self._bundle.manifest.exclude_seen else items


Fold = Callable[[Items, NDArray[np.float32]], NDArray[np.float32]]


def _folds(bundle: Bundle) -> list[Fold]:
    """What turns items with their ratings, each once and ascending, into a vector, or into the parts of one."""
    told, learnt = bundle.manifest.fold_in, bundle.manifest.learnt
    if told.kind in ("onnx", "none"):
        return []
    whole_one: tuple[str, dict[str, float], slice, float] = (told.kind, told.parameters, slice(0, learnt), 1.0)
    parts: list[tuple[str, dict[str, float], slice, float]] = [
        (part.kind, part.parameters, slice(part.first, part.last), part.weight) for part in told.parts
    ]
    return [_fold(bundle, *part) for part in parts or [whole_one]]


def _fold(bundle: Bundle, kind: str, parameters: dict[str, float], dims: slice, weight: float) -> Fold:
    vectors, indexed, times = bundle.learnt_vectors[:, dims], bundle.indexed, np.float32(weight)
    assert indexed is not None
    if kind == "softmax":
        descent = SoftmaxFoldIn(vectors, indexed, parameters)
        return lambda items, ratings: descent(items) * times
    if kind == "sum":
        counts = bundle.items.column(schema.COUNT).to_numpy()
        added = SumFoldIn(vectors, counts, parameters)
        return lambda items, ratings: added(items) * times
    assert bundle.gram is not None
    gram = bundle.gram[dims, dims]

    def solved(items: Items, ratings: NDArray[np.float32]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = fold_in(vectors, np.array([0, len(items)]), items, ratings, gram, parameters)[0]
        return found * times

    return solved


def _by_time(history: Sequence[Event]) -> list[Event]:
    """Oldest first, ties as sent. An event without a time belongs right behind the one sent before it."""
    latest: float = -math.inf
    times = [latest := latest if event.time is None else event.time for event in history]
    return [event for _, event in sorted(zip(times, history, strict=True), key=lambda timed: timed[0])]


def _last_of_each(items: Items) -> NDArray[np.intp]:
    """Where each item is for the last time, by ascending item."""
    from_end: NDArray[np.intp] = np.unique(items[::-1], return_index=True)[1]
    return len(items) - 1 - from_end
