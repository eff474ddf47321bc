"""`recsys bundle compare`: the lists of two bundles side by side, and how much they have in common."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cluster import console
from recsys.bundle import store
from recsys.bundle.read import open_bundle
from recsys.errors import BundleError
from recsys.retrieval.answers import to_json
from recsys.retrieval.recommender import Answer, Recommender
from recsys.retrieval.requests import Request

BATCH = 64


@dataclass(frozen=True)
class Lists:
    """What one user gets from each, titles best first."""

    user: str
    first: list[str]
    second: list[str]
    common: int


@dataclass(frozen=True)
class Comparison:
    """overlap: the mean share of a list that is in the other, too; same_first, same: the share of users whose first item, or
    whose whole list in its order, is the same; shown: some of the users."""

    first: str
    second: str
    users: int
    k: int
    overlap: float
    same_first: float
    same: float
    shown: list[Lists]


def compare(first: Path, second: Path, *, users: int, show: int, k: int) -> Comparison:
    """Ask both for users that both know, drawn by a seed. Raises BundleError where there is none."""
    one, other = (Recommender(open_bundle(store.resolve(path))) for path in (first, second))
    ids = _known_to_both(one, other, users)
    if not ids:
        raise BundleError(f"{first}, {second}: no user is in both. They are of different data.")
    pairs = list(zip(_answers(one, ids, k), _answers(other, ids, k), strict=True))
    shared = np.array([len(set(a.item_ids) & set(b.item_ids)) / max(len(a.item_ids), len(b.item_ids), 1) for a, b in pairs])
    return Comparison(
        first=_called(one),
        second=_called(other),
        users=len(ids),
        k=k,
        overlap=float(shared.mean()),
        same_first=float(np.mean([a.item_ids[:1] == b.item_ids[:1] for a, b in pairs])),
        same=float(np.mean([a.item_ids == b.item_ids for a, b in pairs])),
        shown=[
            Lists(user, _titles(one, a), _titles(other, b), len(set(a.item_ids) & set(b.item_ids)))
            for user, (a, b) in zip(ids[:show], pairs, strict=False)
        ],
    )


def print_json(found: Comparison) -> None:
    """One line, for programs."""
    print(to_json(asdict(found)).decode())


def print_tables(found: Comparison) -> None:
    """Some users' lists, then what all have in common."""
    if found.first == found.second:
        console.say(f"Both are one and the same: {found.first}.")
    for lists in found.shown:
        width = max(len(lists.first), len(lists.second))
        rows = [
            (place + 1, _marked(lists.first, lists.second, place), _marked(lists.second, lists.first, place))
            for place in range(width)
        ]
        title = f"User {lists.user}: {lists.common} in both (=)"
        console.print_rows(title, ("", found.first, found.second), rows)
    console.say(
        f"{found.users:,} users, top {found.k}: {found.overlap:.1%} of a list is in the other, too; the first item is the "
        f"same for {found.same_first:.1%}, the whole list for {found.same:.1%}."
    )


def _known_to_both(one: Recommender, other: Recommender, most: int) -> list[str]:
    rows = np.random.default_rng(0).permutation(one.bundle.manifest.users)
    ids: list[str] = []
    for row in rows:
        user = one.bundle.users.id(int(row))
        if other.bundle.users.row(user) is not None:
            ids.append(user)
        if len(ids) == most:
            break
    return ids


def _answers(recommender: Recommender, users: list[str], k: int) -> list[Answer]:
    batches = [users[start : start + BATCH] for start in range(0, len(users), BATCH)]
    found = [answer for batch in batches for answer in recommender.recommend([Request(user=user, k=k) for user in batch])]
    return [answer for answer in found if isinstance(answer, Answer)]


def _titles(recommender: Recommender, answer: Answer) -> list[str]:
    return [str(recommender.items.describe(int(item))["title"]) for item in answer.items]


def _marked(own: list[str], others: list[str], place: int) -> str:
    if place >= len(own):
        return ""
    return f"{'=' if own[place] in others else ' '} {own[place]}"


def _called(recommender: Recommender) -> str:
    manifest = recommender.bundle.manifest
    return f"{manifest.name} {manifest.version}"
