"""Between JSON and the recommender's own types."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import orjson

from recsys.errors import RequestError
from recsys.retrieval.answers import answer_json, to_json
from recsys.retrieval.catalogue import Catalogue
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.requests import Answer, Condition, Event, Request
from recsys.retrieval.users import User
from serve.problems import PROBLEMS, Problem
from serve.schemas import ColumnFilter, RecommendRequest

Json = dict[str, Any]

SCORE = "score"
REMEMBERED = 100_000  # described items of a bundle, some 20 MB where they have titles and genres alone


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
    """Items as JSON, remembered: reading rows of Arrow takes longer than finding which."""

    def __init__(self) -> None:
        self._of: WeakKeyDictionary[Recommender, Descriptions] = WeakKeyDictionary()

    def of(self, recommender: Recommender) -> "Descriptions":
        """Describes the items of this recommender."""
        known = self._of.get(recommender)
        if known is None:
            known = self._of[recommender] = Descriptions(recommender.items)
        return known


class Descriptions:
    """Of a catalogue's items. Threads may share it."""

    def __init__(self, items: Catalogue) -> None:
        # Each as text, but for its score: bytes cost Python's collector nothing, and an answer no encoding.
        self._items, self._known = items, dict[int, bytes]()

    def answers(self, answers: Sequence[Answer]) -> list[Json]:
        """Each as JSON."""
        shown = iter(self._all_shown([answer for answer in answers if answer.because is None]))
        return [
            answer_json(answer, self._items.describe, next(shown)) if answer.because is None else self._explained(answer)
            for answer in answers
        ]

    def _explained(self, answer: Answer) -> Json:
        causes = [cause.item for causes in answer.because or () for cause in causes]
        items = list({*answer.items.tolist(), *causes})
        described = dict(zip(items, self._items.describe_all(items), strict=True))
        return answer_json(answer, described.__getitem__)

    def _all_shown(self, answers: Sequence[Answer]) -> list[orjson.Fragment | None]:
        """The items of each. None where another thread has begun anew meanwhile."""
        shown = [self._shown(answer) for answer in answers]
        if any(each is None for each in shown):
            self._learn({item for answer in answers for item in answer.items.tolist()})
            shown = [self._shown(answer) for answer in answers]
        return shown

    def _shown(self, answer: Answer) -> orjson.Fragment | None:
        """None where an item is not known yet."""
        known = self._known
        try:
            texts = [known[item] for item in answer.items.tolist()]
        except KeyError:
            return None
        scores = to_json(answer.scores)[1:-1].split(b",") if texts else []
        return orjson.Fragment(b"[%b]" % b",".join([text + score + b"}" for text, score in zip(texts, scores, strict=True)]))

    def _learn(self, items: Collection[int]) -> None:
        """Describe some items together: one by one a batch would take thirty milliseconds."""
        known = self._known
        missing = [item for item in items if item not in known]
        if len(known) + len(missing) > REMEMBERED:
            known, missing = {}, list(items)
        for item, row in zip(missing, self._items.describe_all(missing), strict=True):
            row.pop(SCORE, None)  # a column's: the answer's own stands in its place
            known[item] = to_json(row)[:-1] + b',"score":'
        self._known = known


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
