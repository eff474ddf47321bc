"""Tables updated row by row: a step reads and writes the rows it touched, never the whole table.

Shapes: T touched rows with repetitions, R of them distinct, W columns.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from recsys.training import collective


def sum_duplicates(rows_T: Tensor, values_TW: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct rows, ascending, and the sum of each one's values, added in their order, hence always the same bits.

    Sort and embedding_bag: as fast as `index_add_` after `unique`, and deterministic on a GPU as well.
    """
    ordered_T, order_T = torch.sort(rows_T, stable=True)
    distinct_R, counts_R = torch.unique_consecutive(ordered_T, return_counts=True)
    starts_R = counts_R.cumsum(0) - counts_R
    return distinct_R, F.embedding_bag(order_T, values_TW, starts_R, mode="sum")


def exchange(tables: dict[str, nn.Parameter]) -> None:
    """Turn each table's sparse gradient into distinct rows, and give every worker the sum of all workers' item rows.

    User rows stay at home: only the worker that owns a user's shard ever touches his row.
    Ids and values travel in rank order and are summed in that order everywhere, so parameters stay equal bit for bit.
    """
    for name, table in tables.items():
        assert table.grad is not None, f"no gradient reached the table {name!r}"
        rows, values = sum_duplicates(table.grad._indices()[0], table.grad._values())
        if name != "user" and collective.world_size() > 1:
            rows, values = sum_duplicates(collective.concatenate(rows), collective.concatenate(values))
        table.grad = torch.sparse_coo_tensor(rows[None], values, table.shape, check_invariants=False, is_coalesced=True)


def row_gradient(table: Tensor) -> tuple[Tensor, Tensor]:
    """(distinct rows [R], their gradients [R, W]) after `exchange`; the gradients may be changed in place."""
    assert table.grad is not None
    return table.grad._indices()[0], table.grad._values()


class RowOptimizer(Optimizer):
    """Updates only touched rows. State is as large as the tables, made at once so that a checkpoint always has it."""

    def __init__(self, tables: Iterable[nn.Parameter], learning_rate: float) -> None:
        super().__init__(list(tables), {"lr": learning_rate})
        for group in self.param_groups:
            for table in group["params"]:
                self.state[table] = self.initial_state(table)

    def initial_state(self, table: Tensor) -> dict[str, Any]:
        """Tensors of the table's shape, and numbers."""
        raise NotImplementedError

    def change(self, state: dict[str, Any], rows: Tensor, gradient: Tensor) -> Tensor:
        """[R, W] to be taken off the rows, times the learning rate."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients left by `exchange`."""
        for group in self.param_groups:
            for table in group["params"]:
                rows, gradient = row_gradient(table)
                change = self.change(self.state[table], rows, gradient)
                # The rows are distinct; index_add_ goes one by one on a CPU, and takes three times as long.
                table.index_copy_(0, rows, table[rows].sub_(change, alpha=group["lr"]))


class RowAdam(RowOptimizer):
    """Adam (Kingma & Ba 2015) whose moments fade only when their row is touched, as in torch.optim.SparseAdam."""

    betas, epsilon = (0.9, 0.999), 1e-8

    def initial_state(self, table: Tensor) -> dict[str, Any]:
        """First and second moments, and the number of steps."""
        return {"step": 0, "first": torch.zeros_like(table), "second": torch.zeros_like(table)}

    def change(self, state: dict[str, Any], rows: Tensor, gradient: Tensor) -> Tensor:
        """first / √second, both corrected for having begun at zero."""
        state["step"] += 1
        fade_first, fade_second = self.betas
        first = state["first"][rows].lerp_(gradient, 1 - fade_first)
        second = state["second"][rows].mul_(fade_second).addcmul_(gradient, gradient, value=1 - fade_second)
        state["first"].index_copy_(0, rows, first)
        state["second"].index_copy_(0, rows, second)
        correction_first, correction_second = (1 - beta ** state["step"] for beta in self.betas)
        change: Tensor = first.mul_(correction_second**0.5 / correction_first).div_(second.sqrt_().add_(self.epsilon))
        return change


class RowAdagrad(RowOptimizer):
    """Adagrad (Duchi et al. 2011): steps shrink with the gradients a coordinate has seen."""

    epsilon = 1e-10

    def initial_state(self, table: Tensor) -> dict[str, Any]:
        """Sums of squared gradients."""
        return {"squares": torch.zeros_like(table)}

    def change(self, state: dict[str, Any], rows: Tensor, gradient: Tensor) -> Tensor:
        """gradient / √(sum of squares)."""
        squares = state["squares"][rows].addcmul_(gradient, gradient)
        state["squares"].index_copy_(0, rows, squares)
        change: Tensor = gradient / squares.sqrt_().add_(self.epsilon)
        return change


ROW_OPTIMIZERS: dict[str, type[RowOptimizer]] = {"adam": RowAdam, "adagrad": RowAdagrad}
