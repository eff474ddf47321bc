"""Checkpoints: safetensors for arrays, JSON for the rest. Independent of the number of workers.

model.safetensors   weights, and where chance stands      best.safetensors   the best epoch's weights, if it is another
optim.safetensors   moments of the optimizers             state.json         everything else. Written last
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from recsys.config import Config
from recsys.errors import ConfigError, RecsysError
from recsys.training import loop
from recsys.training.hardware import Hardware
from recsys.training.stopping import EarlyStopping, plateau_schedulers

FORMAT_VERSION = 1
STATE_FILE, MODEL_FILE, BEST_FILE, OPTIMIZER_FILE = "state.json", "model.safetensors", "best.safetensors", "optim.safetensors"

# Settings of training that may differ on resuming: they change when it ends or how fast it goes, not what is learnt.
MAY_CHANGE = {"epochs", "patience", "threads", "precision", "metric_ks"}


@dataclass
class TrainState:
    """All that changes while a model trains.

    epoch: the one to train next; position: entries of its plan already trained on; step: steps of it already taken.
    history: a dict of metrics for each finished epoch. best: the weights of the best epoch.
    """

    model: nn.Module
    optimizers: list[Optimizer]
    schedulers: list[ReduceLROnPlateau]
    scaler: torch.amp.GradScaler
    stopping: EarlyStopping
    dataset: str
    config: Config
    epoch: int = 0
    position: int = 0
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)

    def finish_epoch(self, metrics: dict[str, float]) -> bool:
        """After validation: keep the weights aside if they are the best, slow down on a plateau. Whether they were."""
        improved = self.stopping.improved(self.epoch, metrics)
        if improved:
            self.best = {name: tensor.detach().clone() for name, tensor in self.weights().items()}
        for scheduler in self.schedulers:
            scheduler.step(metrics[self.stopping.metric])
        self.epoch, self.position, self.step = self.epoch + 1, 0, 0
        return improved

    def restore_best(self) -> None:
        """Put the best epoch's weights back into the model."""
        if self.best:
            loop.bare(self.model).load_state_dict(self.best)

    def weights(self) -> dict[str, Tensor]:
        """The model's own, out of DDP."""
        weights: dict[str, Tensor] = loop.bare(self.model).state_dict()
        return weights

    def user_rows(self) -> list[Tensor]:
        """Every tensor with a row for each user, to be given to `rows.sync_user_rows` before saving or evaluating."""
        table = loop.bare(self.model).row_tables().get("user")
        if table is None:
            return []
        states = [tensor for optimizer in self.optimizers for tensor in optimizer.state.get(table, {}).values()]
        return [table.detach(), *(t for t in states if isinstance(t, Tensor) and t.shape[:1] == table.shape[:1])]


def start(model: nn.Module, config: Config, dataset: str, hardware: Hardware) -> TrainState:
    """The state before the first epoch. model: on its device, wrapped by `loop.distribute` if need be."""
    optimizers = loop.make_optimizers(model, config.train)
    stopping = EarlyStopping(config.train.metric, config.train.patience)
    schedulers = plateau_schedulers(optimizers, config.train)
    return TrainState(model, optimizers, schedulers, hardware.scaler(), stopping, dataset, config)


