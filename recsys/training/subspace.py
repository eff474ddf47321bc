"""The leading right singular vectors of all events, by subspace iteration: an epoch is one pass, Q ← orthonormal(AᵀAQ).

A is users × items, with the weight of the user times the weight of the item where there is an event (`recsys.models.spectral`).
Begun at random (Halko, Martinsson & Tropp, SIAM Review 2011), or where an earlier run has come. Two or three passes are enough.

A user's row of AQ is made where his events are. Of an item every worker sums the products with its own users, and these travel:
[N, D] a pass. The first worker's Q is then everybody's.

Shapes: U users of this worker, N items, R rows, C columns, D dimensions.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from recsys.training import collective
from recsys.training.alternating import OnBlock, exact_products, row_blocks
from recsys.training.sparse_events import Rows, SparseEvents

# Columns whose lengths are this near 1 are taken for those of an earlier pass.
NEAR_ONE = 1e-4


@torch.no_grad()
def train_epoch(model: Any, events: SparseEvents, on_block: OnBlock = lambda: None) -> tuple[float, int]:
    """One pass, in place. All workers call it; on_block is called after each block of rows.

    Returns the share of A's squares that the space held before the pass, taken from 1, and how many events there are.
    """
    table, users, items = model.item_table, events.of_users, events.of_items
    user_U1 = model.evened(users.counts.to(table.device))[:, None]
    item_N1 = (model.evened(model.item_counts) * model.trained)[:, None]
    with exact_products():
        begun_ND = _begun(table.data * model.trained[:, None])
        projected_UD = _sums(users, begun_ND * item_N1, on_block) * user_U1
        summed_ND = collective.sum_over_ranks(_sums(items, projected_UD * user_U1, on_block)) * item_N1
        # Processors that round otherwise would drift apart.
        table.data.copy_(collective.from_first(_orthonormal(summed_ND)))
    squares_U1 = _sums(users, item_N1.square()) * user_U1.square()
    held, whole = projected_UD.double().square().sum(), squares_U1.double().sum()
    told = torch.stack([held, whole, held.new_tensor(len(users.column))])
    held_share, all_squares, count = collective.sum_over_ranks(told).tolist()
    return 1 - held_share / max(all_squares, 1e-30), int(count)


def blocks_of(model: Any, events: SparseEvents) -> int:
    """How many blocks a pass of this worker has."""
    width = model.item_table.shape[1]
    return sum(len(list(row_blocks(len(rows.counts), width))) for rows in (events.of_users, events.of_items))


def _sums(rows: Rows, fixed_CD: Tensor, on_block: OnBlock = lambda: None) -> Tensor:
    """[R, D] for each row the sum of `fixed` over its events."""
    summed_RD = fixed_CD.new_empty(len(rows.counts), fixed_CD.shape[1])
    for first, last in row_blocks(*summed_RD.shape):
        block = rows.block(first, last)
        summed_RD[first:last] = block.sums(fixed_CD.new_ones(len(block.column)), fixed_CD)
        on_block()
    return summed_RD


def _begun(columns_ND: Tensor) -> Tensor:
    """Orthonormal. What a pass left is so already, and the product that would make sure costs as much as half a pass."""
    if bool(((torch.linalg.vector_norm(columns_ND, dim=0) - 1).abs() < NEAR_ONE).all()):
        return columns_ND
    return _orthonormal(columns_ND)


def _orthonormal(columns_ND: Tensor) -> Tensor:
    """Of the same span; columns beyond what a small catalogue has room for are zeros."""
    found = torch.linalg.qr(columns_ND)[0]
    return F.pad(found, (0, columns_ND.shape[1] - found.shape[1])).contiguous()
