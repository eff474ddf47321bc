"""`recsys train --from RUN`: an earlier run's rows for the users and items of this one, joined by their string ids."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from cluster import runs
from cluster.reading import stream_histories
from cluster.share import Share
from recsys.config import Config
from recsys.data import schema
from recsys.data.dataset import DatasetManifest, UserFile, read_items, read_manifest
from recsys.errors import ConfigError, DataError
from recsys.training import checkpoint, collective, warm
from recsys.training.checkpoint import TrainState


def check(run: Path, config: Config) -> None:
    """Before Ray starts. Raises DataError where run or dataset cannot be read, or for a refit, ConfigError where the model is
    another."""
    old, _ = _open(run)
    changed = checkpoint.differences({**old, "train": config.model_dump(mode="json")["train"]}, config)
    if changed:
        raise ConfigError(f"{run}: a model of other settings cannot be begun from:\n  " + "\n  ".join(changed))


def begin(run: Path, share: Share, state: TrainState) -> dict[str, int]:
    """Put the run's best rows into a fresh state. Returns how many users and items of this worker were known.

    Raises DataError on every worker where what this dataset holds out was trained on: its figures would be no measurement.
    """
    _, dataset = _open(run)
    for earlier in _lineage(run):
        _check_unseen(share, earlier)
    old = read_manifest(dataset)
    weights, optimizers = checkpoint.read_everything(run / runs.BEST)
    places = {"item": _places(_item_ids(share.task.dataset), _item_ids(dataset))}
    if state.owned is not None:
        files = sorted(share.files, key=lambda file: file.first_user)
        places["user"] = _places(_user_ids(share.task.dataset, files), _all_user_ids(dataset, old))
    warm.begin_from(state, weights, optimizers, places)
    return {name: int((rows >= 0).sum()) for name, rows in places.items()}


def _open(run: Path) -> tuple[dict[str, Any], Path]:
    """The run's settings, and its dataset's folder."""
    result = runs.read_json(run / runs.RESULT)
    if result is None:
        raise DataError(f"{run}: no finished run to begin from. `recsys runs list` shows what there is.")
    if result.get("refit"):
        raise DataError(
            f"{run}: a refit has trained on what is held out, and nothing could be measured. Begin from what it refits."
        )
    dataset = Path(result["dataset"])
    if read_manifest(dataset).fingerprint != result["fingerprint"]:
        raise DataError(
            f"{dataset}: not the dataset that {run.name} learnt from; its ids cannot be told. Train without --from."
        )
    return result["config"], dataset


def _lineage(run: Path) -> Iterator[Path]:
    """Datasets that the run has learnt from: its own, and those of the runs it began from, as far as they are still there."""
    seen = set()
    while run not in seen:
        seen.add(run)
        told = runs.read_json(run / runs.CONFIG) or {}
        if "dataset" in told and Path(told["dataset"]).is_dir():
            yield Path(told["dataset"])
        run = Path(told.get("begun_from") or run)


def _check_unseen(share: Share, earlier: Path) -> None:
    old, files = read_manifest(earlier), sorted(share.files, key=lambda file: file.first_user)
    users = _places(_user_ids(share.task.dataset, files), _all_user_ids(earlier, old)).numpy()
    items = _places(_item_ids(share.task.dataset), _item_ids(earlier)).numpy()
    held, first = [np.zeros(0, np.uint64)], 0
    for file in files:
        for histories in stream_histories(share.task.dataset, file):
            for segment in (schema.VALID, schema.TEST):
                out = histories.segment(segment)
                user = users[first + np.repeat(out.user, out.lengths) - file.first_user]
                known = (user >= 0) & (items[out.item] >= 0)
                held.append(_keys(user[known], items[out.item[known]], out.time[known], old.items))
        first += file.rows
    wanted = np.sort(np.concatenate(held))
    trained = np.zeros(len(wanted), bool)
    for file in old.user_files if len(wanted) else ():
        for histories in stream_histories(earlier, file) if file.role in (schema.ALL, schema.TRAIN) else ():
            seen = histories.segment(schema.TRAIN)
            keys = _keys(np.repeat(seen.user, seen.lengths), seen.item, seen.time, old.items)
            trained[np.minimum(np.searchsorted(wanted, keys), len(wanted) - 1)[np.isin(keys, wanted)]] = True
    leaked, events = collective.sum_over_ranks(torch.tensor([int(trained.sum()), sum(map(len, held))])).tolist()
    if leaked:
        raise DataError(
            f"{share.task.dataset}: {leaked:,} of {events:,} held-out events that {earlier} knows were trained on there, so "
            "nothing could be measured. Prepare both with the same split, or train without --from."
        )


def _keys(user: NDArray[Any], item: NDArray[Any], time: NDArray[Any], items: int) -> NDArray[np.uint64]:
    """64 bits for each event: two of an earlier dataset share theirs once in 10^19 pairs."""
    pair = user.astype(np.uint64) * np.uint64(items) + item.astype(np.uint64)
    return pair * np.uint64(0x9E3779B97F4A7C15) ^ time.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)


def _item_ids(dataset: Path) -> pa.Array:
    return read_items(dataset).column(schema.ITEM_ID).combine_chunks()


def _all_user_ids(dataset: Path, manifest: DatasetManifest) -> pa.Array:
    """By number."""
    return _user_ids(dataset, sorted(manifest.user_files, key=lambda file: file.first_user))


def _user_ids(dataset: Path, files: list[UserFile]) -> pa.Array:
    columns = [pq.read_table(dataset / schema.USERS_FOLDER / f.name, columns=[schema.USER_ID]).column(0) for f in files]
    return pa.concat_arrays([chunk for column in columns for chunk in column.chunks] or [pa.array([], pa.string())])


def _places(ids: pa.Array, there: pa.Array) -> torch.Tensor:
    """For each id where it is `there`, -1 if nowhere."""
    found = pc.fill_null(pc.index_in(ids, value_set=there), -1)
    return torch.from_numpy(found.to_numpy(zero_copy_only=False).astype(np.int64))
