"""What an evaluation counted: sums that add up over blocks and ranks, and what each user's lists were worth.

Shapes: M metrics (metrics.RANKING), K cut-offs, U users, N items.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.evaluation import chance, metrics
from recsys.training import collective


@dataclass(frozen=True)
class Tally:
    """Sums over users, that add up over blocks and ranks.

    sums: [metrics, ks] float64; recommended: [ks, N] int64, users whose list holds the item.
    """

    users: int
    sums: Tensor
    recommended: Tensor

    @classmethod
    def empty(cls, ks: Sequence[int], items: int) -> "Tally":
        """Nobody yet."""
        return cls(0, torch.zeros(len(metrics.RANKING), len(ks), dtype=torch.float64), torch.zeros(len(ks), items).long())

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.users + other.users, self.sums + other.sums, self.recommended + other.recommended)

    def means(self, ks: Sequence[int], eligible: int) -> dict[str, float]:
        """Each metric@k as a mean over users; 0 where there are none."""
        named = {
            f"{name}@{k}": float(self.sums[row, column]) / max(self.users, 1)
            for column, k in enumerate(ks)
            for row, name in enumerate(metrics.RANKING)
        }
        return named | {f"coverage@{k}": metrics.coverage(self.recommended[c] > 0, eligible) for c, k in enumerate(ks)}


@dataclass(frozen=True)
class UserValues:
    """Measures of each user, from which intervals are made. All float64, and in the order the users came.

    model, popularity: [M, K, U], lists of the same users, who all have train events. errors: [3, V], of V users with rated
    events (strangers too): squared and absolute errors summed over their events, and how many events.
    """

    model: NDArray[np.float64]
    popularity: NDArray[np.float64]
    errors: NDArray[np.float64]

    @classmethod
    def joined(cls, parts: Sequence["UserValues"], ks: int) -> "UserValues":
        """Those of all blocks, one after the other."""
        nobody = cls(np.zeros((len(metrics.RANKING), ks, 0)), np.zeros((len(metrics.RANKING), ks, 0)), np.zeros((3, 0)))
        columns = [[getattr(part, name) for part in (nobody, *parts)] for name in ("model", "popularity", "errors")]
        return cls(*(np.concatenate(column, axis=-1) for column in columns))


@dataclass(frozen=True)
class RankingSums:
    """What an evaluation counted; adds up over ranks: `a + b`, or `over_ranks()`.

    known: users with train events, by the model; popularity: the same users, by popularity;
    strangers: users with held-out events but no train event, who get the popular list.
    counts: events, cold_events (held-out, on items that are not eligible: misses in all three), for models of ratings rated
    (events), squared and absolute (sums of errors over them), and where it was asked for, what an order by chance is worth to
    the users with train events, as `random metric@k`.
    kept: measures of each user, block by block, where they were asked for; `over_ranks` leaves them where they are.
    """

    ks: tuple[int, ...]
    eligible: int
    known: Tally
    popularity: Tally
    strangers: Tally
    counts: dict[str, float]
    kept: tuple[UserValues, ...] = ()

    def __add__(self, other: "RankingSums") -> "RankingSums":
        return replace(
            self,
            known=self.known + other.known,
            popularity=self.popularity + other.popularity,
            strangers=self.strangers + other.strangers,
            counts={name: self.counts[name] + other.counts[name] for name in self.counts},
            kept=self.kept + other.kept,
        )

    @classmethod
    def nothing(cls, ks: Sequence[int], eligible: int, items: int) -> "RankingSums":
        """Before the first user."""
        by_chance = [chance.name_of(metric, k) for metric in metrics.RANKING for k in ks]
        counts = dict.fromkeys(("events", "cold_events", "rated", "squared", "absolute", *by_chance), 0.0)
        nobody = Tally.empty(ks, items)
        return cls(tuple(ks), eligible, nobody, nobody, nobody, counts)

    def users(self) -> UserValues:
        """Measures of each user, where they were kept."""
        return UserValues.joined(self.kept, len(self.ks))

    def metrics(self) -> dict[str, float]:
        """The model's: hr@k, recall@k, ndcg@k, mrr@k, coverage@k for every k; rmse and mae where it models ratings."""
        return self.known.means(self.ks, self.eligible) | self._errors()

    def popularity_metrics(self) -> dict[str, float]:
        """Popularity's, for the same users and events."""
        return self.popularity.means(self.ks, self.eligible)

    def random_metrics(self) -> dict[str, float]:
        """An order's by chance, for the same users and events; empty where it was not asked for."""
        users, asked = max(self.known.users, 1), [(metric, k) for k in self.ks for metric in metrics.RANKING]
        found = {f"{metric}@{k}": self.counts[chance.name_of(metric, k)] / users for metric, k in asked}
        return found if any(found.values()) else {}

    def stranger_metrics(self) -> dict[str, float]:
        """Of users without train events."""
        return self.strangers.means(self.ks, self.eligible)

    def people(self) -> dict[str, int]:
        """How many the rows are about: users, strangers, events, cold_events."""
        counted = {name: int(self.counts[name]) for name in ("events", "cold_events")}
        return {"users": self.known.users, "strangers": self.strangers.users} | counted

    def over_ranks(self) -> "RankingSums":
        """The sum of all workers' counts, as one tensor over torch.distributed; itself when alone."""
        tallies = (self.known, self.popularity, self.strangers)
        parts = [torch.tensor([t.users for t in tallies]), *(t.sums for t in tallies), *(t.recommended for t in tallies)]
        parts.append(torch.tensor(list(self.counts.values())))
        flat = collective.sum_over_ranks(torch.cat([part.double().flatten() for part in parts]))
        summed = [part.view(like.shape) for part, like in zip(flat.split([p.numel() for p in parts]), parts, strict=True)]
        users, sums, recommended = summed[0].tolist(), summed[1:4], summed[4:7]
        known, popularity, strangers = (
            Tally(int(users[row]), sums[row], recommended[row].long()) for row in range(len(tallies))
        )
        counts = dict(zip(self.counts, summed[7].tolist(), strict=True))
        return replace(self, known=known, popularity=popularity, strangers=strangers, counts=counts)

    def _errors(self) -> dict[str, float]:
        rated = int(self.counts["rated"])
        if not rated:
            return {}
        return {"rmse": metrics.rmse(self.counts["squared"], rated), "mae": metrics.mae(self.counts["absolute"], rated)}
