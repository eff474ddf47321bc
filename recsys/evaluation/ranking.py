"""Every held-out user against every item, in blocks, with popularity alongside in the same protocol.

A user's list is the K best by (-score, item): the Recommender's order, so both count the same hits.
Shapes: B users of a block, P eligible items, K places.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.data.histories import Histories
from recsys.data.negatives import StoredNegatives
from recsys.evaluation.candidates import Candidates
from recsys.evaluation.counting import Counter, Eligible, errors_of, held_events
from recsys.evaluation.sums import RankingSums, Tally, UserValues
from recsys.models.popularity import Popularity
from recsys.models.trend import Trend

# Scores held at once: 64 MB in float32.
BLOCK_SCORES = 1 << 24


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
    negatives: StoredNegatives | None = None,
    keep_users: bool = False,
    ranked: Candidates | None = None,
    trend: Trend | None = None,
) -> RankingSums:
    """Rank, for every user with events in `segment`, all items that have a train event, or those of `ranked`.

    model: a Model, or Popularity. segment: `valid` or `test`; what comes before it is known, and masked if `exclude_seen`.
    item_counts: [N] train events. batch_size: users at once; unset: as many as fit in 64 MB of scores.
    user_vectors: [B, D] for histories of known events only; unset: the model's own. Users the model never trained on
    (a split by user) need vectors folded in. negatives: the only items that held-out ones are ranked among, nothing masked;
    users without any are left out. keep_users: keep what each user's lists were worth (`RankingSums.users`).
    ranked: where these are cold items, what an order by chance is worth is counted too. trend: what strangers, and by
    `Popularity` all, are given, and personal scores lean to; popularity's line beside it is by all train events.
    """
    ranked = ranked or Candidates(item_counts > 0, "trained")
    scorer = _Scorer(model, item_counts, ranked, device, user_vectors, trend)
    sums = RankingSums.nothing(ks, len(scorer.eligible), len(item_counts))
    first, last = histories.bounds(segment)
    held = np.flatnonzero((last > first) & (True if negatives is None else negatives.has(histories.user)))
    step = batch_size or max(1, BLOCK_SCORES // max(len(scorer.eligible), 1))
    for start in range(0, len(held), step):
        block = histories.take(held[start : start + step])
        counted = _evaluate_block(scorer, block, segment, sums, exclude_seen, negatives)
        sums = sums + (counted if keep_users else replace(counted, kept=()))
    return sums


class _Scorer:
    """Scores of blocks of users over the eligible items, by the model and by popularity."""

    def __init__(
        self,
        model: Any,
        item_counts: NDArray[np.int64],
        ranked: Candidates,
        device: torch.device | None,
        user_vectors: Callable[[Histories], Tensor] | None,
        trend: Trend | None,
    ) -> None:
        self.eligible, self.cold = Eligible(ranked.eligible), ranked.kind == "cold"
        self.personal = not isinstance(model, Popularity)
        self.rates = bool(getattr(model, "rates", False))
        self.device = device or torch.device("cpu")
        self.popularity_P = self._in_order_of(item_counts)
        self.lately_P = None if trend is None else self._in_order_of(trend.lately)
        if self.personal:
            self.user_vectors = user_vectors or model.user_vectors
            self.items_ND = model.item_vectors().float().to(self.device)
            self.items_PD = self.items_ND[torch.from_numpy(self.eligible.items).to(self.device)]
            leaning = None if trend is None or not trend.weight else trend.leaning(item_counts)[self.eligible.items]
            self.leaning_P = None if leaning is None else torch.from_numpy(leaning).to(self.device)

    def users(self, known: Histories) -> Tensor:
        """[B, D]"""
        return self.user_vectors(known).float().to(self.device)

    def scores(self, users_BD: Tensor) -> Tensor:
        """[B, P], to be masked in place."""
        scores_BP: Tensor = users_BD @ self.items_PD.T
        return scores_BP if self.leaning_P is None else scores_BP.add_(self.leaning_P)

    def _in_order_of(self, counts: NDArray[Any]) -> Tensor:
        """[P] scores that rank by counts; cold items, of equal count, in the order of their numbers."""
        place = np.empty(len(self.eligible), np.float32)
        place[np.argsort(-counts[self.eligible.items], kind="stable")] = np.arange(len(place))
        return -torch.from_numpy(place).to(self.device)


def _evaluate_block(
    scorer: _Scorer,
    block: Histories,
    segment: str,
    like: RankingSums,
    exclude_seen: bool,
    negatives: StoredNegatives | None,
) -> RankingSums:
    known, scored = block.until(segment), block.segment(segment)
    held = held_events(
        scorer.eligible,
        scored,
        known,
        exclude_seen=exclude_seen,
        negatives=None if negatives is None else negatives.of(block.user),
        device=scorer.device,
    )
    popular = held.lists(scorer.popularity_P.repeat(len(block), 1), max(like.ks))
    current = popular if scorer.lately_P is None else held.lists(scorer.lately_P.repeat(len(block), 1), max(like.ks))
    counts = dict.fromkeys(like.counts, 0.0)
    counts |= {"events": float(len(held.column)), "cold_events": float((held.column < 0).sum())}
    personal, errors = current, np.zeros((3, 0))
    if scorer.personal:
        users_BD = scorer.users(known)
        personal = held.lists(scorer.scores(users_BD), max(like.ks))
        if scorer.rates:
            of_ratings, errors = _rating_errors(users_BD, scorer.items_ND, scored)
            counts |= of_ratings
    count = Counter(scorer.eligible, held, like.ks)
    if scorer.cold:
        counts |= count.by_chance(~held.strangers)
    known_tally, values = count(personal, ~held.strangers)
    popularity_tally, popularity_values = count(popular, ~held.strangers)
    return replace(
        like,
        known=known_tally,
        popularity=popularity_tally,
        strangers=count(current, held.strangers)[0],
        counts=counts,
        kept=(UserValues(values, popularity_values, errors),),
    )


def _rating_errors(users_BD: Tensor, items_ND: Tensor, held: Histories) -> tuple[dict[str, float], NDArray[np.float64]]:
    rows = np.repeat(np.arange(len(held)), held.lengths)
    row = torch.from_numpy(rows).to(users_BD.device)
    item = torch.from_numpy(held.item).long().to(users_BD.device)
    rating = torch.from_numpy(held.rating).to(users_BD.device)
    error = ((users_BD[row] * items_ND[item]).sum(1) - rating).double()
    sums = {"rated": float(len(error)), "squared": float(error.square().sum()), "absolute": float(error.abs().sum())}
    return sums, errors_of(rows, error.cpu().numpy(), len(held))


__all__ = ["BLOCK_SCORES", "RankingSums", "Tally", "evaluate"]
