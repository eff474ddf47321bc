"""Answers as JSON: the same from the service and from the command line, to the digit."""

from collections.abc import Callable
from typing import Any

import orjson

from recsys.data import schema
from recsys.retrieval.requests import Answer


def answer_json(
    answer: Answer, describe: Callable[[int], dict[str, Any]], shown: orjson.Fragment | None = None
) -> dict[str, Any]:
    """An answer as plain data. describe: `Catalogue.describe` of the recommender that made it. shown: its items, where they
    are JSON already."""
    return {
        "items": _items(answer, describe) if shown is None else shown,
        "path": answer.path,
        "fallback": answer.fallback,
        "reason": answer.reason,
        "unknown_items": answer.unknown_items,
        "bundle": answer.version,
    }


def _items(answer: Answer, describe: Callable[[int], dict[str, Any]]) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = [
        {**describe(item), "score": score} for item, score in zip(answer.items.tolist(), answer.scores, strict=True)
    ]
    for item, causes in zip(told, answer.because or (), strict=False):
        item["because"] = [{**_named(describe(cause.item)), "gain": cause.gain} for cause in causes]
    return told


def _named(item: dict[str, Any]) -> dict[str, Any]:
    return {name: item[name] for name in (schema.ITEM_ID, schema.TITLE)}


def to_json(content: Any) -> bytes:
    """Scores in the fewest digits that tell them apart; dates and what else an attribute may be as text, NaN as null."""
    return orjson.dumps(content, default=str, option=orjson.OPT_SERIALIZE_NUMPY)