def save(folder: Path, state: TrainState) -> None:
    """Write a checkpoint folder; without `state.json`, which comes last, it is none. Users' rows must be in sync."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STATE_FILE).unlink(missing_ok=True)
    tensors: dict[str, Tensor] = {}
    optimizers = _take_out([optimizer.state_dict() for optimizer in state.optimizers], tensors)
    _write(folder / OPTIMIZER_FILE, tensors)
    _write(folder / MODEL_FILE, state.weights() | _random_states())
    is_best = state.stopping.best_epoch == state.epoch - 1 and state.step == state.position == 0
    best_elsewhere = bool(state.best) and not is_best
    if best_elsewhere:
        _write(folder / BEST_FILE, state.best)
    content = {
        "format_version": FORMAT_VERSION,
        "dataset": state.dataset,
        "config": state.config.model_dump(mode="json"),
        "epoch": state.epoch,
        "position": state.position,
        "step": state.step,
        "optimizers": optimizers,
        "schedulers": _take_out([scheduler.state_dict() for scheduler in state.schedulers], {}),
        "scaler": state.scaler.state_dict(),
        "stopping": state.stopping.state_dict(),
        "history": _take_out(state.history, {}),
        "best_elsewhere": best_elsewhere,
    }
    (folder / STATE_FILE).write_text(json.dumps(content, indent=1, allow_nan=False))


def load(folder: Path, state: TrainState) -> TrainState:
    """Go on where the checkpoint was made; `state` is as `start` gives it, and is changed in place.

    Raises ConfigError, with the difference, if the checkpoint is of another dataset, model or way of training; RecsysError
    if it is incomplete.
    """
    content = read_state(folder)
    _refuse_another(content, state, folder)
    weights = _read(folder / MODEL_FILE)
    _set_random_states(weights)
    loop.bare(state.model).load_state_dict(weights)
    saved = _put_back(content["optimizers"], _read(folder / OPTIMIZER_FILE))
    for optimizer, part in zip(state.optimizers, saved, strict=True):
        optimizer.load_state_dict(part)
    for scheduler, part in zip(state.schedulers, _put_back(content["schedulers"], {}), strict=True):
        scheduler.load_state_dict(part)
    if state.scaler.is_enabled() and content["scaler"]:  # precision may have changed
        state.scaler.load_state_dict(content["scaler"])
    state.stopping.load_state_dict(content["stopping"])
    state.epoch, state.position, state.step = content["epoch"], content["position"], content["step"]
    state.history = _put_back(content["history"], {})
    state.best = _best(folder, content, state)
    return state


def read_state(folder: Path) -> dict[str, Any]:
    """What `state.json` says. Raises RecsysError where there is none, or it is of another version."""
    try:
        content: dict[str, Any] = json.loads((folder / STATE_FILE).read_bytes())
    except (OSError, ValueError):
        raise RecsysError(f"{folder}: no whole checkpoint ({STATE_FILE} is missing or cut). Train again.") from None
    if content.get("format_version") != FORMAT_VERSION:
        raise RecsysError(f"{folder}: format version {content.get('format_version')}, this release reads {FORMAT_VERSION}.")
    return content


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of the best epoch so far, on the CPU; the latest ones before any was validated."""
    best = read_state(folder)["best_elsewhere"]
    weights = _read(folder / (BEST_FILE if best else MODEL_FILE))
    return {name: tensor for name, tensor in weights.items() if not name.startswith("random.")}


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
    if content["dataset"] != state.dataset:
        changed.insert(0, f"dataset: {content['dataset']} → {state.dataset}")
    if changed:
        raise ConfigError(
            f"{folder}: made by another run, and cannot be gone on with:\n  " + "\n  ".join(changed) + "\n"
            "Take the old settings, or start a run of another name."
        )


def _best(folder: Path, content: dict[str, Any], state: TrainState) -> dict[str, Tensor]:
    if content["stopping"]["best_epoch"] < 0:
        return {}
    if content["best_elsewhere"]:
        return _read(folder / BEST_FILE)
    return {name: tensor.detach().clone() for name, tensor in state.weights().items()}


def _random_states() -> dict[str, Tensor]:
    """Where torch's own generators stand. Everything else draws from generators seeded by what they are for."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"random.cpu": torch.get_rng_state()} | {f"random.cuda.{i}": state for i, state in enumerate(devices)}


def _set_random_states(tensors: dict[str, Tensor]) -> None:
    """Takes them out of `tensors`; those of GPUs that are not here are left."""
    states = {name: tensors.pop(name) for name in list(tensors) if name.startswith("random.")}
    torch.set_rng_state(states.pop("random.cpu"))
    for name, tensor in states.items():
        device = int(name.rpartition(".")[2])
        if device < torch.cuda.device_count():
            torch.cuda.set_rng_state(tensor, device)


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


def _read(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RecsysError(f"{path}: missing or altered ({error}). Resume from an older checkpoint or train again.") from None
    return tensors
