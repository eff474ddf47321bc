"""Checkpoints: safetensors for arrays, JSON for the rest. Made by any number of workers, read by any other.

model.safetensors   weights                        best.safetensors   the best epoch's weights, if it is another
optim.safetensors   moments of the optimizers      users-…            users' rows of all of these, a file a worker
state.json          everything else. Written last
"""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from recsys.config import Config
from recsys.data.plan import Leg
from recsys.errors import ConfigError, RecsysError
from recsys.models.owned import UserRanges
from recsys.training import collective, loop, user_parts
from recsys.training.averaging import averaged
from recsys.training.hardware import Hardware
from recsys.training.micro_batch import MicroBatch
from recsys.training.stopping import EarlyStopping, plateau_schedulers

FORMAT_VERSION = 2
STATE_FILE, MODEL_FILE, BEST_FILE, OPTIMIZER_FILE = "state.json", "model.safetensors", "best.safetensors", "optim.safetensors"

# Settings of training that may differ on resuming: they change when it ends or how fast it goes, not what is learnt.
MAY_CHANGE = {"epochs", "patience", "threads", "precision", "metric_ks", "micro_batch"}


@dataclass
class TrainState:
    """All that changes while a model trains.

    epoch: the one to train next; legs: steps of it already taken; so_far: what these came to.
    history: a dict of metrics for each finished epoch. best: the weights of the best epoch, users' rows as the model has them.
    micro_batch: as it was found, or had to be halved to.
    """

    model: nn.Module
    optimizers: list[Optimizer]
    schedulers: list[ReduceLROnPlateau]
    scaler: torch.amp.GradScaler
    stopping: EarlyStopping
    dataset: str
    config: Config
    epoch: int = 0
    legs: list[Leg] = field(default_factory=list)
    so_far: loop.EpochStats | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    micro_batch: MicroBatch = field(default_factory=MicroBatch)

    def finish_epoch(self, metrics: dict[str, float]) -> bool:
        """After validation: keep the weights aside if they are the best, slow down on a plateau. Whether they were."""
        improved = self.stopping.improved(self.epoch, metrics)
        if improved:
            self.best = self.kept()
        for scheduler in self.schedulers:
            scheduler.step(metrics[self.stopping.metric])
        self.next_epoch()
        return improved

    def next_epoch(self) -> None:
        """The epoch is over."""
        self.epoch, self.legs, self.so_far = self.epoch + 1, [], None

    @property
    def step(self) -> int:
        """Steps of the epoch already taken."""
        return sum(leg.steps for leg in self.legs)

    def restore_best(self) -> None:
        """Put the best epoch's weights back into the model; where none was validated, the latest."""
        if self.best or self.config.train.average:
            loop.bare(self.model).load_state_dict(self.best or self.kept())

    def weights(self) -> dict[str, Tensor]:
        """The model's own, out of DDP."""
        weights: dict[str, Tensor] = loop.bare(self.model).state_dict()
        return weights

    def kept(self) -> dict[str, Tensor]:
        """A copy of the weights that are measured and exported: the latest, or their running means."""
        with averaged(self.optimizers):
            return {name: tensor.detach().clone() for name, tensor in self.weights().items()}

    @property
    def owned(self) -> UserRanges | None:
        """Users whose rows this worker has; None for a model without such rows."""
        model = loop.bare(self.model)
        return model.owned if "user" in model.row_tables() else None

    def is_of_users(self, tensor: Tensor) -> bool:
        """Whether a tensor of the model or of an optimizer has a row for each user: it is the table, or of its moments."""
        table = loop.bare(self.model).row_tables().get("user")
        if table is None:
            return False
        moments = (t for optimizer in self.optimizers for t in optimizer.state.get(table, {}).values())
        rows = [table, *(t for t in moments if isinstance(t, Tensor) and t.shape[:1] == table.shape[:1])]
        return any(tensor is row or (tensor.data_ptr() == row.data_ptr() and tensor.shape == row.shape) for row in rows)


def start(model: nn.Module, config: Config, dataset: str, hardware: Hardware) -> TrainState:
    """The state before the first epoch. model: on its device, wrapped by `loop.distribute` if need be."""
    optimizers = loop.make_optimizers(model, config.train)
    stopping = EarlyStopping(config.train.metric, config.train.patience)
    schedulers = plateau_schedulers(optimizers, config.train)
    return TrainState(model, optimizers, schedulers, hardware.scaler(), stopping, dataset, config)


