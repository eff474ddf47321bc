"""What is asked and what is answered, and the check that a request can be answered at all."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from recsys.errors import RequestError

Mode = Literal["auto", "ann", "exact"]
MODES = get_args(Mode)
ServedBy = Literal["ann", "exact", "popular"]
Value = str | int | float | bool
LARGEST_RATING = 1_000_000  # beyond it scores could overflow
DIALS = {"diversity": 0, "popularity": -1, "recency": -1}
"""What changes the order, and the least it can be; the most is 1."""
INT64 = range(-(1 << 63), 1 << 63)


@dataclass(frozen=True)
class Event:
    """One event of a history: an item's id, and where known its rating and time (Unix seconds)."""

    item: str
    rating: float | None = None
    time: int | None = None


@dataclass(frozen=True)
class Condition:
    """What an item must have in a column of the catalogue; where several are given, all of them.

    any, all, none: values of which it has at least one, every one, not one; equals: its value; min, max: bounds, within them.
    An item whose value is missing has none of any.
    """

    column: str
    any: tuple[Value, ...] | None = None
    all: tuple[Value, ...] | None = None
    none: tuple[Value, ...] | None = None
    equals: Value | None = None
    min: float | None = None
    max: float | None = None

    @property
    def asked(self) -> set[str]:
        """Which of them are given."""
        return {name for name in ("any", "all", "none", "equals", "min", "max") if getattr(self, name) is not None}

    @property
    def values(self) -> list[Value]:
        """All that are looked for."""
        return [*(self.any or ()), *(self.all or ()), *(self.none or ()), *([] if self.equals is None else [self.equals])]

    @property
    def bounds(self) -> list[float]:
        """The ends of a range."""
        return [value for value in (self.min, self.max) if value is not None]


@dataclass(frozen=True)
class Request:
    """Who asks, and for what.

    user: a known user's id; history: his events, or those since the bundle if `user` is given too, oldest first; where they
    have times, these order them. Neither: a stranger. exclude_seen: None does what the bundle says; exclude, allow: ids never,
    or only, to recommend; filters: what an item must have besides.
    diversity (0 to 1), popularity and recency (-1 to 1) change the order of what is found (`recsys.retrieval.rerank`); 0
    does not. explain: say which items of the history pulled each one up.
    """

    user: str | None = None
    history: tuple[Event, ...] | None = None
    k: int = 10
    exclude_seen: bool | None = None
    exclude: tuple[str, ...] = ()
    allow: tuple[str, ...] | None = None
    mode: Mode = "auto"
    filters: tuple[Condition, ...] = ()
    diversity: float = 0.0
    popularity: float = 0.0
    recency: float = 0.0
    explain: bool = False

    @property
    def reranks(self) -> bool:
        """Whether another order is asked for than that of the scores."""
        return any((self.diversity, self.popularity, self.recency))


@dataclass(frozen=True)
class Cause:
    """An item of the history, and what an answer's score would lose if it were not in it."""

    item: int
    gain: float


@dataclass(frozen=True)
class Answer:
    """The list, best first, and how it came about.

    scores: inner products (or cosines, of similar items); on the path `popular` how often each item was watched, lately or in
    training. fallback: it is not the personal answer that was asked for; reason: why that, why exact, or why fewer than
    k, and which of the values asked for no item has.
    unknown_items: ids in the request that are not in the catalogue. because: for each item what pulled it up, most first,
    where that was asked for. Where another order was asked for, scores stay the model's, and need not fall from item to item.
    """

    item_ids: list[str]
    items: NDArray[np.int32]
    scores: NDArray[np.float32]
    path: ServedBy
    fallback: bool
    version: str
    reason: str | None = None
    unknown_items: list[str] = field(default_factory=list)
    because: list[tuple[Cause, ...]] | None = None


def check(request: Request) -> None:
    """Raises RequestError for what cannot be answered, saying what to send instead."""
    if not _is_int(request.k) or request.k < 1:
        raise RequestError("bad_k", f"k is {request.k!r}: ask for at least 1 item.")
    if request.mode not in MODES:
        raise RequestError("bad_mode", f"mode is {request.mode!r}: use one of {', '.join(MODES)}.")
    if not (request.user is None or isinstance(request.user, str)):
        raise RequestError("bad_user", "user: send the id as a string.")
    for name in ("exclude", "allow"):
        ids = getattr(request, name)
        if not (ids is None and name == "allow") and not _are_strings(ids):
            raise RequestError(f"bad_{name}", f"{name}: send a list of item ids, as strings.")
    for name, least in DIALS.items():
        value = getattr(request, name)
        if value != 0 and not _is_between(value, least, 1):
            raise RequestError(f"bad_{name}", f"{name} is {value!r}: send a number from {least} to 1.")
    for event in request.history or ():
        _check_event(event)


def _check_event(event: Event) -> None:
    if not isinstance(event.item, str):
        raise RequestError("bad_history", "history: each event names its item by id, as a string.")
    if event.rating is not None and not _is_rating(event.rating):
        raise RequestError(
            "bad_rating", f"history: the rating of item {event.item!r} is not a number up to {LARGEST_RATING:,}."
        )
    if event.time is not None and (not _is_int(event.time) or event.time not in INT64):
        raise RequestError("bad_time", f"history: the time of item {event.item!r} is not Unix seconds.")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_rating(value: Any) -> bool:
    return isinstance(value, (int, float)) and -LARGEST_RATING <= value <= LARGEST_RATING  # false for NaN


def _is_between(value: Any, least: float, most: float) -> bool:
    return isinstance(value, (int, float)) and least <= value <= most  # false for NaN


def _are_strings(values: Any) -> bool:
    return values == () or (isinstance(values, (tuple, list)) and all(isinstance(value, str) for value in values))
