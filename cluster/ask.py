"""`recsys recommend`: the recommender of the service, asked without a server."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from cluster import console
from recsys.bundle import store
from recsys.bundle.read import open_bundle
from recsys.errors import ConfigError, RequestError
from recsys.retrieval.answers import answer_json, to_json
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.requests import Condition, Event, Request


def answers(bundle: Path, users: Sequence[str], asked: Request) -> list[dict[str, Any]]:
    """What to watch next for each user, or where there is none for who has the history or nothing, as the service says it.
    Raises RequestError for an impossible request."""
    recommender = Recommender(open_bundle(store.resolve(bundle)))
    requests = [replace(asked, user=user) for user in users] or [asked]
    told = []
    for request, answer in zip(requests, recommender.recommend(requests), strict=True):
        if isinstance(answer, RequestError):
            raise answer
        shown = None if request.user is None else _characters(request.user)
        answer = replace(answer, unknown_items=[_characters(item) for item in answer.unknown_items])
        told.append({"user": shown, **answer_json(answer, recommender.items.describe)})
    return told


def _characters(text: str) -> str:
    """A command line may carry what is no character."""
    return text.encode("utf-8", "replace").decode()


def history(items: Sequence[str]) -> tuple[Event, ...] | None:
    """What `--history` says, oldest first."""
    return tuple(Event(item) for item in items) or None


def conditions(text: str) -> tuple[Condition, ...]:
    """What `--filter` says, in the service's own JSON. Raises ConfigError for what is none."""
    try:
        told = orjson.loads(text)
        return tuple(_condition(column, told[column]) for column in sorted(told))
    except (ValueError, TypeError, AttributeError):
        example = '{"genres": {"any": ["Comedy"]}, "year": {"min": 1990}}'
        raise ConfigError(f"--filter {text}: give JSON of columns and any, all, none, equals, min or max: {example}") from None


def _condition(column: str, told: dict[str, Any]) -> Condition:
    asked: dict[str, Any] = {word: tuple(value) if isinstance(value, list) else value for word, value in told.items()}
    return Condition(column, **asked)


def print_json(answer: dict[str, Any]) -> None:
    """One line, for programs."""
    print(to_json(answer).decode())


def print_answer(answer: dict[str, Any]) -> None:
    """A table of titles with scores."""
    why = "; ".join([*filter(None, [answer["reason"]]), *(f"unknown item {item}" for item in answer["unknown_items"])])
    who = "Somebody unknown" if answer["user"] is None else f"User {answer['user']}"
    title = f"{who} ({answer['path']}, bundle {answer['bundle']}{f'; {why}' if why else ''})"
    score = "times watched" if answer["path"] == "popular" else "score"
    explained = ("because of",) if any("because" in item for item in answer["items"]) else ()
    rows = [
        (place, *_cells(item), *([_causes(item)] if explained else [])) for place, item in enumerate(answer["items"], start=1)
    ]
    console.print_rows(title, ("", "title", "genres", score, *explained), rows, right=("", score))


def _cells(item: dict[str, Any]) -> tuple[str, str, str]:
    return item["title"] or item["item_id"], ", ".join(item.get("genres") or ()), f"{item['score']:.4f}".removesuffix(".0000")


def _causes(item: dict[str, Any]) -> str:
    return ", ".join(cause["title"] for cause in item["because"])