def save(folder: Path, state: TrainState) -> None:
    """Write a checkpoint folder, each worker its own users' rows; without `state.json`, which comes last, it is none.

    All workers call it, with a folder that all of them see. Raises OSError on all of them if one could not write.
    """
    tensors: dict[str, Tensor] = {}
    optimizers = _take_out([optimizer.state_dict() for optimizer in state.optimizers], tensors)
    weights = state.weights()
    of_users = {name for name, tensor in weights.items() if state.is_of_users(tensor)}
    files = {MODEL_FILE: weights, OPTIMIZER_FILE: tensors}
    is_best = state.stopping.best_epoch == state.epoch - 1 and not state.legs and not state.config.train.average
    if best_elsewhere := bool(state.best) and not is_best:
        files[BEST_FILE] = state.best
    of_users |= {name for name, tensor in tensors.items() if state.is_of_users(tensor)}
    with _together(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if (owned := state.owned) is not None:
            rows = {(file, name): t for file, content in files.items() for name, t in content.items() if name in of_users}
            user_parts.write(folder, owned, rows)
        if collective.rank() == 0:
            (folder / STATE_FILE).unlink(missing_ok=True)
            for file, content in files.items():
                _write(folder / file, {name: tensor for name, tensor in content.items() if name not in of_users})
    with _together(folder):
        if collective.rank() == 0:
            content = _state(state, optimizers, best_elsewhere)
            staged = folder / f".{STATE_FILE}"
            staged.write_text(json.dumps(content, indent=1, allow_nan=False))
            user_parts.to_disk(staged)
            staged.replace(folder / STATE_FILE)


@contextmanager
def _together(folder: Path) -> Iterator[None]:
    """All workers get through, or all raise OSError: none must wait for one that has given up."""
    failure: OSError | SafetensorError | None = None
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors has its own for a disk that is full
        failure = error
    (failed,) = collective.any_rank(failure is not None)
    if failed:
        raise OSError(f"{folder}: not every worker could write its part of the checkpoint ({failure or 'another failed'}).")


def _state(state: TrainState, optimizers: Any, best_elsewhere: bool) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "dataset": state.dataset,
        "config": state.config.model_dump(mode="json"),
        "epoch": state.epoch,
        "legs": [asdict(leg) for leg in state.legs],
        "so_far": asdict(state.so_far) if state.so_far else None,
        "user_parts": collective.world_size() if state.owned is not None else 0,
        "saved_at": time.time(),
        "micro_batch": state.micro_batch.events,
        "optimizers": optimizers,
        "schedulers": _take_out([scheduler.state_dict() for scheduler in state.schedulers], {}),
        "scaler": state.scaler.state_dict(),
        "stopping": state.stopping.state_dict(),
        "history": _take_out(state.history, {}),
        "best_elsewhere": best_elsewhere,
    }


def load(folder: Path, state: TrainState) -> TrainState:
    """Go on from a checkpoint: put it into a fresh state of the same run, and return that; of users the rows it owns.

    Raises ConfigError with the differences where the dataset or a setting that decides what is learnt is another, RecsysError
    if it is incomplete.
    """
    content = read_state(folder)
    _refuse_another(content, state, folder)
    files = [MODEL_FILE, OPTIMIZER_FILE, *([BEST_FILE] if content["best_elsewhere"] else [])]
    tensors = _read_all(folder, files, content, state.owned)
    loop.bare(state.model).load_state_dict(tensors[MODEL_FILE])
    saved = _put_back(content["optimizers"], tensors[OPTIMIZER_FILE])
    for optimizer, part in zip(state.optimizers, saved, strict=True):
        optimizer.load_state_dict(part)
    for scheduler, part in zip(state.schedulers, _put_back(content["schedulers"], {}), strict=True):
        scheduler.load_state_dict(part)
    if state.scaler.is_enabled() and content["scaler"]:  # precision may have changed
        state.scaler.load_state_dict(content["scaler"])
    state.stopping.load_state_dict(content["stopping"])
    state.epoch, state.legs = content["epoch"], [Leg(**leg) for leg in content["legs"]]
    state.so_far = loop.EpochStats(**content["so_far"]) if content["so_far"] else None
    state.history = _put_back(content["history"], {})
    state.micro_batch.events = content["micro_batch"]
    if content["best_elsewhere"]:
        state.best = tensors[BEST_FILE]
    elif content["stopping"]["best_epoch"] >= 0:
        state.best = state.kept()
    return state


