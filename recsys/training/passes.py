"""Models that learn by whole passes over their events, as `Model.learns` says: what a pass is."""

from typing import Any

from recsys.training import alternating, sampling, subspace
from recsys.training.alternating import OnBlock
from recsys.training.sparse_events import SparseEvents


def train_epoch(model: Any, events: SparseEvents, epoch: int, seed: int, on_block: OnBlock = lambda: None) -> tuple[float, int]:
    """One epoch, in place. All workers call it; on_block is called after each block of rows. (epoch, seed): of what is drawn.

    Returns the loss and how many events there are, over all workers.
    """
    if model.learns == "sampling":
        return sampling.train_epoch(model, events, epoch, seed, on_block)
    if model.learns == "subspace":
        return subspace.train_epoch(model, events, on_block)
    return alternating.train_epoch(model, events, on_block)


def settle_users(model: Any, events: SparseEvents, on_block: OnBlock = lambda: None) -> None:
    """Users' rows as they would be folded in, the last thing before a model is used. Means of draws stay as they are."""
    if model.learns == "alternating":
        alternating.settle_users(model, events, on_block)


def blocks_of(model: Any, events: SparseEvents) -> int:
    """How often on_block is called in an epoch of this worker."""
    if model.learns == "sampling":
        return sampling.blocks_of(model)
    if model.learns == "subspace":
        return subspace.blocks_of(model, events)
    return alternating.blocks_of(model)
