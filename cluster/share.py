"""One worker's share of a run: which data is its own, in which order it comes, and how it is evaluated."""

import json
import os
import platform
import resource
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.train
import ray.train.torch
import torch
from numpy.typing import NDArray

from cluster import ingest, reading, runs
from cluster.ahead import Ahead, ahead
from cluster.finished import catalogue_of, cutoffs, folded_in
from cluster.held import HeldShards, ahead_room, fit_in_memory
from cluster.samples import cache_folder
from cluster.task import Task
from recsys.config import batch_size
from recsys.data import schema
from recsys.data.dataset import UserFile, read_manifest
from recsys.data.histories import Histories, Pairs
from recsys.data.plan import Leg, MacroBatch, owners, plan_after, rest, step_sizes
from recsys.evaluation import ranking
from recsys.evaluation.candidates import candidates
from recsys.evaluation.ranking import RankingSums
from recsys.models import MODELS, Catalogue
from recsys.models.base import listed_items, negatives_of
from recsys.models.owned import UserRanges
from recsys.models.trend import Trend
from recsys.training import collective, hardware, micro_batch
from recsys.training.checkpoint import TrainState
from recsys.training.loop import bare
from recsys.training.machine import memory
from recsys.training.sparse_events import SparseEvents
from recsys.training.trial import random_pairs, random_sequences, try_gradients


@dataclass(frozen=True)
class Epoch:
    """One worker's part of an epoch, or of what is left of it. done: steps already taken; steps: all of them, by all legs;
    parts: what the batches are cut from."""

    done: int
    steps: int
    read_from: str
    batches: Iterator[Any]
    parts: Ahead[Any]


