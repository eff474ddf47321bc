"""Train on Ray: start, watch and resume a run, and tell what came of it.

What takes long to load (PyTorch, Ray Train) is loaded where it is needed: bad settings are told at once, and PyTorch is
loaded while Ray starts, where a run is new.
"""

import contextlib
import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import interrupts, resuming, runs
from cluster.session import reader_cpus, refuse_without_gpus, session
from cluster.task import WORKER_ENVIRONMENT, RefitUntil, Task, unusual
from recsys.config import LOWER_IS_BETTER, MODEL_NAMES, RANKING_METRICS, Config, check_model, settled
from recsys.data import schema
from recsys.data.dataset import DatasetManifest, read_manifest
from recsys.data.histories import Histories
from recsys.errors import ConfigError, DataError, Interrupted, RecsysError

OnEpoch = Callable[[dict[str, Any]], None]
OnStep = Callable[[int, int, int], None]
OnNote = Callable[[str], None]


@dataclass(frozen=True)
class RunResult:
    """A finished run. metrics and popularity are on validation, test and test_popularity on test, all of the best epoch.

    resumed_from: epochs an earlier start had already finished; seconds: of this start; already_finished: it had nothing
    left to do; trend: what `cluster.trends` chose.
    """

    folder: Path
    metrics: dict[str, float]
    popularity: dict[str, float]
    test: dict[str, float]
    test_popularity: dict[str, float]
    epochs: int
    best_epoch: int
    resumed_from: int | None
    seconds: float
    already_finished: bool
    trend: dict[str, Any] | None = None


def train(
    dataset: Path,
    config: Config,
    *,
    name: str | None = None,
    on_epoch: OnEpoch | None = None,
    on_step: OnStep | None = None,
    on_note: OnNote | None = None,
    refit_epochs: int | None = None,
    refit_until: RefitUntil = "end",
    refit_rates: Sequence[float] | None = None,
    measure_test: bool = True,
    begin_from: Path | None = None,
    teacher: Path | None = None,
) -> RunResult:
    """Train on a dataset folder and leave a run folder under `config.cluster.storage`.

    The same call again goes on where an earlier one was stopped, or returns its result if it had finished.

    name: of the run; unset: by model, dataset and settings. on_epoch: told each row of metrics.jsonl as it comes.
    on_step: told (epoch, step, steps) now and then. on_note: told what people should know, in words. refit_epochs: train
    for so many epochs, without validation: on all segments, or with refit_until = "test" on those before test, which is then
    measured. refit_rates: the learning rate of each of these epochs, as of the run that chose how many (`runs.learning_rates`).
    measure_test: False leaves test alone. begin_from: a finished run, of another dataset as a rule, whose rows of users and
    items that are in this one, too, are begun with. teacher: a finished run of this dataset, whose scores are learnt from, too.
    With cluster.num_workers = 0 a second Ctrl-C, or 25 s after SIGTERM, leave a thread that still trains: end the process then.
    Raises DataError, ConfigError, Interrupted when Ctrl-C or SIGTERM asked for an end and a checkpoint was left, or RecsysError
    where another process trains this run, or training failed more often than `cluster.max_failures`.
    """
    began = time.monotonic()
    dataset = Path(dataset).resolve()
    manifest = read_manifest(dataset)
    check(manifest, config, dataset)
    refuse_without_gpus(config.cluster)
    begin_from = Path(begin_from).resolve() if begin_from is not None else None
    config = _settled(config, manifest, begin_from)
    teacher = Path(teacher).resolve() if teacher is not None else None
    rates = None if refit_rates is None else tuple(refit_rates)
    more = unusual(refit_until=refit_until, refit_rates=rates, measure_test=measure_test, teacher=teacher)
    folder = runs.run_folder(config, name or runs.default_name(manifest, config, refit_epochs, begin_from, more))
    if begin_from is not None and not (folder / runs.CONFIG).exists():  # else it began before
        from cluster import warm

        warm.check(begin_from, dataset, config)
    if teacher is not None and not (folder / runs.RESULT).exists():
        from cluster import teaching

        teaching.check(teacher, dataset, config)
    with runs.held(folder), ThreadPoolExecutor(1) as aside:
        before = runs.claim(folder, dataset, manifest, config, refit_epochs, begin_from, more)
        watch = _Watch(folder, before.epochs, on_epoch, on_step, on_note)
        if not before.finished:
            asked = (refit_epochs, begin_from, refit_until, rates, measure_test, teacher)
            with _ray(manifest, config, watch) as cpus:
                _run(Task(dataset, folder, config, cpus, *asked), watch)
                aside.submit(_draw, folder, config, watch)  # while Ray shuts down
        elif not (folder / runs.CURVES).exists():  # the start before was killed before it had drawn them
            _draw(folder, config, watch)
    return _result(folder, before, time.monotonic() - began)


@contextlib.contextmanager
def _ray(manifest: DatasetManifest, config: Config, watch: "_Watch") -> Iterator[float | None]:
    """For a `with`: Ray, unless this process trains and streams nothing. Gives `Task.reader_cpus`."""
    cluster = config.cluster
    if cluster.in_process:
        for name, value in WORKER_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from cluster.held import fit_in_memory
        from recsys.models import MODELS

        batch = getattr(MODELS[config.model.name], "batch", None)  # without, a model holds all or reads no events
        if batch is None or fit_in_memory(manifest.user_files, cluster.hold_bytes, 1, whole_rows=batch is Histories):
            watch.note(f"Run {watch.folder}: training in this process.")
            yield None
            return
    workers = "1 worker" if cluster.most_workers == 1 else f"{cluster.most_workers} workers"
    started = "Ray" if cluster.in_process else f"Ray and {workers}"
    watch.note(f"Run {watch.folder}: starting {started}, which takes a while.")
    with session(cluster, only_trains=True):
        yield reader_cpus(cluster)