def read_state(folder: Path) -> dict[str, Any]:
    """What `state.json` says. Raises RecsysError where there is none, or it is of another version."""
    try:
        content: dict[str, Any] = json.loads((folder / STATE_FILE).read_bytes())
    except (OSError, ValueError):
        raise RecsysError(f"{folder}: no whole checkpoint ({STATE_FILE} is missing or cut). Train again.") from None
    if content.get("format_version") != FORMAT_VERSION:
        version = content.get("format_version")
        raise RecsysError(f"{folder}: format version {version}, this release reads {FORMAT_VERSION}. Train again.")
    return content


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of the best epoch so far, all users' rows, on the CPU; the latest ones before any was validated."""
    content = read_state(folder)
    file = BEST_FILE if content["best_elsewhere"] else MODEL_FILE
    return _read_all(folder, [file], content, None)[file]


def read_everything(folder: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The best weights, as `read_weights`, and the latest state of each optimizer (`state_dict`), with all users' rows."""
    content = read_state(folder)
    moments = _read_all(folder, [OPTIMIZER_FILE], content, None)[OPTIMIZER_FILE]
    return read_weights(folder), _put_back(content["optimizers"], moments)


def differences(saved: Mapping[str, Any], now: Config) -> list[str]:
    """Settings of the model and of training that a resume must not change, each as `name: then → now`."""
    current = now.model_dump(mode="json")
    return [
        f"{section}.{key}: {saved[section].get(key)} → {value}"
        for section in ("model", "train")
        for key, value in current[section].items()
        if saved[section].get(key) != value and not (section == "train" and key in MAY_CHANGE)
    ]


def _refuse_another(content: dict[str, Any], state: TrainState, folder: Path) -> None:
    changed = differences(content["config"], state.config)
    if content["legs"]:  # what is left of an epoch can only be told from the plan it was begun by
        now = state.config.model_dump(mode="json")["cluster"]
        saved = content["config"]["cluster"]
        changed += [f"cluster.{n}: {saved[n]} → {now[n]}" for n in ("window_events", "mix_shards") if saved[n] != now[n]]
    if content["dataset"] != state.dataset:
        changed.insert(0, f"dataset: {content['dataset']} → {state.dataset}")
    if changed:
        raise ConfigError(
            f"{folder}: made by another run, and cannot be gone on with:\n  " + "\n  ".join(changed) + "\n"
            "Take the old settings, or start a run of another name."
        )


def _read_all(
    folder: Path, files: Sequence[str], content: dict[str, Any], owned: UserRanges | None
) -> dict[str, dict[str, Tensor]]:
    """Tensors by file and name; users' rows of the ranges, or with None of all users."""
    tensors = {file: _read(folder / file) for file in files}
    if content["user_parts"]:
        for (file, name), rows in user_parts.read(folder, content["user_parts"], owned, files).items():
            tensors[file][name] = rows
    return tensors


def _take_out(tree: Any, tensors: dict[str, Tensor], name: str = "state") -> Any:
    """The tree as strict JSON: tensors go into `tensors` by name; numbers as keys and infinities are marked."""
    if isinstance(tree, Tensor):
        tensors[name] = tree
        return {"tensor": name}
    if isinstance(tree, Mapping):
        return {"dict": [[key, _take_out(value, tensors, f"{name}.{key}")] for key, value in tree.items()]}
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        return [_take_out(value, tensors, f"{name}.{place}") for place, value in enumerate(tree)]
    return {"float": str(tree)} if isinstance(tree, float) and not math.isfinite(tree) else tree


def _put_back(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """What `_take_out` was given, tuples as lists."""
    if isinstance(tree, list):
        return [_put_back(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    return float(tree["float"]) if "float" in tree else {key: _put_back(value, tensors) for key, value in tree["dict"]}


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    user_parts.to_disk(path)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RecsysError(f"{path}: missing or altered ({error}). Resume from an older checkpoint or train again.") from None
    return tensors
