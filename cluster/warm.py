"""`recsys train --from RUN`: an earlier run's rows for the users and items of this one, joined by their string ids."""

from pathlib import Path

import pyarrow as pa
import torch

from cluster import ids, runs, unseen
from cluster.finished import Finished, features_of, open_finished
from cluster.share import Share
from recsys.config import Config
from recsys.errors import ConfigError, DataError
from recsys.training import checkpoint, warm
from recsys.training.checkpoint import TrainState


def check(run: Path, dataset: Path, config: Config) -> None:
    """Before Ray starts. Raises DataError where run or dataset cannot be read, or the run has trained on what is held out here,
    ConfigError where the model is another."""
    found = _open(run)
    told = found.config.model_dump(mode="json")
    changed = checkpoint.differences({**told, "train": config.model_dump(mode="json")["train"]}, config)
    if changed:
        advice = "Set them as they are there, or leave --from out."
        raise ConfigError(f"{run}: a model of other settings cannot be begun from:\n  " + "\n  ".join([*changed, advice]))
    unseen.check(dataset, run)


def begin(run: Path, share: Share, state: TrainState) -> dict[str, int]:
    """Put the run's best rows into a fresh state. Returns how many users and items of this worker were known."""
    found = _open(run)
    weights, optimizers = checkpoint.read_everything(run / runs.BEST)
    places = {"item": ids.places(ids.item_ids(share.task.dataset), ids.item_ids(found.dataset))}
    if (attributes := share.catalogue.attributes) is not None:
        places["attribute"] = ids.places(pa.array(attributes.names), pa.array(features_of(found.dataset, found.config).names))
    if state.owned is not None:
        here = ids.user_ids(share.task.dataset, share.files)
        places["user"] = ids.places(here, ids.user_ids(found.dataset, found.manifest.user_files))
    warm.begin_from(state, weights, optimizers, {name: torch.from_numpy(rows) for name, rows in places.items()})
    return {name: int((rows >= 0).sum()) for name, rows in places.items()}


def _open(run: Path) -> Finished:
    found = open_finished(run)
    if found.result["refit"]:
        raise DataError(
            f"{run}: a refit has trained on what is held out, and nothing could be measured. Begin from what it refits."
        )
    return found
