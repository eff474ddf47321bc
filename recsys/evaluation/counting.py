"""From lists and held-out events to what the lists were worth.

Shapes: B users of a block, P eligible items, K places, E held-out events of the block, M metrics.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.data.histories import Histories
from recsys.evaluation import chance, metrics
from recsys.evaluation.lists import top_lists
from recsys.evaluation.sums import Tally

Pairs = tuple[NDArray[np.int64], NDArray[np.int32]]


class Eligible:
    """Items that lists are made of. items: [P], ascending; column: [N] place among them, or -1."""

    def __init__(self, eligible: NDArray[Any]) -> None:
        """eligible: [N] whether an item is, or how many train events it has."""
        self.items = np.flatnonzero(eligible > 0)
        self.column = np.full(len(eligible), -1)
        self.column[self.items] = np.arange(len(self.items))

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True)
class Held:
    """A block's held-out events, one a (user, item): row [E], column [E] (-1: not eligible); counts: [B].

    seen: rows and columns that are left out of lists; only: rows and columns that lists are made of, None for all others.
    """

    row: Tensor
    column: Tensor
    counts: Tensor
    strangers: Tensor
    seen: tuple[Tensor, Tensor]
    only: tuple[Tensor, Tensor] | None = None

    def lists(self, scores_BP: Tensor, k: int) -> Tensor:
        """[B, K] columns of the best that may be listed; overwrites the scores."""
        if self.only is None:
            scores_BP[self.seen] = -torch.inf
            return top_lists(scores_BP, k)
        chosen_BP = torch.full_like(scores_BP, -torch.inf)
        chosen_BP[self.only] = scores_BP[self.only]
        return top_lists(chosen_BP, k)


def held_events(
    eligible: Eligible,
    held: Histories,
    known: Histories,
    *,
    exclude_seen: bool,
    negatives: Pairs | None = None,
    device: torch.device | None = None,
) -> Held:
    """What is held out of a block, and which items may be listed. held, known: the events scored and those before them.

    negatives: (row, item), among which alone the held-out items are ranked, whatever was seen.
    """
    rows = np.repeat(np.arange(len(held)), held.lengths)
    row, item = np.unique(np.stack([rows, held.item]), axis=1)

    def pairs(rows: NDArray[np.int64], items: NDArray[Any]) -> tuple[Tensor, Tensor]:
        columns = eligible.column[items]
        return tensor(rows[columns >= 0]), tensor(columns[columns >= 0])

    def tensor(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(device or torch.device("cpu"))

    hidden = known if exclude_seen else known.take(np.zeros(0, np.int64))
    return Held(
        row=tensor(row),
        column=tensor(eligible.column[item]),
        counts=tensor(np.bincount(row, minlength=len(held))),
        strangers=tensor(known.valid_from == 0),
        seen=pairs(np.repeat(np.arange(len(hidden)), hidden.lengths), hidden.item),
        only=None
        if negatives is None
        else pairs(np.concatenate([row, negatives[0]]), np.concatenate([item.astype(np.int32), negatives[1]])),
    )


class Counter:
    """Turns a block's lists into sums, and into each user's measures."""

    def __init__(self, eligible: Eligible, held: Held, ks: Sequence[int]) -> None:
        self.eligible = torch.from_numpy(eligible.items).to(held.row.device)
        self.held, self.ks, self.items = held, ks, len(eligible.column)

    def __call__(self, lists_BK: Tensor, users_B: Tensor) -> tuple[Tally, NDArray[np.float64]]:
        """The sums over some of the users (bool), and [M, K, those users]. lists_BK: columns, -1 for no item."""
        relevant_BK = self._relevant(lists_BK)[users_B]
        held_B, lists_BK = self.held.counts[users_B], lists_BK[users_B]
        values = [[metric(relevant_BK[:, :k], held_B) for k in self.ks] for metric in metrics.RANKING.values()]
        sums = torch.tensor([[value.sum() for value in of_metric] for of_metric in values], dtype=torch.float64)
        recommended = torch.stack([self._recommended(lists_BK[:, :k]) for k in self.ks])
        each = torch.stack([torch.stack(of_metric) for of_metric in values]).cpu().numpy()
        return Tally(len(held_B), sums, recommended), each

    def by_chance(self, users_B: Tensor) -> dict[str, float]:
        """What orders by chance are worth to some of the users on average, summed over them, as `random metric@k`."""
        row, column = self.held.seen
        seen_B = torch.bincount(torch.unique(row * len(self.eligible) + column) // len(self.eligible), minlength=len(users_B))
        relevant_B = torch.bincount(self.held.row[self.held.column >= 0], minlength=len(users_B))
        counted = (len(self.eligible) - seen_B, relevant_B, self.held.counts)
        items, relevant, held = (each[users_B].cpu().numpy() for each in counted)
        expected_MK = chance.expected(items, relevant, held, self.ks).sum(2)
        return {
            chance.name_of(metric, k): float(expected_MK[row, column])
            for row, metric in enumerate(metrics.RANKING)
            for column, k in enumerate(self.ks)
        }

    def _relevant(self, lists_BK: Tensor) -> Tensor:
        # An item that is not eligible has column -1, and so has a place nobody fills: neither is a hit.
        hit_EK = (lists_BK[self.held.row] == self.held.column[:, None]) & (self.held.column >= 0)[:, None]
        event, place = hit_EK.nonzero(as_tuple=True)
        relevant_BK = torch.zeros_like(lists_BK, dtype=torch.bool)
        relevant_BK[self.held.row[event], place] = True
        return relevant_BK

    def _recommended(self, lists: Tensor) -> Tensor:
        return torch.bincount(self.eligible[lists[lists >= 0]], minlength=self.items).cpu()


def errors_of(row: NDArray[np.int64], error: NDArray[np.float64], users: int) -> NDArray[np.float64]:
    """[3, users]: squared and absolute errors and how many, by row; users without any are left out."""
    summed = [np.bincount(row, weights, minlength=users) for weights in (error**2, abs(error), np.ones(len(row)))]
    each: NDArray[np.float64] = np.stack(summed).astype(np.float64)
    return each[:, each[2] > 0]
