"""Every held-out user against every item, in blocks, with popularity alongside in the same protocol.

A user's list is the K best by (-score, item): the Recommender's order, so both count the same hits.
Shapes: B users of a block, P items with a train event, K places, E held-out events of the block.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.data.histories import Histories
from recsys.evaluation import metrics
from recsys.evaluation.lists import top_lists
from recsys.models.popularity import Popularity
from recsys.training import collective

# Scores held at once: 64 MB in float32.
BLOCK_SCORES = 1 << 24


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
class RankingSums:
    """What `evaluate` counted; adds up over ranks: `a + b`, or `over_ranks()`.

    known: users with train events, by the model; popularity: the same users, by popularity;
    strangers: users with held-out events but no train event, who get the popular list.
    counts: events, cold_events (held-out, on items without a train event: misses in all three), and for models of ratings
    rated (events), squared and absolute (sums of errors over them).
    """

    ks: tuple[int, ...]
    eligible: int
    known: Tally
    popularity: Tally
    strangers: Tally
    counts: dict[str, float]

    def __add__(self, other: "RankingSums") -> "RankingSums":
        return replace(
            self,
            known=self.known + other.known,
            popularity=self.popularity + other.popularity,
            strangers=self.strangers + other.strangers,
            counts={name: self.counts[name] + other.counts[name] for name in self.counts},
        )

    def metrics(self) -> dict[str, float]:
        """The model's: hr@k, recall@k, ndcg@k, mrr@k, coverage@k for every k; rmse and mae where it models ratings."""
        return self.known.means(self.ks, self.eligible) | self._errors()

    def popularity_metrics(self) -> dict[str, float]:
        """Popularity's, for the same users and events."""
        return self.popularity.means(self.ks, self.eligible)

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


