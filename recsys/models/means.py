"""What a rating is by nothing but means: the line that every model of ratings must beat.

μ + b_i + b_u, b_i = Σ (r − μ) / (n_i + 10), then b_u = Σ (r − μ − b_i) / (n_u + 15) of the ratings that are known of a user
(Koren, ACM TKDD 2010; the two numbers are Surprise's).

Shapes: B users, N items.
"""

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.data.histories import Histories

ITEM_RIDGE, USER_RIDGE = 10.0, 15.0


class Means:
    """Two means as vectors, so that they are measured as models are. Nothing is trained."""

    rates: ClassVar[bool] = True
    known_user: ClassVar[str] = "history"

    def __init__(self, mean: float, sums: NDArray[np.float64], item_counts: NDArray[np.int64]) -> None:
        """mean: of all train ratings; sums: [N] of an item's train ratings, of which there are item_counts [N]."""
        self.mean = mean
        self.biases: NDArray[np.float64] = (sums - mean * item_counts) / (item_counts + ITEM_RIDGE)

    def item_vectors(self) -> Tensor:
        """[N, 2]"""
        return torch.from_numpy(np.stack([np.ones(len(self.biases)), self.biases], axis=1)).float()

    def user_vectors(self, histories: Histories) -> Tensor:
        """[B, 2]"""
        user = np.repeat(np.arange(len(histories)), histories.lengths)
        beyond = np.bincount(user, histories.rating - self.mean - self.biases[histories.item], minlength=len(histories))
        own = self.mean + beyond / (histories.lengths + USER_RIDGE)
        return torch.from_numpy(np.stack([own, np.ones(len(histories))], axis=1)).float()
