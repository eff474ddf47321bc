"""The learning core without Ray, an epoch at a time: what benchmarks set against peers.

The same files, plan, loop and micro-batch as `recsys train` with one worker; nothing is written.
"""

import os
from collections.abc import Iterator
from typing import Any

import torch
from held_out import HeldOut
from plain_training import batches, catalogue_of, planned

from cluster.held import HeldShards, ahead_room
from cluster.ingest import history_batches, history_parts
from recsys.config import Config, settled
from recsys.data import schema
from recsys.data.histories import Histories
from recsys.data.plan import Plan, step_sizes
from recsys.evaluation.sums import RankingSums
from recsys.models import MODELS, build
from recsys.models.base import negatives_of
from recsys.training import checkpoint, hardware, micro_batch
from recsys.training.averaging import averaged
from recsys.training.loop import EpochStats, train_epoch
from recsys.training.machine import memory
from recsys.training.micro_batch import MicroBatch
from recsys.training.negatives import Negatives
from recsys.training.trial import random_pairs, random_sequences, try_gradients


class Ours:
    """A model in training on a dataset that fits in memory."""

    def __init__(self, data: HeldOut, config: Config) -> None:
        manifest = data.manifest
        self.data, self.config = data, (config := settled(config, manifest.users, manifest.items, manifest.events))
        self.hardware = hardware.choose(config.train)
        self.catalogue = catalogue_of(data.dataset, manifest)
        self.model = build(config.model, self.catalogue, config.train.seed)
        self.of_users = MODELS[config.model.name].batch is Histories
        self.state = checkpoint.start(self.model, config, manifest.fingerprint, self.hardware)
        self.state.micro_batch = MicroBatch(config.train.micro_batch or self._search_micro_batch())
        readers = config.cluster.readers_on(os.cpu_count() or 1)
        self.held = HeldShards(
            data.dataset / schema.USERS_FOLDER,
            manifest.user_files,
            manifest.user_files,
            readers=readers,
            prefetch=config.cluster.prefetch_on(readers, ahead_room(memory().free, None, 1)),
            whole_rows=self.of_users,
        )

    def epoch(self) -> dict[str, float]:
        """Train one more: its seconds, reading and shuffling included, and its events."""
        config, state = self.config, self.state
        stats: EpochStats = train_epoch(
            self.model,
            self._batches(planned(state.epoch, self.data.manifest, config)),
            state.optimizers,
            hardware=self.hardware,
            scaler=state.scaler,
            negatives=Negatives(config.model, self.catalogue.item_counts, config.train.seed),
            clip_norm=config.train.clip_norm,
            epoch=state.epoch,
            micro_batch=state.micro_batch,
            seed=config.train.seed,
        )
        return {"seconds": stats.seconds, "events": stats.events}

    def validate(self) -> dict[str, float]:
        """On validation events; the best epoch's weights are kept, and the learning rate falls where they get no better."""
        with averaged(self.state.optimizers):
            metrics = self.data.rank(self.model, schema.VALID).metrics()
        self.state.finish_epoch(metrics)
        return metrics

    def keep(self) -> None:
        """`validate` did."""

    def test(self) -> RankingSums:
        """The best epoch's. Nothing can be trained after it."""
        self.state.restore_best()
        return self.data.rank(self.model, schema.TEST)

    def close(self) -> None:
        """Nothing to end."""

    def described(self) -> dict[str, Any]:
        """What it computes with."""
        events = self.state.micro_batch.events
        return {"precision": self.hardware.precision, "threads": self.hardware.threads, "micro_batch": events}

    def _batches(self, plan: Plan) -> Iterator[Any]:
        if not self.of_users:
            return batches(self.held, plan, self.config.train.batch_size)
        sizes = step_sizes(plan.amounts(of_rows=True), 0, self.config.train.batch_size)
        return history_batches(history_parts(iter(self.held.macro_batches(plan.ranks[0]))), sizes)

    def _search_micro_batch(self) -> int:
        """As a worker searches it before its first step."""
        model, items = self.config.model, self.data.items
        negatives, cpu = negatives_of(model, self.catalogue.trained), torch.device("cpu")
        if self.of_users:
            usual = len(self.data.train.item) // max(len(self.data.histories), 1)
            length = max(1, min(model.max_length, usual))
            make = random_sequences(length, items, negatives, cpu)
        else:
            length, make = 1, random_pairs((0, len(self.data.histories)), items, negatives, cpu)
        gradients = try_gradients(self.model, self.hardware, make)
        return micro_batch.search(gradients, self.config.train.batch_size * length)[0]
