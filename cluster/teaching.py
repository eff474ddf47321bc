"""`recsys train --teacher RUN`: a finished run of the same dataset, whose model's scores a smaller one learns from."""

from pathlib import Path

import torch

from cluster.finished import Finished, best_model, open_finished
from recsys.config import Config
from recsys.data import schema
from recsys.data.dataset import check_file, read_items
from recsys.errors import ConfigError, DataError
from recsys.models import MODELS
from recsys.models.teacher import Teacher


def check(run: Path, dataset: Path, config: Config) -> None:
    """Before Ray starts. Raises DataError where the run cannot be read, learnt from another dataset, or has trained on what is
    held out, ConfigError where its model cannot teach this one."""
    found = _open(run, dataset)
    student, teacher = config.model, found.config.model
    for role, name in (("student", student.name), ("teacher", teacher.name)):
        if not hasattr(MODELS.get(name), "scored"):
            able = ", ".join(name for name, model in MODELS.items() if hasattr(model, "scored"))
            raise ConfigError(f"--teacher {run}: {name} cannot be the {role}. There are: {able}.")
    if MODELS[student.name].batch is not MODELS[teacher.name].batch:
        raise ConfigError(
            f"--teacher {run}: {teacher.name} learns from other batches than {student.name}. Take one that does not."
        )
    if teacher.max_length < student.max_length:
        raise ConfigError(
            f"--teacher {run}: looks back on {teacher.max_length} events, the student on {student.max_length}. "
            f"Set model.max_length={teacher.max_length} or less."
        )


def teacher(run: Path, dataset: Path, config: Config, device: torch.device) -> Teacher:
    """The run's best model on a worker's device, frozen. config: the student's."""
    found = _open(run, dataset)
    check_file(found.dataset / schema.ITEMS_FILE, found.manifest.items_size, found.manifest.items_sha256)
    counts = read_items(found.dataset).column(schema.COUNT).to_numpy()
    model = best_model(found.folder, found.config, found.dataset, found.manifest, counts).to(device)
    return Teacher(model, weight=config.train.teacher_weight, temperature=config.train.teacher_temperature)


def _open(run: Path, dataset: Path) -> Finished:
    found = open_finished(run, dataset)
    if found.result["refit"]:
        raise DataError(f"{run}: a refit has trained on what is held out, and nothing could be measured. Take what it refits.")
    return found
