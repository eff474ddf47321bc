"""Seeded lists for the oracle of ranking metrics: what both sides are given. Python's own `random()` alone, whose numbers are
the same in every release, so that the two environments make the same lists."""

import random
from typing import NamedTuple

USERS, ITEMS, COLD = 80, 150, 6
KS = (1, 3, 10, 20)


class Case(NamedTuple):
    """One user: what he has seen, what is held out (cold items too), and a score for each item, of few values, so with ties."""

    seen: list[int]
    held: list[int]
    scores: list[int]


def cases() -> list[Case]:
    """All users; the last COLD items are in nobody's `seen`, so nobody's list may hold them."""
    rng = random.Random(20)
    return [_case(rng, first=user % (ITEMS - COLD)) for user in range(USERS)]


def listed(cases: list[Case]) -> list[list[int]]:
    """Each user's items, best first: those somebody has seen, less his own, by (-score, item), which is our rule for ties."""
    eligible = sorted({item for case in cases for item in case.seen})
    return [
        sorted(set(eligible) - set(case.seen), key=lambda item, scores=case.scores: (-scores[item], item)) for case in cases
    ]


def _case(rng: random.Random, first: int) -> Case:
    order = sorted(range(ITEMS - COLD), key=lambda _: rng.random())
    seen = sorted({first, first + 1 if first + 1 < ITEMS - COLD else 0, *order[: int(rng.random() * 20)]})
    rest = [item for item in order if item not in seen]
    held = rest[: 1 + int(rng.random() * 30 * rng.random())]
    held += [ITEMS - 1 - int(rng.random() * COLD)] if rng.random() < 0.3 else []
    liked = set(held)
    scores = [int(rng.random() * 5) + (2 if item in liked and rng.random() < 0.5 else 0) for item in range(ITEMS)]
    return Case(seen, held, scores)
