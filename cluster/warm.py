"""`recsys train --from RUN`: an earlier run's rows for the users and items of this one, joined by their string ids."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from cluster import runs
from cluster.share import Share
from recsys.config import Config
from recsys.data import schema
from recsys.data.dataset import DatasetManifest, UserFile, read_items, read_manifest
from recsys.errors import ConfigError, DataError
from recsys.training import checkpoint, warm
from recsys.training.checkpoint import TrainState


def check(run: Path, config: Config) -> None:
    """Before Ray starts. Raises DataError where run or dataset cannot be read, ConfigError where the model is another."""
    old, _ = _open(run)
    changed = checkpoint.differences({**old, "train": config.model_dump(mode="json")["train"]}, config)
    if changed:
        raise ConfigError(f"{run}: a model of other settings cannot be begun from:\n  " + "\n  ".join(changed))


def begin(run: Path, share: Share, state: TrainState) -> dict[str, int]:
    """Put the run's best rows into a fresh state. Returns how many users and items of this worker were known."""
    _, dataset = _open(run)
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
    dataset = Path(result["dataset"])
    if read_manifest(dataset).fingerprint != result["fingerprint"]:
        raise DataError(
            f"{dataset}: not the dataset that {run.name} learnt from; its ids cannot be told. Train without --from."
        )
    return result["config"], dataset


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
