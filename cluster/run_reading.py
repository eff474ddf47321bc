"""Run folders as they stand: finished, going on, half-written or damaged. Reading one never fails; it says what is wrong."""

import difflib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, TypeAdapter, ValidationError

from cluster import runs
from recsys.config import Config
from recsys.errors import DataError, RecsysError

Kind = TypeVar("Kind")
Metrics = dict[str, float | None]
MetricsOrNull = Annotated[Metrics, BeforeValidator(lambda value: {} if value is None else value)]

OF_A_RUN = {runs.CONFIG, runs.ENVIRONMENT, runs.METRICS, runs.PROGRESS, runs.RESULT, runs.BEST}


class Asked(BaseModel):
    """config.json: what was to be trained, and on what. A refit trains `refit_epochs`, and measures test at most."""

    dataset: str
    fingerprint: str
    refit_epochs: int | None = None
    config: dict[str, dict[str, Any]]


class Epoch(BaseModel):
    """A row of metrics.jsonl, as far as it is shown."""

    epoch: int
    loss: float | None = None
    learning_rate: float | None = None
    events_per_second: float | None = None
    wait_share: float | None = None
    metrics: MetricsOrNull = {}
    popularity: MetricsOrNull = {}
    best: bool | None = None


class Lean(BaseModel):
    """What lists follow, as `cluster.trends` chose it."""

    half_life_days: float
    weight: float


class PartOfBlend(BaseModel):
    """One of the runs that a blend is made of."""

    run: str
    weight: float


class Result(BaseModel):
    """result.json: what came of it, popularity beside it. `metrics` are the best epoch's on validation."""

    epochs: int
    best_epoch: int
    metrics: MetricsOrNull = {}
    popularity: MetricsOrNull = {}
    test: MetricsOrNull = {}
    test_popularity: MetricsOrNull = {}
    people: dict[str, dict[str, Any]] = {}
    trend: Lean | None = None
    parts: list[PartOfBlend] = []


@dataclass(frozen=True)
class Run:
    """What a folder tells of its run. `problems`: a line for each file that is missing or cannot be read."""

    folder: Path
    asked: Asked | None
    environment: dict[str, Any]
    epochs: list[Epoch]
    result: Result | None
    when: datetime | None
    problems: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """The whole config by section and key, as it was saved."""
        return self.asked.config if self.asked else {}

    def setting(self, section: str, key: str) -> Any:
        """A setting's value, or None where the run says none."""
        return self.settings.get(section, {}).get(key)

    @property
    def model(self) -> str:
        refit = self.asked is not None and self.asked.refit_epochs is not None
        return f"{self.setting('model', 'name') or ''}{' (refit)' if refit else ''}"

    @property
    def dataset(self) -> str:
        return Path(self.asked.dataset).name if self.asked else ""

    @property
    def fingerprint(self) -> str | None:
        return self.asked.fingerprint if self.asked else None

    @property
    def metric(self) -> str:
        """The validation metric that chooses the best epoch."""
        return str(self.setting("train", "metric") or "")

    @property
    def trained(self) -> int:
        """Epochs that are done."""
        return self.result.epochs if self.result else max((row.epoch for row in self.epochs), default=0)

    @property
    def state(self) -> str:
        """finished, or unfinished at epoch n; or which files are missing or damaged."""
        if self.problems:
            return "; ".join(problem.partition(": ")[0] for problem in self.problems)
        return "finished" if self.result else f"unfinished at epoch {self.trained}"

    @cached_property
    def best(self) -> Epoch | None:
        """The best epoch, so far if the run is unfinished."""
        if self.result:
            return next((row for row in self.epochs if row.epoch == self.result.best_epoch), None)
        return next((row for row in reversed(self.epochs) if row.best), None)

    @property
    def best_epoch(self) -> int | None:
        return self.result.best_epoch if self.result else self.best.epoch if self.best else None

    @property
    def validation(self) -> Metrics:
        """Metrics of the best epoch, so far if the run is unfinished."""
        return self.result.metrics if self.result else self.best.metrics if self.best else {}

    @property
    def popularity(self) -> Metrics:
        """Popularity's on validation."""
        return self.result.popularity if self.result else self.best.popularity if self.best else {}

    @property
    def test(self) -> Metrics:
        return self.result.test if self.result else {}

    @property
    def test_popularity(self) -> Metrics:
        return self.result.test_popularity if self.result else {}

    @property
    def events_per_second(self) -> float | None:
        """Of the median epoch: the first one reads files, and later ones may read memory."""
        speeds = [row.events_per_second for row in self.epochs if row.events_per_second]
        return median(speeds) if speeds else None

    @property
    def changed(self) -> dict[str, tuple[Any, Any]]:
        """Settings that are not this release's defaults: section.key to (the run's, the default or None)."""
        default = Config().model_dump(mode="json")
        told = {(section, key): value for section, keys in self.settings.items() for key, value in keys.items()}
        defaults = {name: default.get(name[0], {}).get(name[1]) for name in told}
        return {".".join(name): (value, defaults[name]) for name, value in told.items() if value != defaults[name]}

    def files(self) -> Iterator[tuple[str, int]]:
        """Name and bytes of everything in the folder; a folder counts as what is in it, and ends in a slash."""
        for path in sorted(_inside(self.folder)):
            stats = [_stat(file) for file in (_files_under(path) if path.is_dir() else [path])]
            yield path.name + "/" * path.is_dir(), sum(stat.st_size for stat in stats if stat)


