"""One worker's share of a run: which data is its own, in which order it comes, and how it is evaluated."""

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
from numpy.typing import NDArray

from cluster import ingest, reading
from cluster.held import HeldShards, fit_in_memory
from recsys.config import Config
from recsys.data import schema
from recsys.data.dataset import UserFile, check_file, read_items, read_manifest
from recsys.data.histories import Histories
from recsys.data.plan import epoch_plan, owners, step_sizes
from recsys.evaluation import ranking
from recsys.evaluation.ranking import RankingSums
from recsys.models import Catalogue, Popularity
from recsys.retrieval.fold_in import fold_in, gram_of
from recsys.training import collective, hardware


@dataclass(frozen=True)
class Task:
    """What the driver tells every worker; paths are absolute, for workers run in folders of their own.

    refit_epochs: train on all segments for so many epochs, without validation.
    """

    dataset: Path
    folder: Path
    config: Config
    reader_cpus: float = 1
    refit_epochs: int | None = None

    @property
    def epochs(self) -> int:
        """Most epochs to train."""
        return self.config.train.epochs if self.refit_epochs is None else self.refit_epochs


class Share:
    """What this worker reads, owns and computes with. Made inside Ray Train's function."""

    def __init__(self, task: Task) -> None:
        context = ray.train.get_context()
        self.task, self.config = task, task.config
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.leads = self.rank == 0
        self.workers_on_host = context.get_local_world_size()
        self.hardware = hardware.choose(
            task.config.train, device=ray.train.torch.get_device(), workers_on_host=self.workers_on_host
        )
        self.manifest = read_manifest(task.dataset)
        self.refits = task.refit_epochs is not None
        self.validates = not self.refits and self.manifest.segments[schema.VALID] > 0
        self.tests = not self.refits and self.manifest.segments[schema.TEST] > 0
        self.planned = reading.everything_trains(self.manifest) if self.refits else self.manifest

    @cached_property
    def files(self) -> list[UserFile]:
        """User files of the shards that are this worker's."""
        owner = owners(self.planned, self.world)
        return [file for file in self.planned.user_files if owner[file.shard] == self.rank]

    @cached_property
    def catalogue(self) -> Catalogue:
        """What a model must know before it sees an event."""
        return Catalogue(self.manifest.users, self.manifest.items, self._item_counts(), self.manifest.mean_rating)

    def described(self) -> dict[str, Any]:
        """What the workers compute with, for environment.json."""
        device = self.hardware.device
        return {
            "workers": self.world,
            "device": torch.cuda.get_device_name(device)
            if device.type == "cuda"
            else platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads_per_worker": self.hardware.threads,
            "precision": self.hardware.precision,
        }

    def owned_users(self) -> torch.Tensor:
        """[U] bool, on the worker's device: users whose events, and so whose rows, are this worker's."""
        owned = torch.zeros(self.manifest.users, dtype=torch.bool)
        for file in self.files:
            owned[file.first_user : file.first_user + file.rows] = True
        return owned.to(self.hardware.device)

    def batches(self, epoch: int, batch_type: type) -> tuple[int, Iterator[Any]]:
        """Steps of an epoch, and this worker's part of each."""
        train, cluster, whole_rows = self.config.train, self.config.cluster, batch_type is Histories
        window = {"window_events": cluster.window_events, "mix_shards": cluster.mix_shards}
        plan = epoch_plan(train.seed, epoch, self.world, self.planned, **window)
        sizes = list(step_sizes(plan.amounts(of_rows=whole_rows), self.rank, train.batch_size))
        tables = self.source(whole_rows).tables(plan.ranks[self.rank])
        if whole_rows:
            return len(sizes), ingest.history_batches(tables, sizes)
        return len(sizes), ingest.pair_batches(tables, sizes, self.hardware.device)

    @cache  # noqa: B019 - a worker has one share, for as long as it lives
    def source(self, whole_rows: bool) -> ingest.Source:
        """Where this worker's epochs come from: its files by Ray Data, then its memory where they fit."""
        cluster = self.config.cluster
        reads: dict[str, Any] = {"readers": cluster.readers, "prefetch": cluster.prefetch, "whole_rows": whole_rows}
        reads["everything"] = self.refits
        stream = partial(ingest.macro_batches, self.task.dataset, self.planned, reader_cpus=self.task.reader_cpus, **reads)
        fits = fit_in_memory(self.files, cluster.hold_bytes, self.workers_on_host, whole_rows=whole_rows)
        return ingest.Source(stream, HeldShards(self.task.dataset / schema.USERS_FOLDER, self.files, **reads) if fits else None)

    def evaluate(self, model: Any, segment: str) -> RankingSums:
        """Rank for every user with events in `segment`; each worker does its own users, and all get the sums."""
        sums = self._rank(model, Histories.from_arrow(schema.USERS.empty_table()), segment)
        for file in self.files:
            # The model never trained on users held out by a split by user: their vectors come as they do when served.
            vectors = self._folded_in(model) if file.role in (schema.VALID, schema.TEST) else None
            for histories in reading.stream_histories(self.task.dataset, file):
                sums = sums + self._rank(model, histories, segment, vectors)
        return sums.over_ranks()

    def _rank(self, model: Any, histories: Histories, segment: str, vectors: Any = None) -> RankingSums:
        return ranking.evaluate(
            model,
            histories,
            segment=segment,
            ks=cutoffs(self.config),
            item_counts=self.catalogue.item_counts,
            exclude_seen=self.manifest.repeats != "keep",
            device=self.hardware.device,
            user_vectors=vectors,
        )

    def _folded_in(self, model: Any) -> Callable[[Histories], torch.Tensor] | None:
        if isinstance(model, Popularity) or model.known_user == "history":
            return None
        items = model.item_vectors().float().cpu().numpy()
        gram = gram_of(items, np.flatnonzero(self.catalogue.item_counts))
        parameters = model.fold_in_parameters()

        def vectors(known: Histories) -> torch.Tensor:
            return torch.from_numpy(fold_in(items, known.offsets, known.item, known.rating, gram, parameters))

        return vectors

    def _item_counts(self) -> NDArray[np.int64]:
        """[N] events that are trained on, of all workers."""
        check_file(self.task.dataset / schema.ITEMS_FILE, self.manifest.items_size, self.manifest.items_sha256)
        if not self.refits:
            counts: NDArray[np.int64] = read_items(self.task.dataset).column(schema.COUNT).to_numpy()
            return counts
        counts = np.zeros(self.manifest.items, np.int64)
        for file in self.files:
            for histories in reading.stream_histories(self.task.dataset, file):
                counts += np.bincount(histories.item, minlength=len(counts))
        return collective.sum_over_ranks(torch.from_numpy(counts)).numpy()


def cutoffs(config: Config) -> tuple[int, ...]:
    """The k of every ranking metric that is reported, with that of the one that chooses the best epoch."""
    chosen = config.train.metric.partition("@")[2]
    return tuple(sorted({*config.train.metric_ks, *([int(chosen)] if chosen else [])}))
