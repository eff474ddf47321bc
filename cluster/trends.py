"""Whether what is watched moves with time, and how far lists should follow: chosen on validation, by all workers alike.

The half-life is the one whose popular list is best, the weight the one that is best for the model's own lists. Either is
taken only where users gain more than chance would have it.

Shapes: U validation users of this worker, N items.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cluster import reading
from cluster.measuring import Measures, every_nth
from recsys.data import schema
from recsys.data.recent import HALF_LIVES, RecentCounts
from recsys.evaluation import metrics
from recsys.models import Popularity
from recsys.models.trend import Trend
from recsys.training import collective

# Standard errors of the mean gain: several are tried, and the best of them taken.
SURE = 3.0
LEAST = 10  # users, of whom something can be said

# Users that are asked, of all workers together, or a few more: a gain that these do not show is none to have.
ASKED = 20_000

# Times how far a user's scores lie apart, from item to item: the gain is flat, so that a few will do.
WEIGHTS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
SPREAD_USERS = 64  # of the first row group of each file

Floats = NDArray[np.float64]


def choose(share: Measures, model: Any) -> tuple[Trend | None, dict[str, Any] | None]:
    """What the lists of a finished model should follow, and what result.json tells of it: None where nothing moves, there are
    no times, or nothing is held out to choose by and no setting says it."""
    config = share.config.model
    days, weight, personal = config.trend_days, config.trend_weight, not isinstance(model, Popularity)
    if not share.manifest.has_time or config.loss == "mse" or days == 0 or (days is None and not share.validates):
        return None, None
    search = _Search(share, HALF_LIVES if days is None else (days,))
    days = search.half_life() if days is None else days
    if days is None:
        return None, None
    trend = Trend(days, 0.0, search.lately(days))
    if personal and (weight is not None or share.validates):
        trend = replace(trend, weight=search.weight(model, trend) if weight is None else weight)
    return trend, {"half_life_days": days, "weight": trend.weight, "metric": search.metric, "tried": search.tried}


class _Search:
    """tried: what the metric came to on validation, by what made the lists."""

    def __init__(self, share: Measures, half_lives: tuple[float, ...]) -> None:
        self.share, self.counts = share, share.item_counts
        self.recent = _counted(share, half_lives)
        name = share.config.train.metric.partition("@")[0]
        self.metric = share.config.train.metric if name in metrics.RANKING else f"ndcg@{share.config.train.metric_ks[0]}"
        self.tried: dict[str, float] = {}

    def lately(self, days: float) -> NDArray[np.float32]:
        """[N]"""
        return self.recent.lately(days, self.counts)

    def half_life(self) -> float | None:
        """Of the popular list that is best."""
        popular = Popularity(self.counts)
        before = self._worth("popularity", popular, None)
        worth = {d: self._worth(f"popularity, {d:g} days", popular, Trend(d, 0.0, self.lately(d))) for d in HALF_LIVES}
        return _best(before, worth)

    def weight(self, model: Any, trend: Trend) -> float:
        """Of the trend in the model's scores; 0 where it does not help."""
        name, scale = self.share.config.model.name, spread(self.share, model)
        before = self._worth(name, model, trend)
        worth = {
            times * scale: self._worth(f"{name}, weight {times * scale:.3g}", model, replace(trend, weight=times * scale))
            for times in WEIGHTS
        }
        return _best(before, worth) or 0.0

    def _worth(self, name: str, model: Any, trend: Trend | None) -> Floats:
        """[U] of each user's list."""
        every = every_nth(self.share.manifest, ASKED)
        sums = self.share.evaluate(model, schema.VALID, trend=trend, every=every, keep_users=True)
        self.tried[name] = sums.metrics()[self.metric]
        metric, _, k = self.metric.partition("@")
        worth: Floats = sums.users().model[list(metrics.RANKING).index(metric), sums.ks.index(int(k))]
        return worth


def _best(before: Floats, worth: dict[float, Floats]) -> float | None:
    """Whichever users gain most by on average, if that is more than chance."""
    gains = {what: _gain(each - before) for what, each in worth.items()}
    best = max(gains, key=lambda what: gains[what][0])
    mean, error = gains[best]
    return best if mean > SURE * error else None


def _gain(gains: Floats) -> tuple[float, float]:
    """Mean over all workers' users, and its standard error, of which so few say nothing that it is infinite."""
    told = torch.tensor([float(len(gains)), gains.sum(), (gains**2).sum()], dtype=torch.float64)
    users, total, squares = collective.sum_over_ranks(told).tolist()
    if users < LEAST:
        return total / max(users, 1.0), math.inf
    mean = total / users
    return mean, (max(squares / users - mean**2, 0.0) / (users - 1)) ** 0.5


def _counted(share: Measures, half_lives: tuple[float, ...]) -> RecentCounts:
    """Over all workers."""
    counted = RecentCounts(share.manifest.items, half_lives)
    for _ in reading.add_recent(counted, share.dataset, share.files, share.border):
        share.alive()
    newest = collective.concatenate(torch.tensor([counted.newest], dtype=torch.float64)).max()
    counted.move_to(float(newest))
    counted.counts = collective.sum_over_ranks(torch.from_numpy(counted.counts)).numpy()
    return counted


def spread(share: Measures, model: Any) -> float:
    """How far scores of one user lie apart from item to item (standard deviation), on average over some users."""
    told = torch.zeros(2, dtype=torch.float64)
    items_ND = model.item_vectors().float()[torch.from_numpy(share.item_counts > 0)]
    for file in share.files:
        for histories in reading.stream_histories(share.dataset, file) if file.train_events else ():
            known = histories.until(schema.VALID)
            some = known.take(np.flatnonzero(known.lengths)[:SPREAD_USERS])
            if len(some):
                scores_BN = model.user_vectors(some).float() @ items_ND.T
                told += torch.stack([scores_BN.std(dim=1).double().sum().cpu(), torch.tensor(float(len(some)))])
            break
    total, users = collective.sum_over_ranks(told).tolist()
    return float(total / max(users, 1.0))
