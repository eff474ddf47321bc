"""Which users' rows a worker holds: ranges of user numbers, and where in his table a user's row is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class UserRanges:
    """Ranges [first, last) of user numbers, ascending and apart; a table's rows follow them in this order."""

    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, ranges: Sequence[tuple[int, int]]) -> "UserRanges":
        """In ascending order, empty ones left out. Neighbours stay apart: each range is begun by a seed of its own."""
        return cls(tuple(sorted((first, last) for first, last in ranges if last > first)))

    def __len__(self) -> int:
        return sum(last - first for first, last in self.ranges)

    def parts(self) -> Iterator[tuple[int, int, slice]]:
        """Each range with the rows it has in the table."""
        row = 0
        for first, last in self.ranges:
            yield first, last, slice(row, row + last - first)
            row += last - first


class RowOfUser(nn.Module):
    """[B] user numbers → [B] rows of the table of the ranges. Users outside of them have no row; they must not be asked for."""

    firsts: Tensor
    shifts: Tensor

    def __init__(self, owned: UserRanges) -> None:
        super().__init__()
        parts = list(owned.parts())
        self.register_buffer("firsts", torch.tensor([first for first, _, _ in parts], dtype=torch.int64), persistent=False)
        shifts = [first - rows.start for first, _, rows in parts]
        self.register_buffer("shifts", torch.tensor(shifts, dtype=torch.int64), persistent=False)
        self.is_shifted = any(shifts)

    def forward(self, user: Tensor) -> Tensor:
        """int64 in, int64 out, on one device."""
        if not self.is_shifted:
            return user
        rows: Tensor = user - self.shifts[torch.searchsorted(self.firsts, user, right=True) - 1]
        return rows
