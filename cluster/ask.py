"""`recsys recommend`: the recommender of the service, asked without a server."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster import console
from recsys.bundle import store
from recsys.bundle.read import open_bundle
from recsys.errors import RequestError
from recsys.retrieval.answers import answer_json, to_json
from recsys.retrieval.recommender import Recommender, Request


def answers(bundle: Path, users: Sequence[str], k: int, mode: str) -> list[dict[str, Any]]:
    """What to watch next for each user, as the service says it. Raises RequestError for an impossible request."""
    recommender = Recommender(open_bundle(store.resolve(bundle)))
    requests = [Request(user=user, k=k, mode=mode) for user in users]  # type: ignore[arg-type]
    told = []
    for user, answer in zip(users, recommender.recommend(requests), strict=True):
        if isinstance(answer, RequestError):
            raise answer
        shown = user.encode("utf-8", "replace").decode()  # a command line may carry what is no character
        told.append({"user": shown, **answer_json(answer, recommender.items.describe)})
    return told


def print_json(answer: dict[str, Any]) -> None:
    """One line, for programs."""
    print(to_json(answer).decode())


def print_answer(answer: dict[str, Any]) -> None:
    """A table of titles with scores."""
    why = f"; {answer['reason']}" if answer["reason"] else ""
    title = f"User {answer['user']} ({answer['path']}, bundle {answer['bundle']}{why})"
    score = "times watched" if answer["path"] == "popular" else "score"
    rows = [(place, *_cells(item)) for place, item in enumerate(answer["items"], start=1)]
    console.print_rows(title, ("", "title", "genres", score), rows, right=("", score))


def _cells(item: dict[str, Any]) -> tuple[str, str, str]:
    return item["title"] or item["item_id"], ", ".join(item.get("genres") or ()), f"{item['score']:.4f}".removesuffix(".0000")
