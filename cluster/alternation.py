"""A worker's part of a model that learns by whole passes over its events: these in memory, and its epochs."""

import time
from collections.abc import Iterator
from itertools import count
from typing import Any

from numpy.typing import NDArray

from cluster import reading
from cluster.keeper import Keeper
from cluster.share import Share
from recsys.data import schema
from recsys.errors import RecsysError
from recsys.training import passes
from recsys.training.checkpoint import TrainState
from recsys.training.loop import bare
from recsys.training.machine import memory
from recsys.training.sparse_events import SparseEvents
from recsys.training.utilisation import Utilisation

# An event's two places, and what turning the order of users into that of items takes meanwhile.
EVENT_BYTES = 32
# Twice, where it is learnt.
RATING_BYTES = 4
# Of a host's free memory, where cluster.hold_bytes is not set: the vectors have theirs already.
SHARE_OF_MEMORY = 0.5


def train(share: Share, state: TrainState, keeper: Keeper) -> dict[str, Any]:
    """One epoch. Returns its row for metrics.jsonl, without validation."""
    model, events = bare(state.model), events_of(share)
    busy, steps, began = Utilisation(share.hardware), count(), time.perf_counter()
    blocks = passes.blocks_of(model, events)
    keeper.begin_whole(blocks, busy)
    seed = share.config.train.seed
    loss, trained = passes.train_epoch(model, events, state.epoch, seed, lambda: keeper.word(next(steps)))
    share.hardware.wait()
    seconds = time.perf_counter() - began
    return {
        "epoch": state.epoch + 1,
        "loss": loss,
        "events": trained,
        "steps": blocks,
        "seconds": seconds,
        "events_per_second": trained / seconds,
        "read_from": "memory",
        "utilisation": busy.share(),
        "peak_bytes": share.peak_bytes(),
        "workers": share.world,
        "precision": "fp32",
    }


def settle(share: Share, model: Any) -> None:
    """Users' rows as they would be folded in, before the model is measured and saved."""
    passes.settle_users(model, events_of(share), share.alive)


def events_of(share: Share) -> SparseEvents:
    """What the worker's users watched, read once. Raises RecsysError where that does not fit in memory."""
    if share.events is None:
        _refuse_too_many(share)
        share.events = SparseEvents.of(_read(share), share.manifest.items, share.hardware.device)
    return share.events


def _read(share: Share) -> Iterator[tuple[NDArray[Any], ...]]:
    """Train events, with ratings where they are learnt, users in the order of the table's rows; none of held-out users."""
    for file in sorted(share.files, key=lambda file: file.first_user):
        trains = file.role in (schema.ALL, schema.TRAIN)
        for histories in reading.stream_histories(share.task.dataset, file, share.task.border):
            known = histories.segment(schema.TRAIN)
            events = (known.item, known.rating) if _rates(share) else (known.item,)
            yield known.lengths * trains, *(column if trains else column[:0] for column in events)
            share.alive()


def _rates(share: Share) -> bool:
    return share.config.model.loss == "mse"


def _refuse_too_many(share: Share) -> None:
    limit = share.config.cluster.hold_bytes
    if limit is None:
        limit = int(memory().free * SHARE_OF_MEMORY / share.workers_on_host)
    events, each = sum(file.train_events for file in share.files), EVENT_BYTES + 2 * RATING_BYTES * _rates(share)
    if events * each > limit:
        raise RecsysError(
            f"{share.task.dataset}: {events:,} events of rank {share.rank} take {events * each:,} bytes, and it may "
            f"hold {limit:,}. {share.config.model.name} learns from memory alone: take more workers on more hosts "
            "(cluster.num_workers), or set cluster.hold_bytes higher."
        )
