"""Negatives of a step, shared by all its events on all workers."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.config import ModelConfig
from recsys.data.seeds import seed_of
from recsys.models.base import negatives_of
from recsys.training import collective


class Negatives:
    """Draws the N items that all events of a step are set against.

    uniform      items with a train event, alike. As many negatives as there are such items: all of them, once each.
    popularity   in proportion to their train events (Mikolov et al. 2013 take the power ¾ of it; with logQ, which takes
                 the proportion off again, the power matters little, and 1 is what a batch of positives is drawn by).
    in_batch     N of the positives of the step, over all workers together, so that the number of workers changes nothing.
                 Popular items are drawn as often as they are watched: logQ is what keeps them from being pushed down.

    The generator is seeded by (seed, epoch, step), so every rank draws the same without a message.
    """

    def __init__(self, config: ModelConfig, item_counts: NDArray[np.int64], seed: int) -> None:
        """item_counts: [items] train events of each."""
        self.trained = torch.from_numpy(np.flatnonzero(item_counts > 0))
        self.source, self.count, self.seed = config.negative_source, negatives_of(config, len(self.trained)), seed
        self.cumulative = torch.from_numpy(np.cumsum(item_counts[item_counts > 0]))

    def draw(self, epoch: int, step: int, positives: Tensor) -> Tensor:
        """[N] int64 on the device of `positives` ([B], this rank's); fewer where the step has fewer positives (in_batch)."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch, step))
        if self.source == "in_batch":
            return self._of_batch(positives, generator)
        return self.trained[self._places(generator)].to(positives.device, non_blocking=True)

    def _places(self, generator: torch.Generator) -> Tensor:
        if self.source == "popularity":
            events = torch.randint(int(self.cumulative[-1]), (self.count,), generator=generator)
            return torch.searchsorted(self.cumulative, events, right=True)
        if self.count >= len(self.trained):
            return torch.arange(len(self.trained))
        return torch.randint(len(self.trained), (self.count,), generator=generator)

    def _of_batch(self, positives: Tensor, generator: torch.Generator) -> Tensor:
        everyone = collective.concatenate(positives)
        chosen = torch.randperm(len(everyone), generator=generator)[: self.count]
        return everyone[chosen.to(everyone.device)]
