"""Alternating least squares: an epoch solves for the items by the users, then for the users by the items.

A row x with events on vectors v is where Σ (x·v − 1)² + α xᵀGx + r|x|² is least, G = VᵀV over all vectors: the solution of
(αG + r + Σ vvᵀ) x = Σ v. Conjugate gradients (Hestenes & Stiefel 1952; for this problem Takács, Pilászy & Tikk, RecSys 2011)
solve it, begun from the row as it is, in the basis where G is diagonal: all but a row's own events is then a division, their
preconditioner, and a step costs what its events cost.

Users' rows are solved where they are owned. Of an item every worker sums the products with its own users, and these travel:
[D, D] for G, [N, D] to begin with and for each step, [N, D] at the end. Whoever has no events is zeros and has no say.

Shapes: R rows (of a block: B), C vectors held fixed, E events, D dimensions.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from recsys.training import collective
from recsys.training.sparse_events import Block, Rows, SparseEvents

# Steps for each row in an epoch: 3 come as far as solving exactly does (docs/log.md).
STEPS = 3
# At the end users' rows are solved until what is missing is this part of them, by the energy norm, or for so many steps.
TOLERANCE, MOST_STEPS = 1e-5, 100
# Numbers in a block of rows: what is kept for a step is a few times as much.
BLOCK_NUMBERS = 1 << 22

# Keeps a division by nothing from being one: rows that are solved stay as they are.
TINY = 1e-30

OnBlock = Callable[[], None]
Total = Callable[[Tensor], Tensor]


@torch.no_grad()
def train_epoch(model: Any, events: SparseEvents, on_block: OnBlock = lambda: None) -> tuple[float, int]:
    """One epoch, in place. All workers call it; on_block is called after each block of rows.

    Returns what `IALS` makes small, over all workers and divided by their events, and how many events there are.
    """
    model.user_table.data *= (events.of_users.counts > 0).to(model.user_table.device)[:, None]
    model.item_table.data *= model.trained[:, None]
    with exact_products():
        _solve_items(model, events.of_items, on_block)
        loss = _solve_users(model, events.of_users, on_block, STEPS)
    items = model.item_table.data
    told = torch.tensor([loss, len(events.of_users.column)], dtype=torch.float64, device=items.device)
    total, count = collective.sum_over_ranks(told).tolist()
    total += float((model.item_ridge[:, None] * items.square()).sum())
    return total / max(count, 1), int(count)


@torch.no_grad()
def settle_users(model: Any, events: SparseEvents, on_block: OnBlock = lambda: None) -> None:
    """Solve for the users' rows as exactly as a history is folded in: the last half-step before a model is used."""
    with exact_products():
        _solve_users(model, events.of_users, on_block, MOST_STEPS, TOLERANCE)


def blocks_of(model: Any) -> int:
    """How many blocks an epoch of this worker has."""
    return sum(len(list(row_blocks(*table.shape))) for table in (model.user_table, model.item_table))


def _solve_items(model: Any, rows: Rows, on_block: OnBlock) -> None:
    users, items = model.user_table.data, model.item_table.data
    gram = collective.sum_over_ranks(users.T @ users)
    # The first worker's: the others must rotate their users alike, to the sign.
    values, basis = (collective.from_first(part.contiguous()) for part in torch.linalg.eigh(gram.double()))
    _solve(model, items, users, rows, model.item_ridge, (values, basis), on_block, STEPS, total=collective.sum_over_ranks)
    collective.from_first(items)  # processors that round otherwise would drift apart


def _solve_users(model: Any, rows: Rows, on_block: OnBlock, steps: int, tolerance: float = 0.0) -> float:
    users, items = model.user_table.data, model.item_table.data
    spectrum, ridge_R = torch.linalg.eigh((items.T @ items).double()), model.user_ridge(rows.counts.to(users.device))
    return _solve(model, users, items, rows, ridge_R, spectrum, on_block, steps, tolerance)


def _solve(
    model: Any,
    table: Tensor,
    fixed: Tensor,
    rows: Rows,
    ridge_R: Tensor,
    spectrum: tuple[Tensor, Tensor],
    on_block: OnBlock,
    steps: int,
    tolerance: float = 0.0,
    total: Total = lambda tensor: tensor,
) -> float:
    """Solve for the rows of `table` by `fixed`, in place. spectrum: G's eigenvalues and eigenvectors.

    Returns the rows' part of the loss, by this worker's events.
    """
    values_D, basis = spectrum[0].clamp(min=0).to(table.dtype), spectrum[1].to(table.dtype)
    rotated_CD, loss = fixed @ basis, 0.0
    for first, last in row_blocks(*table.shape):
        diagonal_BD = model.weight * values_D + ridge_R[first:last, None]
        begun_BD, block = table[first:last] @ basis, rows.block(first, last)
        solved_BD, part = _conjugate_gradients(block, begun_BD, rotated_CD, diagonal_BD, total, steps, tolerance)
        table[first:last] = solved_BD @ basis.T
        loss += part
        on_block()
    return loss


def _conjugate_gradients(
    block: Block, x_BD: Tensor, fixed_CD: Tensor, diagonal_BD: Tensor, total: Total, steps: int, tolerance: float
) -> tuple[Tensor, float]:
    """The rows after so many steps, or fewer where none misses more than `tolerance`, and their loss."""
    miss_E = 1 - block.scores(x_BD, fixed_CD)
    loss = miss_E.double().square().sum() + (diagonal_BD * x_BD.square()).double().sum()
    residual_BD = total(block.sums(miss_E, fixed_CD)).addcmul_(diagonal_BD, x_BD, value=-1)
    direction_BD = residual_BD / diagonal_BD
    energy_B = (residual_BD * direction_BD).sum(1)
    for _ in range(steps):
        product_BD = total(block.sums(block.scores(direction_BD, fixed_CD), fixed_CD)).addcmul_(diagonal_BD, direction_BD)
        length_B = energy_B / (direction_BD * product_BD).sum(1).clamp_(min=TINY)
        x_BD = torch.addcmul(x_BD, length_B[:, None], direction_BD)
        loss -= (length_B * energy_B).double().sum()  # by what a step along a direction takes off a quadratic
        residual_BD.addcmul_(length_B[:, None], product_BD, value=-1)
        steepest_BD = residual_BD / diagonal_BD
        left_B = (residual_BD * steepest_BD).sum(1)
        if tolerance and bool((left_B <= tolerance**2 * (diagonal_BD * x_BD.square()).sum(1)).all()):
            break
        direction_BD = steepest_BD.addcmul_((left_B / energy_B.clamp(min=TINY))[:, None], direction_BD)
        energy_B = left_B
    return x_BD, float(loss)


def row_blocks(rows: int, width: int) -> Iterator[tuple[int, int]]:
    """[first, last) of so many rows at a time that they hold BLOCK_NUMBERS numbers."""
    most = max(1, BLOCK_NUMBERS // max(1, width))
    for first in range(0, rows, most):
        yield first, min(first + most, rows)


@contextmanager
def exact_products() -> Iterator[None]:
    """Without TF32, whose three digits are too few to be solved with."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
