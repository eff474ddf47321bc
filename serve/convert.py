"""Between JSON and the recommender's own types."""

from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from recsys.errors import RequestError
from recsys.retrieval.catalogue import Catalogue
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.requests import Condition, Event, Request
from recsys.retrieval.users import User
from serve.problems import PROBLEMS, Problem
from serve.schemas import ColumnFilter, RecommendRequest

Json = dict[str, Any]

REMEMBERED = 100_000  # described items of a bundle, some 65 MB where they have titles and genres alone


def to_request(asked: RecommendRequest) -> Request:
    """The recommender's request for a checked body."""
    history = None if asked.history is None else tuple(Event(e.item, e.rating, e.time) for e in asked.history)
    return Request(
        user=asked.user,
        history=history,
        k=asked.k,
        exclude_seen=asked.exclude_seen,
        exclude=tuple(asked.exclude),
        allow=None if asked.allow is None else tuple(asked.allow),
        mode=asked.mode,
        filters=tuple(_condition(name, asked.filter[name]) for name in sorted(asked.filter)),
        diversity=asked.diversity,
        popularity=asked.popularity,
        recency=asked.recency,
        explain=asked.explain,
    )


def _condition(column: str, told: ColumnFilter) -> Condition:
    lists = {name: None if values is None else tuple(values) for name, values in told if name in ("any", "all", "none")}
    return Condition(column, **lists, equals=told.equals, min=told.min, max=told.max)


class Describer:
    """Items as JSON objects, remembered: reading rows of Arrow takes longer than finding which."""

    def __init__(self) -> None:
        self._of: WeakKeyDictionary[Recommender, Descriptions] = WeakKeyDictionary()

    def of(self, recommender: Recommender) -> "Descriptions":
        """Describes the items of this recommender."""
        known = self._of.get(recommender)
        if known is None:
            known = self._of[recommender] = Descriptions(recommender.items)
        return known


class Descriptions:
    """Of a catalogue's items. What is given out is shared, so copy it. Threads may share it."""

    def __init__(self, items: Catalogue) -> None:
        self._items, self._known = items, dict[int, Json]()

    def __call__(self, item: int) -> Json:
        known = self._known.get(item)
        if known is None:
            known = self._known[item] = self._described([item])[0]
        return known

    def learn(self, items: Iterable[int]) -> None:
        """Describe together those of some items that are not known yet: one by one a batch would take thirty milliseconds."""
        if missing := [item for item in items if item not in self._known]:
            if len(self._known) + len(missing) > REMEMBERED:
                self._known.clear()
            self._known.update(zip(missing, self._described(missing), strict=True))

    def _described(self, items: list[int]) -> list[Json]:
        return [_light(row) for row in self._items.describe_all(items)]


def _light(described: Json) -> Json:
    """Without lists: Python's collector has no need to look at what holds only tuples of texts and numbers. With lists in them
    each of its rounds took 35 to 75 ms, in which nobody was answered."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in described.items()}


def user_json(user: User, version: str) -> dict[str, Any]:
    """`schemas.User` of a known user."""
    return {"user_id": user.user_id, "events": user.events, "history": user.history, "bundle": version}


def problem_of(error: RequestError) -> Problem:
    """The recommender's refusal of one request."""
    return Problem(error.code if error.code in PROBLEMS else "invalid", str(error))


def manifest_json(manifest: Any, extra: Mapping[str, Any]) -> dict[str, Any]:
    """`schemas.BundleInfo` of a manifest."""
    names = (
        *("name", "version", "created", "model", "items", "users", "events", "dim", "dataset", "metrics_on"),
        *("metrics", "popularity", "known_user", "exclude_seen", "recall_floor"),
    )
    index = manifest.index.model_dump() if manifest.index else None
    return {**{name: getattr(manifest, name) for name in names}, "index": index, **extra}
