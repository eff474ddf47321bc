"""A worker's events in its memory, by user and by item, and the two products with vectors that least squares takes of them.

Shapes: R rows (of a block: B), C columns, E events, D dimensions.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


class Block:
    """Some rows' events. start: [B + 1] int32 into column [E] int32, both on the device; columns: how many there are."""

    def __init__(self, start: Tensor, column: Tensor, columns: int) -> None:
        self.start, self.column = start, column
        # Zeros, since what is there is multiplied with 0 and not left out.
        values, shape = torch.zeros(len(column), device=column.device), (len(start) - 1, columns)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            self.pattern = torch.sparse_csr_tensor(start, column, values, shape, check_invariants=False)

    def scores(self, rows_BD: Tensor, vectors_CD: Tensor) -> Tensor:
        """[E] row · vector of each event."""
        scores: Tensor = torch.sparse.sampled_addmm(self.pattern, rows_BD, vectors_CD.T, beta=0.0).values()
        return scores

    def sums(self, weight_E: Tensor, vectors_CD: Tensor) -> Tensor:
        """[B, D] Σ weight · vector over each row's events. PyTorch's sparse product is three times as slow on a CPU."""
        return F.embedding_bag(self.column, vectors_CD, self.start[:-1], mode="sum", per_sample_weights=weight_E)


@dataclass(frozen=True)
class Rows:
    """Compressed rows (CSR). offsets: [R + 1] int64, in memory; column: [E] int32 and, if learnt, rating [E], on the device."""

    offsets: Tensor
    column: Tensor
    columns: int
    rating: Tensor | None = None

    @property
    def counts(self) -> Tensor:
        """[R] events of each row."""
        return self.offsets.diff()

    def block(self, first: int, last: int) -> Block:
        """Rows [first, last)."""
        offsets = self.offsets[first : last + 1]
        start = (offsets - offsets[0]).to(self.column.device, torch.int32)
        return Block(start, self.column[int(offsets[0]) : int(offsets[-1])], self.columns)

    def rated(self, first: int, last: int) -> Tensor:
        """[E] the ratings of the rows [first, last)."""
        assert self.rating is not None, "of a model that does not learn ratings"
        return self.rating[int(self.offsets[first]) : int(self.offsets[last])]


@dataclass(frozen=True)
class SparseEvents:
    """The same events twice: items of each of the worker's users, and rows of its users for each item."""

    of_users: Rows
    of_items: Rows

    @classmethod
    def of(cls, parts: Iterable[tuple[NDArray[Any], ...]], items: int, device: torch.device) -> "SparseEvents":
        """parts: of users in the order of their rows, how many events each has, the items of these and, of a model that learns
        them, their ratings."""
        told = list(parts)
        counts = np.concatenate([np.zeros(0, np.int64), *(part[0] for part in told)])
        item = np.concatenate([np.zeros(0, np.int32), *(part[1] for part in told)])
        rated = all(len(part) > 2 for part in told)
        rating = np.concatenate([np.zeros(0, np.float32), *(part[2] for part in told)]) if rated else None
        user, order = np.repeat(np.arange(len(counts), dtype=np.int32), counts), np.argsort(item, kind="stable")
        return cls(
            _rows(counts, item, items, rating, device),
            _rows(
                np.bincount(item, minlength=items), user[order], len(counts), None if rating is None else rating[order], device
            ),
        )


def _rows(
    counts: NDArray[np.integer],
    column: NDArray[np.int32],
    columns: int,
    rating: NDArray[np.float32] | None,
    device: torch.device,
) -> Rows:
    offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]))
    ratings = None if rating is None else torch.from_numpy(rating).to(device)
    return Rows(offsets, torch.from_numpy(column).to(device), columns, ratings)