@torch.no_grad()
def evaluate(
    model: Any,
    histories: Histories,
    *,
    segment: str,
    item_counts: NDArray[np.int64],
    ks: Sequence[int] = (10, 20),
    exclude_seen: bool = True,
    device: torch.device | None = None,
    batch_size: int | None = None,
    user_vectors: Callable[[Histories], Tensor] | None = None,
) -> RankingSums:
    """Rank, for every user with events in `segment`, all items that have a train event.

    model: a Model, or Popularity. segment: `valid` or `test`; what comes before it is known, and masked if `exclude_seen`.
    item_counts: [N] train events. batch_size: users at once; unset: as many as fit in 64 MB of scores.
    user_vectors: [B, D] for histories of known events only; unset: the model's own. Users the model never trained on
    (a split by user) need vectors folded in.
    """
    scorer = _Scorer(model, item_counts, device, user_vectors)
    sums = _nothing(tuple(ks), len(scorer.eligible), len(item_counts))
    first, last = histories.bounds(segment)
    held = np.flatnonzero(last > first)
    step = batch_size or max(1, BLOCK_SCORES // max(len(scorer.eligible), 1))
    for start in range(0, len(held), step):
        sums = sums + _evaluate_block(scorer, histories.take(held[start : start + step]), segment, sums, exclude_seen)
    return sums


def _nothing(ks: tuple[int, ...], eligible: int, items: int) -> RankingSums:
    counts = dict.fromkeys(("events", "cold_events", "rated", "squared", "absolute"), 0.0)
    return RankingSums(ks, eligible, Tally.empty(ks, items), Tally.empty(ks, items), Tally.empty(ks, items), counts)


class _Scorer:
    """Scores of blocks of users over the items that have a train event, by the model and by popularity."""

    def __init__(
        self,
        model: Any,
        item_counts: NDArray[np.int64],
        device: torch.device | None,
        user_vectors: Callable[[Histories], Tensor] | None,
    ) -> None:
        ranked = Popularity(item_counts).ranked
        self.eligible = np.sort(ranked)
        self.column = np.full(len(item_counts), -1)
        self.column[self.eligible] = np.arange(len(self.eligible))
        self.personal = not isinstance(model, Popularity)
        self.rates = bool(getattr(model, "rates", False))
        self.device = device or torch.device("cpu")
        place = np.empty(len(ranked), np.float32)
        place[self.column[ranked]] = np.arange(len(ranked))
        self.popularity_P = -torch.from_numpy(place).to(self.device)
        if self.personal:
            self.user_vectors = user_vectors or model.user_vectors
            self.items_ND = model.item_vectors().float().to(self.device)
            self.items_PD = self.items_ND[torch.from_numpy(self.eligible).long().to(self.device)]

    def users(self, known: Histories) -> Tensor:
        """[B, D]"""
        return self.user_vectors(known).float().to(self.device)

    def by_popularity(self, users: int) -> Tensor:
        """[B, P], the same for all, to be masked in place."""
        return self.popularity_P.repeat(users, 1)


@dataclass(frozen=True)
class _Held:
    """A block's held-out events, one a (user, item): row [E], column [E] (-1: no train event), and what is masked."""

    row: Tensor
    column: Tensor
    counts: Tensor
    seen: tuple[Tensor, Tensor]
    strangers: Tensor


def _evaluate_block(scorer: _Scorer, block: Histories, segment: str, like: RankingSums, exclude_seen: bool) -> RankingSums:
    known = block.until(segment)
    held = _held(scorer, block.segment(segment), known, exclude_seen)
    popular = _lists(scorer.by_popularity(len(block)), held, max(like.ks))
    counts = dict.fromkeys(like.counts, 0.0)
    counts |= {"events": float(len(held.column)), "cold_events": float((held.column < 0).sum())}
    personal = popular
    if scorer.personal:
        users_BD = scorer.users(known)
        personal = _lists(users_BD @ scorer.items_PD.T, held, max(like.ks))
        if scorer.rates:
            counts |= _rating_errors(users_BD, scorer.items_ND, block.segment(segment))
    count = _Counter(scorer, held, like)
    return replace(
        like,
        known=count(personal, ~held.strangers),
        popularity=count(popular, ~held.strangers),
        strangers=count(popular, held.strangers),
        counts=counts,
    )


def _held(scorer: _Scorer, held: Histories, known: Histories, exclude_seen: bool) -> _Held:
    rows = np.repeat(np.arange(len(held)), held.lengths)
    row, item = np.unique(np.stack([rows, held.item]), axis=1)
    seen = scorer.column[known.item] if exclude_seen else np.zeros(0, np.int64)
    seen_row = np.repeat(np.arange(len(known)), known.lengths) if exclude_seen else np.zeros(0, np.int64)

    def tensor(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(scorer.device)

    return _Held(
        row=tensor(row),
        column=tensor(scorer.column[item]),
        counts=tensor(np.bincount(row, minlength=len(held))),
        seen=(tensor(seen_row[seen >= 0]), tensor(seen[seen >= 0])),
        strangers=tensor(known.valid_from == 0),
    )


def _lists(scores_BP: Tensor, held: _Held, k: int) -> Tensor:
    scores_BP[held.seen] = -torch.inf
    return top_lists(scores_BP, k)


class _Counter:
    """Turns a block's lists into sums."""

    def __init__(self, scorer: _Scorer, held: _Held, like: RankingSums) -> None:
        self.eligible = torch.from_numpy(scorer.eligible).long().to(scorer.device)
        self.held, self.ks, self.items = held, like.ks, len(scorer.column)

    def __call__(self, lists_BK: Tensor, users_B: Tensor) -> Tally:
        relevant_BK = self._relevant(lists_BK)[users_B]
        held_B, lists_BK = self.held.counts[users_B], lists_BK[users_B]
        sums = [[metric(relevant_BK[:, :k], held_B).sum() for k in self.ks] for metric in metrics.RANKING.values()]
        recommended = torch.stack([self._recommended(lists_BK[:, :k]) for k in self.ks])
        return Tally(len(held_B), torch.tensor(sums, dtype=torch.float64), recommended)

    def _relevant(self, lists_BK: Tensor) -> Tensor:
        # An item without a train event has column -1, and so has a place nobody fills: neither is a hit.
        hit_EK = (lists_BK[self.held.row] == self.held.column[:, None]) & (self.held.column >= 0)[:, None]
        event, place = hit_EK.nonzero(as_tuple=True)
        relevant_BK = torch.zeros_like(lists_BK, dtype=torch.bool)
        relevant_BK[self.held.row[event], place] = True
        return relevant_BK

    def _recommended(self, lists: Tensor) -> Tensor:
        return torch.bincount(self.eligible[lists[lists >= 0]], minlength=self.items).cpu()


def _rating_errors(users_BD: Tensor, items_ND: Tensor, held: Histories) -> dict[str, float]:
    row = torch.from_numpy(np.repeat(np.arange(len(held)), held.lengths)).to(users_BD.device)
    item = torch.from_numpy(held.item).long().to(users_BD.device)
    rating = torch.from_numpy(held.rating).to(users_BD.device)
    error = ((users_BD[row] * items_ND[item]).sum(1) - rating).double()
    return {"rated": float(len(error)), "squared": float(error.square().sum()), "absolute": float(error.abs().sum())}
