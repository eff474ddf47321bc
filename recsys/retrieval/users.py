"""What is known of who asks: a vector to search with, what he has seen, or why there is no vector.

Shapes: E events of a history, N items, D dimensions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.bundle.read import Bundle
from recsys.errors import RequestError
from recsys.retrieval.catalogue import NO_ITEMS, Catalogue
from recsys.retrieval.filters import Items, union
from recsys.retrieval.folding import History, parts_of
from recsys.retrieval.leaning import whole
from recsys.retrieval.requests import Event

EXPLAINED = 20  # of a history the latest items that are tried without: each costs a vector


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


Sent = tuple[int, float | None, int | None]  # item, rating, time


class Tastes:
    """Makes tastes from the users, the item vectors and the encoder, if there is one, of a bundle."""

    def __init__(self, bundle: Bundle, items: Catalogue, known_until: str) -> None:
        """Raises BundleError where the encoder does not fit."""
        self._bundle, self._items, self._known_until = bundle, items, known_until
        self._parts = parts_of(bundle)

    def of(self, user_id: str | None, history: Sequence[Event] | None) -> Taste:
        """A known user is answered from the table, or from his history where the model keeps none or did not train on him;
        a history that is sent is used in place of the table, after what is stored of `user_id`."""
        row = None if user_id is None else self._bundle.users.row(user_id)
        if history is not None and (taste := self._of_events(row, history)) is not None:
            return taste
        if row is None:
            return Taste(None, reason="no user and no history was given" if user_id is None else "the user is unknown")
        stored = self._stored(row)
        if (vector := self._of_table(row, stored)) is not None:
            return Taste(vector, union(self._bundle.histories.item[stored]))
        return self._folded(
            self._bundle.histories.item[stored], self._bundle.histories.rating[stored], "nothing is known of the user"
        )

    def without_each(self, user_id: str | None, history: Sequence[Event] | None) -> tuple[Items, NDArray[np.float32]]:
        """[H] the latest items of a history, newest first, and [H, L] what each of them adds to the vector that is made of it:
        that vector less what it were without the item. The table is not asked, since it does not say what a user comes from.
        """
        row = None if user_id is None else self._bundle.users.row(user_id)
        items, ratings = self._events(row, history or ())
        if not len(items) or not self._parts:
            return NO_ITEMS, np.zeros((0, 0), np.float32)
        latest = np.array(list(dict.fromkeys(items[::-1].tolist()))[:EXPLAINED], np.int32)
        whole_L = self._vector(items, ratings)
        without = [self._vector(items[items != item], ratings[items != item]) for item in latest]
        return latest, whole_L - np.stack(without)

    def describe(self, user_id: str, limit: int | None, since: Sequence[Event] = ()) -> User:
        """A user's events with titles, newest first, `limit` of them: those `since` the bundle, then what it knows.

        Raises RequestError for a stranger.
        """
        row = self._bundle.users.row(user_id)
        if row is None and not since:
            raise RequestError("unknown_user", f"no user {user_id!r} in bundle {self._bundle.version}; send a history instead.")
        stored = slice(0, 0) if row is None else self._stored(row)
        latest = [self._describe(*event) for event in reversed(self._sent(stored, _by_time(since)))]
        places = range(stored.stop - 1, stored.start - 1, -1)[: None if limit is None else max(limit - len(latest), 0)]
        histories = self._bundle.histories
        known = [self._describe(histories.item[at], histories.rating[at], histories.time[at]) for at in places]
        return User(user_id, stored.stop - stored.start + len(latest), [*latest, *known][:limit])

    def _describe(self, item: int, rating: float | None, time: int | None) -> dict[str, Any]:
        told = {"rating": None if rating is None else float(rating), "time": None if time is None else int(time)}
        return self._items.describe(int(item)) | told

    def _stored(self, row: int) -> slice:
        return self._bundle.histories.events(row, self._known_until)

    def _of_events(self, row: int | None, history: Sequence[Event]) -> Taste | None:
        """None where all of it is what the bundle has of the user, who is answered as without it then: those whose events came
        while serving and are in the bundle by now are answered here as where nobody asks for such events."""
        unknown = tuple(event.item for event in history if self._items.number(event.item) is None)
        stored, sent = self._stored_and_sent(row, history)
        if row is not None and history and not sent and not unknown:
            return None
        why = "no item of the history is in the catalogue" if history else "the history is empty"
        taste = self._folded(*self._put_together(stored, sent), why)
        return Taste(taste.vector, taste.seen, taste.reason, unknown)

    def _events(self, row: int | None, history: Sequence[Event]) -> tuple[Items, NDArray[np.float32]]:
        """Items and ratings, oldest first: what is stored of a user, then what was sent."""
        return self._put_together(*self._stored_and_sent(row, history))

    def _stored_and_sent(self, row: int | None, history: Sequence[Event]) -> tuple[slice, list[Sent]]:
        stored = slice(0, 0) if row is None else self._stored(row)
        return stored, self._sent(stored, _by_time(history))

    def _put_together(self, stored: slice, sent: Sequence[Sent]) -> tuple[Items, NDArray[np.float32]]:
        items = np.array([item for item, _, _ in sent], np.int32)
        ratings = np.array([self._rating(rating) for _, rating, _ in sent], np.float32)
        histories = self._bundle.histories
        return np.concatenate([histories.item[stored], items]), np.concatenate([histories.rating[stored], ratings])

    def _sent(self, stored: slice, history: Sequence[Event]) -> list[Sent]:
        """Item, rating and time of the events whose items are known. What is stored already is not told again: events that came
        while serving are in the bundle, too, once it has learnt from them, and of an item the latest where it keeps no repeats.
        """
        known = [(self._items.number(event.item), event.rating, event.time) for event in history]
        sent = [(item, rating, time) for item, rating, time in known if item is not None]
        if stored.stop == stored.start or all(time is None for _, _, time in sent):
            return sent
        histories = self._bundle.histories
        pairs = list(zip(histories.item[stored].tolist(), histories.time[stored].tolist(), strict=True))
        if not self._bundle.manifest.exclude_seen:  # repeats are kept
            told = set(pairs)
            return [(item, rating, time) for item, rating, time in sent if (item, time) not in told]
        latest: dict[int, int] = {}
        for item, time in pairs:
            latest[item] = max(time, latest.get(item, time))
        return [each for each in sent if each[2] is None or each[0] not in latest or each[2] > latest[each[0]]]

    def _rating(self, rating: float | None) -> float:
        """An event without a rating says as much as an average one, or, where ratings do not count, one."""
        return self._bundle.manifest.fold_in.parameters.get("mean", 1.0) if rating is None else rating

    def _folded(self, items: Items, ratings: NDArray[np.float32], why_not: str) -> Taste:
        seen = union(items)
        if not len(items):
            return Taste(None, seen, why_not)
        if self._bundle.item_vectors is None:
            return Taste(None, seen)
        vectors = self._of_parts(items, ratings)
        if all(vector is None for vector in vectors):
            return Taste(None, seen, "no item of the history was watched in training")
        return Taste(whole(self._joined(vectors), self._bundle.manifest.dim), seen)

    def _of_parts(self, items: Items, ratings: NDArray[np.float32]) -> list[NDArray[np.float32] | None]:
        history = History(self._bundle, items, ratings)
        return [part.vector(history) for part in self._parts]

    def _joined(self, vectors: Sequence[NDArray[np.float32] | None]) -> NDArray[np.float32]:
        """[L] zeros for a part that has nothing to say."""
        made = [part.nothing if vector is None else vector for part, vector in zip(self._parts, vectors, strict=True)]
        return made[0] if len(made) == 1 else np.concatenate(made)

    def _vector(self, items: Items, ratings: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._joined(self._of_parts(items, ratings))

    def _of_table(self, row: int, stored: slice) -> NDArray[np.float32] | None:
        """[D] what the table says of a known user, and of the parts that know users by their histories, what these say."""
        if self._bundle.user_vectors is None or not self._bundle.user_vectors[row].any():
            return None
        vector: NDArray[np.float32] = self._bundle.user_vectors[row]
        if not (live := [part for part in self._parts if part.known == "history"]):
            return vector
        vector = vector.copy()
        history = History(self._bundle, self._bundle.histories.item[stored], self._bundle.histories.rating[stored])
        for part in live:
            made = part.vector(history)
            vector[part.dims] = part.nothing if made is None else made
        return vector


def _by_time(history: Sequence[Event]) -> list[Event]:
    """Oldest first, ties as sent. An event without a time belongs right behind the one sent before it."""
    latest: float = -math.inf
    times = [latest := latest if event.time is None else event.time for event in history]
    return [event for _, event in sorted(zip(times, history, strict=True), key=lambda timed: timed[0])]
