"""The peer of bench_overhead.py: what `recsys train` learns with one worker, by a plain PyTorch script without Ray.

python benchmarks/plain_training.py DATASET OUT [--set section.key=value]

The same files, plan, loop and ranking; no checkpoints before the end, no resuming, no curves, no search for a micro-batch.
Leaves the best epoch's weights and result.json in OUT. For datasets that fit in memory and are not
split by user, and a train.metric at one of train.metric_ks.
"""

import argparse
import json
import operator
import os
import time
from collections.abc import Iterator
from functools import partial, reduce
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from cluster import reading
from cluster.held import HeldShards, ahead_room
from recsys.config import Config, batch_size, load_config
from recsys.data import schema
from recsys.data.dataset import DatasetManifest, read_items, read_manifest
from recsys.data.histories import Pairs
from recsys.data.plan import Plan, epoch_plan, step_sizes
from recsys.evaluation.ranking import RankingSums, evaluate
from recsys.models import Catalogue, build
from recsys.models.owned import UserRanges
from recsys.training import checkpoint, hardware
from recsys.training.loop import train_epoch
from recsys.training.machine import memory
from recsys.training.micro_batch import MicroBatch
from recsys.training.negatives import Negatives


def main() -> None:
    options = arguments()
    result = train(options.dataset, options.out, load_config(overrides=options.set))
    (options.out / "result.json").write_text(json.dumps(result))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--set", action="append", default=[], help="a setting, as in recsys train")
    return parser.parse_args()


def train(dataset: Path, out: Path, config: Config) -> dict[str, Any]:
    """The result's metrics, and seconds of training and of validation."""
    manifest = read_manifest(dataset)
    found = hardware.choose(config.train)
    catalogue = catalogue_of(dataset, manifest)
    model = build(config.model, catalogue, config.train.seed)
    state = checkpoint.start(model, config, manifest.fingerprint, found)
    held = HeldShards(
        dataset / schema.USERS_FOLDER,
        manifest.user_files,
        manifest.user_files,
        readers=config.cluster.readers_on(os.cpu_count() or 1),
        prefetch=config.cluster.prefetch_on(config.cluster.readers_on(os.cpu_count() or 1), ahead_room(memory().free, None, 1)),
    )
    rank = partial(ranked, dataset, manifest, model, catalogue, config)
    training = validation = 0.0
    while state.epoch < config.train.epochs and not state.stopping.exhausted:
        training += train_epoch(
            model,
            batches(held, planned(state.epoch, manifest, config), batch_size(config, manifest.users)),
            state.optimizers,
            hardware=found,
            scaler=state.scaler,
            negatives=Negatives(config.model, catalogue.item_counts, config.train.seed),
            clip_norm=config.train.clip_norm,
            epoch=state.epoch,
            micro_batch=MicroBatch(config.train.micro_batch),
            seed=config.train.seed,
        ).seconds
        began = time.perf_counter()
        metrics = rank(schema.VALID).metrics()
        validation += time.perf_counter() - began
        state.finish_epoch(metrics)
        print(f"epoch {state.epoch}: {config.train.metric} {metrics[config.train.metric]:.4f}", flush=True)
    best = state.stopping.best
    state.restore_best()
    test = rank(schema.TEST).metrics()
    checkpoint.save(out / "best", state)
    timed = {"training_seconds": training, "validation_seconds": validation}
    return {"valid": best, "test": test[config.train.metric], "precision": found.precision, **timed}


def catalogue_of(dataset: Path, manifest: DatasetManifest) -> Catalogue:
    """All users' rows, each begun by the seed of its file's range, as one worker begins them."""
    counts = read_items(dataset).column(schema.COUNT).to_numpy()
    ranges = UserRanges.of([(file.first_user, file.first_user + file.rows) for file in manifest.user_files])
    return Catalogue(manifest.users, manifest.items, counts, manifest.mean_rating, ranges)


def planned(epoch: int, manifest: DatasetManifest, config: Config) -> Plan:
    windows = {"window_events": config.cluster.window_events, "mix_shards": config.cluster.mix_shards}
    return epoch_plan(config.train.seed, epoch, 1, manifest, **windows)


def batches(held: HeldShards, plan: Plan, size: int) -> Iterator[Pairs]:
    """An epoch's events in the order of the plan, all of them in memory at once."""
    events = pa.concat_tables(held.macro_batches(plan.ranks[0]))
    user, item, rating = (torch.tensor(column.to_numpy()) for column in events.columns)
    first = 0
    for own, total in step_sizes(plan.amounts(), 0, size):
        step = slice(first, first + own)
        yield Pairs(user[step], item[step], rating[step], total=total)
        first += own


def ranked(
    dataset: Path, manifest: DatasetManifest, model: Any, catalogue: Catalogue, config: Config, segment: str
) -> RankingSums:
    """All users with events in `segment`."""
    measure = partial(
        evaluate,
        model,
        segment=segment,
        ks=config.train.metric_ks,
        item_counts=catalogue.item_counts,
        exclude_seen=manifest.repeats != "keep",
    )
    histories = (part for file in manifest.user_files for part in reading.stream_histories(dataset, file))
    return reduce(operator.add, map(measure, histories))


if __name__ == "__main__":
    main()
