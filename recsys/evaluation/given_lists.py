"""Lists that somebody else made, counted as `ranking.evaluate` counts its own.

Shapes: B users of a block, K places, N items.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.data.histories import Histories
from recsys.evaluation.counting import Counter, Eligible, errors_of, held_events
from recsys.evaluation.sums import RankingSums, UserValues

Items = NDArray[np.int32]


def judge(
    lists_BK: Items,
    popular_BK: Items,
    block: Histories,
    *,
    segment: str,
    eligible: Eligible,
    ks: Sequence[int],
    predicted: NDArray[np.float64] | None = None,
    exclude_seen: bool = False,
    cold: bool = False,
) -> RankingSums:
    """What lists of items are worth to users who all have events in `segment`, popularity's lists beside them.

    lists_BK, popular_BK: best first, -1 for no item. predicted: a rating for each event of the segment, user after user.
    cold: the eligible items have no train event, and what an order of them by chance is worth is counted too: of those that
    are not seen, if `exclude_seen`. Users without train events are counted among the strangers, by the lists they were given.
    """
    known, scored = block.until(segment), block.segment(segment)
    held = held_events(eligible, scored, known, exclude_seen=exclude_seen)
    like = RankingSums.nothing(ks, len(eligible), len(eligible.column))
    counts = like.counts | {"events": float(len(held.column)), "cold_events": float((held.column < 0).sum())}
    errors = np.zeros((3, 0))
    if predicted is not None:
        error = predicted - scored.rating
        counts |= {"rated": float(len(error)), "squared": float((error**2).sum()), "absolute": float(abs(error).sum())}
        errors = errors_of(np.repeat(np.arange(len(scored)), scored.lengths), error, len(scored))
    count, lists = Counter(eligible, held, ks), _columns(eligible, lists_BK)
    if cold:
        counts |= count.by_chance(~held.strangers)
    known_tally, values = count(lists, ~held.strangers)
    popularity_tally, popularity_values = count(_columns(eligible, popular_BK), ~held.strangers)
    return replace(
        like,
        known=known_tally,
        popularity=popularity_tally,
        strangers=count(lists, held.strangers)[0],
        counts=counts,
        kept=(UserValues(values, popularity_values, errors),),
    )


def _columns(eligible: Eligible, lists_BK: Items) -> Tensor:
    return torch.from_numpy(np.where(lists_BK >= 0, eligible.column[lists_BK], -1))
