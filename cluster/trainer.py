"""Train on Ray: a TorchTrainer round `worker.train_on_worker`. Starts, watches, resumes, and tells what came of it."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from cluster import interrupts, resuming, runs, warm
from cluster.session import reader_cpus, session, takes_gpu
from cluster.share import Task
from cluster.worker import train_on_worker
from recsys.config import Config
from recsys.data import schema
from recsys.data.dataset import DatasetManifest, read_manifest
from recsys.errors import ConfigError, DataError, Interrupted, RecsysError
from recsys.evaluation.metrics import RANKING
from recsys.models import MODELS

POLL_SECONDS = 0.2

# A thread of OpenMP that waits for its fellows sleeps instead of spinning: where readers or other work share the cores, a
# spinning thread keeps from them the very core it waits for (docs/log.md has the figures).
WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}

OnEpoch = Callable[[dict[str, Any]], None]
OnStep = Callable[[int, int, int], None]
OnNote = Callable[[str], None]


@dataclass(frozen=True)
class RunResult:
    """A finished run. metrics and popularity are on validation, test and test_popularity on test, all of the best epoch.

    resumed_from: epochs an earlier start had already finished; seconds: of this start; already_finished: it had nothing
    left to do.
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


def train(
    dataset: Path,
    config: Config,
    *,
    name: str | None = None,
    on_epoch: OnEpoch | None = None,
    on_step: OnStep | None = None,
    on_note: OnNote | None = None,
    refit_epochs: int | None = None,
    begin_from: Path | None = None,
) -> RunResult:
    """Train on a dataset folder and leave a run folder under `config.cluster.storage`.

    The same call again goes on where an earlier one was stopped, or returns its result if it had finished.

    name: of the run; unset: by model, dataset and settings. on_epoch: told each row of metrics.jsonl as it comes.
    on_step: told (epoch, step, steps) now and then. on_note: told what people should know, in words. refit_epochs: train on
    all segments for so many epochs, measuring nothing. begin_from: a finished run, of another dataset as a rule, whose rows of
    users and items that are in this one, too, are begun with.
    Raises DataError, ConfigError, Interrupted when Ctrl-C or SIGTERM asked for an end and a checkpoint was left, or
    RecsysError when training failed more often than `cluster.max_failures`.
    """
    began = time.monotonic()
    dataset = Path(dataset).resolve()
    manifest = read_manifest(dataset)
    _check(manifest, config, dataset)
    if begin_from is not None:
        begin_from = Path(begin_from).resolve()
        warm.check(begin_from, config)
    folder = runs.run_folder(config, name or runs.default_name(manifest, config, refit_epochs, begin_from))
    before = runs.claim(folder, dataset, manifest, config, refit_epochs, begin_from)
    if not before.finished:
        with session(config.cluster):
            task = Task(dataset, folder, config, reader_cpus(config.cluster), refit_epochs, begin_from)
            _run(task, _Watch(folder, before.epochs, on_epoch, on_step, on_note))
    return _result(folder, before, time.monotonic() - began)


def _check(manifest: DatasetManifest, config: Config, dataset: Path) -> None:
    """What would otherwise come out only on a worker, an epoch later."""
    if not any(file.events for file in manifest.user_files):
        raise DataError(f"{dataset}: no events at all. Prepare it from other sources, or with milder filters.")
    if not manifest.segments[schema.TRAIN]:
        raise DataError(f"{dataset}: no train events: everything is held out. Prepare it with another split.")
    if config.model.name not in MODELS:
        raise ConfigError(f"model.name = {config.model.name!r}: no such model. There are: {', '.join(MODELS)}.")
    metric, at, k = config.train.metric.partition("@")
    ranks = metric in (*RANKING, "coverage") and bool(at) and k.isdigit() and int(k) > 0
    rates = config.train.metric in ("rmse", "mae") and config.model.loss == "mse"
    if not (ranks or rates):
        raise ConfigError(
            f"train.metric = {config.train.metric!r}: give one of {', '.join(RANKING)} with @k, such as ndcg@10; "
            "or, with model.loss = mse, rmse or mae."
        )


def _run(task: Task, watch: "_Watch") -> None:
    """Fit in a thread, so that this one can watch, and be asked to stop."""
    failures: list[BaseException] = []

    def fit() -> None:
        try:
            _trainer(task).fit()
        except BaseException as error:
            failures.append(error)

    def ask() -> None:
        runs.ask_to_stop(task.folder)
        watch.note("Stopping after a checkpoint. Ctrl-C again stops at once.")

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    with interrupts.listening(ask) as request:
        thread.start()
        while thread.is_alive() and not request.overdue():
            thread.join(POLL_SECONDS)
            watch.look()
    watch.look()
    if failures:
        raise own_error(failures[0]) or _failed(task, failures[0]) from failures[0]
    if runs.read_json(task.folder / runs.RESULT) is None:
        raise Interrupted(f"Stopped. The same command goes on from {task.folder}.", request.signal or signal.SIGTERM)


def _trainer(task: Task) -> TorchTrainer:
    cluster, gpu = task.config.cluster, takes_gpu(task.config.cluster)
    # The controller looks after its workers as often as this: it decides how soon an end or a death is noticed.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    return TorchTrainer(
        train_on_worker,
        train_loop_config={"task": task},
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=cluster.num_workers,  # type: ignore[arg-type]  # [least, most] is elastic
            use_gpu=gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if gpu else {}),
        ),
        run_config=RunConfig(
            name=task.folder.name,
            storage_path=str(task.folder.parent),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            worker_runtime_env={"env_vars": WORKER_ENVIRONMENT},  # type: ignore[call-arg]  # the same
            callbacks=[_StopOnOwnErrors()],  # type: ignore[list-item]  # Ray's hint is of its older kind
        ),
    )


class _StopOnOwnErrors(UserCallback):
    """Ray would start the workers again and again; but bad data and bad settings do not get better."""

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        for exception in worker_exceptions.values():
            if (error := own_error(exception)) is not None:
                raise error


def own_error(error: BaseException) -> RecsysError | None:
    """The project's own error among those that Ray wrapped round it, or None."""
    if isinstance(error, RecsysError):
        return type(error)(*error.args)
    inside = [getattr(error, name, None) for name in ("controller_failure", "_base_exc", "cause", "__cause__")]
    inside += list(getattr(error, "worker_failures", {}).values())
    found = (own_error(other) for other in inside if isinstance(other, BaseException))
    return next((one for one in found if one is not None), None)


def _failed(task: Task, error: BaseException) -> RecsysError:
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


def _result(folder: Path, before: runs.Before, seconds: float) -> RunResult:
    result = json.loads((folder / runs.RESULT).read_bytes())
    told = {name: result[name] for name in ("metrics", "popularity", "test", "test_popularity", "epochs", "best_epoch")}
    resumed = before.epochs if before.epochs and not before.finished else None
    return RunResult(folder=folder, resumed_from=resumed, seconds=seconds, already_finished=before.finished, **told)