class Share:
    """What this worker reads, owns and computes with. Made inside Ray Train's function."""

    def __init__(self, task: Task) -> None:
        context = ray.train.get_context()
        self.task, self.config = task, task.config
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.leads = self.rank == 0
        self.workers_on_host = context.get_local_world_size()
        self.hardware = hardware.choose(task.config.train, device=self._device(), workers_on_host=self.workers_on_host)
        self.manifest = read_manifest(task.dataset)
        self.validates = task.border == schema.VALID and self.manifest.segments[schema.VALID] > 0
        self.tests = task.measure_test and task.border != schema.END and self.manifest.segments[schema.TEST] > 0
        self.planned = reading.trained_until(task.dataset, self.manifest, task.border)
        self.alive: Callable[[], None] = lambda: None
        self.events: SparseEvents | None = None  # held where a model alternates
        self._begun: tuple[tuple[int, tuple[Leg, ...]], Epoch] | None = None
        self._sources: dict[bool, tuple[str, Callable[[Sequence[MacroBatch]], Iterator[pa.Table]]]] = {}

    def _device(self) -> torch.device:
        if not self.config.cluster.in_process:
            return ray.train.torch.get_device()
        gpu = self.config.cluster.use_gpu != "no" and torch.cuda.is_available()
        return torch.device("cuda" if gpu else "cpu")

    @cached_property
    def files(self) -> list[UserFile]:
        """User files of the shards that are this worker's."""
        owner = owners(self.planned, self.world)
        return [file for file in self.planned.user_files if owner[file.shard] == self.rank]

    @cached_property
    def catalogue(self) -> Catalogue:
        """What a model must know before it sees an event."""
        owned = UserRanges.of([(file.first_user, file.first_user + file.rows) for file in self.files])
        return catalogue_of(self.task.dataset, self.manifest, self.config, self._item_counts(), owned)

    @property
    def dataset(self) -> Path:
        """Its folder."""
        return self.task.dataset

    @property
    def border(self) -> str:
        """What is trained on ends here."""
        return self.task.border

    @property
    def item_counts(self) -> NDArray[np.int64]:
        """[N] events that are trained on, of all workers."""
        return self.catalogue.item_counts

    @property
    def batch(self) -> type | None:
        """What the model is fed: Pairs or Histories; None for one that learns by no batches, popularity among them."""
        return getattr(MODELS[self.config.model.name], "batch", None)

    @property
    def batch_size(self) -> int:
        """Of all workers together."""
        return batch_size(self.config, self.manifest.users)

    def find_micro_batch(self, state: TrainState) -> None:
        """Settle it before the first step: as the config says, as the run had it, as remembered, or by trying on rank 0."""
        if self.config.train.micro_batch is not None:
            state.micro_batch.events = self.config.train.micro_batch
        if state.micro_batch.events is not None:
            return
        events = torch.zeros(1, dtype=torch.int64, device=self.hardware.device)
        if self.leads:
            events[0] = self._search_micro_batch(state)
        state.micro_batch.events = int(collective.sum_over_ranks(events))

    def _search_micro_batch(self, state: TrainState) -> int:
        model, hard = bare(state.model), self.hardware
        # Events of a user that are looked at together, on average: a step of whole users has so many for each.
        length = 1 if self.batch is Pairs else self._usual_length(model.max_length)
        most = -(-self.batch_size // self.world) * length
        told = [hard.device.type, hard.precision, hard.threads, most, self.catalogue.items, platform.node()]
        told += [str(self.task.teacher)] if self.task.teacher else []
        key, known = json.dumps([*told, self.config.model.model_dump(mode="json")]), cache_folder() / "micro_batch.json"
        if (found := micro_batch.remembered(known, key)) is not None:
            return found
        negatives = negatives_of(self.config.model, self.catalogue.trained)
        if self.batch is Pairs:
            users = state.owned.ranges[0] if state.owned is not None else (0, self.manifest.users)
            make = random_pairs(users, self.catalogue.items, negatives, hard.device)
        else:
            make = random_sequences(length, self.catalogue.items, negatives, hard.device)
        found, trials = micro_batch.search(try_gradients(model, hard, make), most)
        runs.note_hardware(self.task.folder, self.described() | {"micro_batch_trials": [asdict(trial) for trial in trials]})
        micro_batch.remember(known, key, found)
        return found

    def _usual_length(self, most: int) -> int:
        """Train events of a user on average, of those in a window."""
        files = [file for file in self.planned.user_files if file.train_events]
        events, users = sum(file.train_events for file in files), sum(file.rows for file in files)
        return max(1, min(most, round(events / max(users, 1))))

    def peak_bytes(self) -> int:
        """The most memory this worker has used: the GPU's where it computes there, else the process's."""
        if self.hardware.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.hardware.device))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

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

    def begin(self, epoch: int, legs: Sequence[Leg], batch_type: type) -> None:
        """Have an epoch's data read from now on: the worker has other things to do before it asks for it."""
        self.close()
        self._begun = ((epoch, tuple(legs)), self._epoch(epoch, legs, batch_type))

    def epoch(self, epoch: int, legs: Sequence[Leg], batch_type: type) -> "Epoch":
        """This worker's part of an epoch of which `legs` are taken already."""
        begun, self._begun = self._begun, None
        if begun is not None and begun[0] == (epoch, tuple(legs)):
            return begun[1]
        return self._epoch(epoch, legs, batch_type)

    def close(self) -> None:
        """Nothing that was begun is wanted any more."""
        if self._begun is not None:
            self._begun[1].parts.close()
            self._begun = None

    def _epoch(self, epoch: int, legs: Sequence[Leg], batch_type: type) -> "Epoch":
        train, cluster, of_rows = self.config.train, self.config.cluster, batch_type is Histories
        own = legs[-1].steps if legs and legs[-1].world_size == self.world else 0
        plan = plan_after(
            legs,
            train.seed,
            epoch,
            self.world,
            self.planned,
            batch_size=self.batch_size,
            window_events=cluster.window_events,
            mix_shards=cluster.mix_shards,
            of_rows=of_rows,
        )
        sizes = list(step_sizes(plan.amounts(of_rows=of_rows), self.rank, self.batch_size))
        entries, skip = rest(plan.ranks[self.rank], sum(size for size, _ in sizes[:own]), of_rows=of_rows)
        read_from, read = self.source(of_rows)
        tables = read(entries)
        if of_rows:
            parts: Ahead[Any] = ahead(ingest.history_parts(tables, skip=skip))
            batches: Iterator[Any] = ingest.history_batches(parts, sizes[own:])
        else:
            parts = ahead(ingest.pair_parts(tables, self.hardware.device, skip=skip))
            batches = ingest.pair_batches(parts, sizes[own:])
        done = sum(leg.steps for leg in legs)
        return Epoch(done, done - own + len(sizes), read_from, batches, parts)

    def source(self, whole_rows: bool) -> tuple[str, Callable[[Sequence[MacroBatch]], Iterator[pa.Table]]]:
        """Where this worker's epochs come from, and what reads them: its memory where its shards fit, else Ray Data."""
        if whole_rows not in self._sources:
            self._sources[whole_rows] = self._find_source(whole_rows)
        return self._sources[whole_rows]

    def _find_source(self, whole_rows: bool) -> tuple[str, Callable[[Sequence[MacroBatch]], Iterator[pa.Table]]]:
        cluster = self.config.cluster
        reads: dict[str, Any] = {"whole_rows": whole_rows, "border": self.task.border}
        cpus = self.task.reader_cpus
        fit = fit_in_memory(self.files, cluster.hold_bytes, self.workers_on_host, whole_rows=whole_rows)
        holds = cpus is None or fit
        readers = cluster.readers_on(self.hardware.threads)
        room = ahead_room(memory().free, None if holds else cluster.object_store_bytes, self.workers_on_host)
        reads |= {"readers": readers, "prefetch": cluster.prefetch_on(readers, room)}
        if cpus is None or holds:
            held = HeldShards(self.task.dataset / schema.USERS_FOLDER, self.planned.user_files, self.files, **reads)
            return "memory", held.macro_batches
        return "files", partial(ingest.macro_batches, self.task.dataset, self.planned, reader_cpus=cpus, **reads)

    def evaluate(
        self, model: Any, segment: str, *, trend: Trend | None = None, every: int = 1, keep_users: bool = False
    ) -> RankingSums:
        """Rank for every user with events in `segment`, or every so many of them; each worker does its own users, and all get
        the sums. keep_users: each worker what the lists were worth to its own."""
        sums = self._rank(model, Histories.from_arrow(schema.USERS.empty_table()), segment)
        for file in self.files:
            # The model never trained on users held out by a split by user: their vectors come as they do when served.
            vectors = folded_in(model, self.catalogue.item_counts) if file.role in (schema.VALID, schema.TEST) else None
            for histories in reading.stream_histories(self.task.dataset, file, self.task.border):
                some = histories if every == 1 else histories.having(segment, every)
                sums = sums + self._rank(model, some, segment, vectors, trend=trend, keep_users=keep_users)
                self.alive()
        return sums.over_ranks()

    def _rank(self, model: Any, histories: Histories, segment: str, vectors: Any = None, **more: Any) -> RankingSums:
        return ranking.evaluate(
            model,
            histories,
            segment=segment,
            ks=cutoffs(self.config),
            item_counts=self.catalogue.item_counts,
            exclude_seen=self.manifest.repeats != "keep",
            device=self.hardware.device,
            user_vectors=vectors,
            ranked=candidates(listed_items(model, self.catalogue.item_counts), self.catalogue.item_counts, self.manifest.split),
            **more,
        )

    def _item_counts(self) -> NDArray[np.int64]:
        """[N] events that are trained on, of all workers."""
        counts = reading.item_counts(self.task.dataset, self.manifest, self.files, self.task.border)
        if self.task.border == schema.VALID:
            return counts
        return collective.sum_over_ranks(torch.from_numpy(counts)).numpy()
