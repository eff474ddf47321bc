"""How far a mean over users may be off: bootstrap intervals, of differences between two lists of the same users too.

Poisson bootstrap: each resample weights every user by a count drawn from Poisson(1), in place of drawing as many users with
replacement (Hanley & MacGibbon 2006, Creating non-parametric bootstrap samples using Poisson frequencies; Chamandy et al.
2012, Estimating uncertainty for massive data streams). So users can be taken in blocks, and memory does not grow with them.
Intervals are percentiles of the resampled means (Efron 1979).

Shapes: R resamples, C measures of each user, U users.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 1000
LEVEL = 0.95
BLOCK = 4096  # users whose weights are held at once: 32 MB


@dataclass(frozen=True)
class Resampled:
    """Sums over users: true [C] as they are, and drawn [R, C] of each resample, with how many users: count, counts [R]."""

    true: Floats
    drawn: Floats
    count: float
    counts: Floats

    def interval(self, measure: Callable[[Floats, Floats], Floats]) -> Floats:
        """[2, …]: where 95% of the resampled measures lie. measure: of sums [R, C] and users [R, 1], e.g. their ratio.

        Resamples that drew nobody, as happens where there are hardly any users, measure nothing and are left out.
        """
        tail = (1 - LEVEL) / 2
        some = self.counts > 0 if self.count else np.ones(len(self.counts), bool)
        found: Floats = np.quantile(measure(self.drawn[some], self.counts[some, None]), [tail, 1 - tail], axis=0)
        return found

    def means(self) -> tuple[Floats, Floats]:
        """[C] means over users, and their intervals [2, C]."""
        return self.true / max(self.count, 1), self.interval(lambda sums, users: sums / np.maximum(users, 1))


def resample(values_CU: Floats, *, seed: int, resamples: int = RESAMPLES) -> Resampled:
    """Bootstrap the sums of some measures of the same users. Differences are measures too: of pairs, by the same weights."""
    rng = np.random.default_rng(seed)
    measures, users = values_CU.shape
    drawn, counts = np.zeros((resamples, measures)), np.zeros(resamples)
    for start in range(0, users, BLOCK):
        block_CB = values_CU[:, start : start + BLOCK]
        weights_RB = rng.poisson(1.0, (resamples, block_CB.shape[1])).astype(np.float64)
        drawn += weights_RB @ block_CB.T
        counts += weights_RB.sum(1)
    return Resampled(values_CU.sum(1), drawn, float(users), counts)