def find_run(run: Path, storage: Path) -> Run:
    """A run by the path of its folder, or by its name under `storage`. Raises DataError where neither is a run's folder."""
    if (folder := folder_of(run, storage)) is not None:
        return read_run(folder)
    names = [folder.name for folder in _inside(storage) if _is_run(folder)]
    near = difflib.get_close_matches(run.name, names, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]}?" if near else "Give its path, or its name and --storage with the folder it lies in."
    raise DataError(f"{run}: no run folder there, and none of that name in {storage}. {hint}")


def folder_of(run: Path, storage: Path = Path("runs")) -> Path | None:
    """Where a run lies that is named by its path, or by its name under `storage`; None where neither is a run's folder."""
    return next((folder for folder in (run, storage / run) if _is_run(folder)), None)


def find_runs(storage: Path) -> list[Run]:
    """Every run in a folder of runs, newest last. Raises DataError if there is no such folder."""
    if not storage.is_dir():
        raise DataError(f"{storage}: no such folder. `recsys train DATASET` makes it; give another as STORAGE.")
    found = [read_run(folder) for folder in _inside(storage) if _is_run(folder)]
    return sorted(found, key=lambda run: (run.when.timestamp() if run.when else 0.0, run.name))


def read_run(folder: Path) -> Run:
    """Read a run's folder. Nothing is raised, whatever is in it: see `problems`."""
    folder = folder.absolute()  # `.` has no name
    problems: list[str] = []

    def tried(name: str, read: Callable[[Path], Kind], otherwise: Kind) -> Kind:
        try:
            return read(folder / name)
        except (RecsysError, OSError, ValueError, RecursionError) as error:
            problems.append(f"{name} unreadable: {_reason(error)}")
            return otherwise

    asked = tried(runs.CONFIG, lambda path: _file(path, Asked | None), None)
    if asked is None and not problems:
        problems.append(f"half-written, no {runs.CONFIG}: its start was cut off. Delete the folder and train again.")
    return Run(
        folder=folder,
        asked=asked,
        environment=tried(runs.ENVIRONMENT, lambda path: _file(path, dict[str, Any] | None) or {}, {}),
        epochs=tried(runs.METRICS, lambda path: TypeAdapter(list[Epoch]).validate_python(runs.read_rows(path.parent)), []),
        result=tried(runs.RESULT, lambda path: _file(path, Result | None), None),
        when=_when(folder),
        problems=tuple(problems),
    )


def _file(path: Path, kind: Any) -> Any:
    return TypeAdapter(kind).validate_python(runs.read_json(path))


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'content'}: {first['msg'].lower()}"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _is_run(folder: Path) -> bool:
    """Whether a folder holds what only a run leaves, or might: one that cannot be listed is reported rather than hidden."""
    try:
        names = {path.name for path in folder.iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return bool(names & OF_A_RUN) or any(name.startswith("checkpoint_") for name in names)


def _when(folder: Path) -> datetime | None:
    """When the run last got further, in local time."""
    stats = [_stat(folder / name) for name in (runs.RESULT, runs.METRICS, runs.CONFIG)]
    times = [stat.st_mtime for stat in stats if stat] or [stat.st_mtime for stat in [_stat(folder)] if stat]
    return datetime.fromtimestamp(max(times)).astimezone() if times else None


def _inside(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError:
        return []


def _files_under(folder: Path) -> list[Path]:
    """All files, however deep. A folder that training deletes meanwhile is passed over, which `Path.rglob` does not do."""
    return [Path(place, name) for place, _, names in os.walk(folder) for name in names]


def _stat(path: Path) -> os.stat_result | None:
    """None for what is gone, or never was."""
    try:
        return path.stat()
    except OSError:
        return None
