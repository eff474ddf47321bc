"""What a run that begins from another is measured on, the other must not have trained on: it would be no measurement."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster import ids, runs
from cluster.reading import stream_histories
from recsys.data import schema
from recsys.data.dataset import DatasetManifest, read_manifest
from recsys.data.histories import Histories
from recsys.errors import DataError

Keys = NDArray[np.uint64]


def check(dataset: Path, run: Path) -> None:
    """Raises DataError where the run, or one it descends from, trained on events that the dataset holds out."""
    for earlier in lineage(run):
        trained, held_out = _count(dataset, earlier)
        if trained:
            raise DataError(
                f"{dataset}: {trained:,} of {held_out:,} held-out events that {earlier} knows were trained on there, so "
                "nothing could be measured. Prepare both with the same split, or train without --from."
            )


def lineage(run: Path) -> Iterator[Path]:
    """Datasets that the run has learnt from, its own and those of the runs it began from, where they are what they were."""
    seen = set()
    while run not in seen:
        seen.add(run)
        told = runs.read_json(run / runs.CONFIG) or {}
        dataset = Path(told.get("dataset", run))
        if (dataset / schema.DATASET_FILE).is_file() and read_manifest(dataset).fingerprint == told["fingerprint"]:
            yield dataset
        run = Path(told.get("begun_from") or run)


def _count(dataset: Path, earlier: Path) -> tuple[int, int]:
    """Held-out events that the earlier dataset trained on, and all whose user and item it knows."""
    new, old = read_manifest(dataset), read_manifest(earlier)
    users = ids.places(ids.user_ids(dataset, new.user_files), ids.user_ids(earlier, old.user_files))
    items = ids.places(ids.item_ids(dataset), ids.item_ids(earlier))
    held_out = [np.zeros(0, np.uint64)]
    for histories in _all_histories(dataset, new):
        for segment in (schema.VALID, schema.TEST):
            out = histories.segment(segment)
            user, item = users[np.repeat(out.user, out.lengths)], items[out.item]
            known = (user >= 0) & (item >= 0)
            held_out.append(_keys(user[known], item[known], out.time[known], old.items))
    wanted = np.concatenate(held_out)
    trained = np.zeros(len(wanted), bool)
    for histories in _all_histories(earlier, old, (schema.ALL, schema.TRAIN)) if len(wanted) else ():
        seen = histories.segment(schema.TRAIN)
        trained |= np.isin(wanted, _keys(np.repeat(seen.user, seen.lengths), seen.item, seen.time, old.items))
    return int(trained.sum()), len(wanted)


def _all_histories(
    dataset: Path, manifest: DatasetManifest, roles: tuple[str, ...] = tuple(schema.ROLES)
) -> Iterator[Histories]:
    for file in manifest.user_files:
        if file.role in roles:
            yield from stream_histories(dataset, file)


def _keys(user: NDArray[Any], item: NDArray[Any], time: NDArray[Any], items: int) -> Keys:
    """64 bits for each event: of two events they are the same by chance once in 10^19."""
    pair = user.astype(np.uint64) * np.uint64(items) + item.astype(np.uint64)
    return pair * np.uint64(0x9E3779B97F4A7C15) ^ time.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