def _draw(folder: Path, config: Config, watch: "_Watch") -> None:
    """The curves of a finished run, which is worth more than its picture: one that cannot be drawn is told and left."""
    if not (rows := runs.read_rows(folder)):
        return
    staged = folder / f".{runs.CURVES}.{os.getpid()}"
    try:
        from cluster.curves import draw_training  # matplotlib takes a while to load

        draw_training(rows, staged, title=folder.name, metric=config.train.metric)
        staged.replace(folder / runs.CURVES)
    except Exception as error:
        watch.note(f"{folder / runs.CURVES} cannot be drawn: {error}")
        with contextlib.suppress(OSError):
            staged.unlink(missing_ok=True)


def check(manifest: DatasetManifest, config: Config, dataset: Path) -> None:
    """What would otherwise come out only on a worker, an epoch later. Raises DataError or ConfigError."""
    if not any(file.events for file in manifest.user_files):
        raise DataError(f"{dataset}: no events at all. Prepare it from other sources, or with milder filters.")
    if not manifest.segments[schema.TRAIN]:
        raise DataError(f"{dataset}: no train events: everything is held out. Prepare it with another split.")
    if config.model.name not in MODEL_NAMES:
        raise ConfigError(f"model.name = {config.model.name!r}: no such model. There are: {', '.join(MODEL_NAMES)}.")
    check_model(config.model)
    metric, at, k = config.train.metric.partition("@")
    ranks = metric in (*RANKING_METRICS, "coverage") and bool(at) and k.isdigit() and int(k) > 0
    rates = config.train.metric in LOWER_IS_BETTER and config.model.loss == "mse"
    if not (ranks or rates):
        raise ConfigError(
            f"train.metric = {config.train.metric!r}: give one of {', '.join(RANKING_METRICS)} with @k, such as ndcg@10; "
            "or, with model.loss = mse, rmse or mae."
        )


def _run(task: Task, watch: "_Watch") -> None:
    """Fit in a thread, so that this one can watch, and be asked to stop."""

    def fit() -> None:
        from cluster.fit import trainer
        from recsys.training.hardware import kept_as_it_was

        with kept_as_it_was() if task.config.cluster.in_process else contextlib.nullcontext():
            trainer(task).fit()

    def ask() -> None:
        runs.ask_to_stop(task.folder)
        watch.note("Stopping after a checkpoint. Ctrl-C again stops at once.")

    request, failure = interrupts.beside(fit, ask, watch.look)
    watch.look()
    if failure is not None:
        from cluster.own_errors import own_error

        raise own_error(failure) or _failed(task, failure) from failure
    if runs.read_json(task.folder / runs.RESULT) is None:
        raise Interrupted(f"Stopped. The same command goes on from {task.folder}.", request.signal or signal.SIGTERM)


def _failed(task: Task, error: BaseException) -> RecsysError:
    if task.config.cluster.in_process:
        what = "".join(traceback.format_exception(error)).strip()
        return RecsysError(f"Training failed:\n{what}\nThe same command goes on from the last checkpoint in {task.folder}.")
    return RecsysError(
        f"Training failed and was not started again (cluster.max_failures = {task.config.cluster.max_failures}):\n{error}\n"
        f"The same command goes on from the last checkpoint in {task.folder}."
    )


class _Watch:
    """Reads what the workers write into the run folder, and tells it: they may be on other hosts, and outlive no promise."""

    def __init__(
        self, folder: Path, epochs: int, on_epoch: OnEpoch | None, on_step: OnStep | None, on_note: OnNote | None
    ) -> None:
        self.folder, self.told, self.on_epoch, self.on_step, self.on_note = folder, epochs, on_epoch, on_step, on_note
        self.progress: dict[str, Any] = {}
        self.noted = {name: len(runs.read_lines(folder / name)) for name in (runs.RESUMES, runs.WARNINGS)}

    def note(self, text: str) -> None:
        """Tell something in words."""
        if self.on_note:
            self.on_note(text)

    def look(self) -> None:
        """Tell what is new."""
        if self.on_step and (progress := runs.read_json(self.folder / runs.PROGRESS)) not in (None, self.progress):
            self.progress = progress
            self.on_step(progress["epoch"], progress["step"], progress["steps"])
        for row in runs.read_rows(self.folder):
            if row["epoch"] > self.told:
                self.told = row["epoch"]
                if self.on_epoch:
                    self.on_epoch(row)
        for name in self.noted:
            lines = runs.read_lines(self.folder / name)
            for line in lines[self.noted[name] :]:
                self.note(resuming.line(line) if name == runs.RESUMES else line["warning"])
            self.noted[name] = len(lines)


def _settled(config: Config, manifest: DatasetManifest, begin_from: Path | None) -> Config:
    begun = None if begin_from is None else runs.dimensions(begin_from)
    return settled(config, manifest.users, manifest.items, manifest.events, begun)


def _result(folder: Path, before: runs.Before, seconds: float) -> RunResult:
    result = json.loads((folder / runs.RESULT).read_bytes())
    told = {name: result[name] for name in ("metrics", "popularity", "test", "test_popularity", "epochs", "best_epoch")}
    resumed = before.epochs if before.epochs and not before.finished else None
    told["trend"] = result.get("trend")  # no older run has one
    return RunResult(folder=folder, resumed_from=resumed, seconds=seconds, already_finished=before.finished, **told)
