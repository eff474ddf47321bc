"""`recsys tune`: trials of settings on Ray Tune, chosen by Optuna, bad ones stopped early; the best is left as TOML."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from cluster import interrupts, runs
from cluster.session import session
from cluster.trainer import check
from cluster.tuning import trials
from cluster.tuning.space import Space, samples, trial_config
from cluster.tuning.trials import Trial
from cluster.tuning.watch import Watch, Watcher
from recsys.config import Config
from recsys.data import schema
from recsys.data.dataset import DatasetManifest, read_manifest
from recsys.errors import ConfigError, DataError, Interrupted, RecsysError

ABOUT, PICTURE = "tune.json", "trials.png"
RAY_TUNES_OWN = ".ray-tune"  # its records: pickles, which nobody reads back
SAMPLED = 64  # settings put together by chance, one of which a model must be able to have


@dataclass(frozen=True)
class Tuned:
    """What a tune has come to. best: None while no trial has finished within the limit; settings: its file for `--config`."""

    folder: Path
    trials: list[Trial]
    best: Trial | None
    settings: Path | None
    picture: Path | None


def tune(
    dataset: Path, space: Space, config: Config, *, name: str | None = None, at_once: int = 1, watcher: Watcher | None = None
) -> Tuned:
    """Try `space.search.trials` settings on top of `config` and leave `<config.cluster.storage>/<name>`: a run folder for each
    trial, trials.jsonl, best.toml and trials.png.

    The same call again goes on: trials that are over stay, others go on from their checkpoints; more trials are added.
    name: unset, by what decides the trials. at_once: trials that train at the same time, each with its own workers.
    Raises ConfigError, DataError, Interrupted when a signal asked for an end, or RecsysError where another process tunes there.
    """
    dataset = Path(dataset).resolve()
    manifest = read_manifest(dataset)
    about = _about(manifest, space, config)
    folder = runs.run_folder(config, name or _default_name(about))
    _refuse_impossible(space, config, manifest, dataset, folder)
    with runs.held(folder):
        _claim(folder, about)
        watch = Watch(folder, space, watcher)
        if _wanted(folder, space):
            watch.note(f"Tune {folder}: starting Ray for {at_once} at once, which takes a while.")
            with session(config.cluster, _workers(config, at_once), only_trains=True):
                _check_room(config, at_once)
                _run(folder, dataset, config, space, at_once, watch)
        return _result(folder, space, config, watch)


def _run(folder: Path, dataset: Path, config: Config, space: Space, at_once: int, watch: Watch) -> None:
    """Ray Tune in a thread, so that this one can watch, and be asked to stop."""
    from cluster.tuning.searcher import Trials

    searcher = Trials(folder, dataset, config, space, at_once=at_once, on_epoch=watch.epoch, on_trial=watch.trial)

    def ask() -> None:
        searcher.leave()
        watch.note("Stopping after checkpoints. Ctrl-C again stops at once.")

    def look() -> None:
        watch.look(searcher.running_trials())
        if searcher.leaving:
            searcher.leave()  # a run that has begun since must hear it, too

    request, failure = interrupts.beside(lambda: _tuner(folder, searcher).fit(), ask, look)
    shutil.rmtree(folder / RAY_TUNES_OWN, ignore_errors=True)
    if request.signal is not None:
        raise Interrupted(f"Stopped. The same command goes on from {folder}.", request.signal or signal.SIGTERM)
    if searcher.fatal:
        raise DataError(searcher.fatal)
    if failure is not None:
        raise RecsysError(f"Ray Tune failed: {failure}\nThe same command goes on from {folder}.") from failure


def _tuner(folder: Path, searcher: Any) -> Any:
    # Read when Ray Tune is made: no files of its own in each trial, no tables on the screen.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    from ray import tune as ray_tune

    from cluster.tuning.trial import run

    return ray_tune.Tuner(
        # The process that watches a run and measures it afterwards. The run's workers reserve CPUs of their own beside it.
        ray_tune.with_resources(run, {"CPU": 1}),
        tune_config=ray_tune.TuneConfig(
            search_alg=searcher,
            num_samples=-1,  # until the searcher has no more
            trial_name_creator=lambda trial: trial.config["run"],
            trial_dirname_creator=lambda trial: trial.config["run"],
        ),
        run_config=ray_tune.RunConfig(name=RAY_TUNES_OWN, storage_path=str(folder), verbose=0),
    )


def _workers(config: Config, at_once: int) -> int:
    """As many workers as reserve what all trials do, their watching processes, of one CPU each, included."""
    cluster = config.cluster
    return at_once * (cluster.most_workers + math.ceil(1 / cluster.cpus_per_worker))


def _check_room(config: Config, at_once: int) -> None:
    """A trial that waits for what other trials hold would wait for their end; one that waits for itself, for ever."""
    cluster, there = config.cluster, ray.cluster_resources()  # type: ignore[no-untyped-call]
    needed = at_once * (1 + cluster.most_workers * cluster.cpus_per_worker) + 1  # one reads
    if there.get("CPU", 0) < needed:
        raise ConfigError(
            f"--at-once {at_once}: takes {needed:g} CPUs, of which Ray has {there.get('CPU', 0):g}. Lower it, or "
            "cluster.num_workers."
        )
    gpus = there.get("GPU", 0) if cluster.use_gpu != "no" else 0
    if cluster.least_workers <= gpus < at_once * cluster.most_workers:
        raise ConfigError(f"--at-once {at_once}: takes a GPU for each worker, of which Ray has {gpus:g}. Lower it.")


def _refuse_impossible(space: Space, config: Config, manifest: DatasetManifest, dataset: Path, folder: Path) -> None:
    """Raises what is wrong, where nothing that was drawn from the space can be trained, or no trial chosen."""
    if not manifest.segments[schema.VALID]:
        raise DataError(f"{dataset}: holds nothing out for validation, so that no trial can be chosen. Prepare it with a part.")
    first: ConfigError | None = None
    for settings in samples(space, SAMPLED):
        try:
            return check(manifest, trial_config(config, space, settings, folder), dataset)
        except ConfigError as error:
            first = first or error
    assert first is not None
    raise first


def _about(manifest: DatasetManifest, space: Space, config: Config) -> dict[str, Any]:
    """What decides the trials."""
    base = config.model_dump(mode="json", exclude={"cluster", "data"})
    return {"dataset": manifest.fingerprint, **space.as_json(), "config": base}


def _default_name(about: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return f"tune-{digest[:8]}"


def _claim(folder: Path, about: dict[str, Any]) -> None:
    """Note in the folder what is tuned, or find there that it is the same. Raises ConfigError where it is not."""
    saved = runs.read_json(folder / ABOUT)
    if saved is None:
        if (folder / runs.CONFIG).exists():
            raise ConfigError(f"{folder} is a run, not a tune. Give another --name.")
        return runs.write_json(folder / ABOUT, about)
    told = json.loads(json.dumps(about))
    if changed := [part for part in told if saved.get(part) != told[part]]:
        raise ConfigError(f"{folder} is a tune of another {', '.join(changed)}. Give another --name, or delete that folder.")


def _wanted(folder: Path, space: Space) -> bool:
    """Whether anything is left to do."""
    known = trials.read(folder)
    done = sum(trial.state in trials.OVER and trial.state != trials.REFUSED for trial in known)
    return done < space.search.trials or any(trial.state not in trials.OVER for trial in known)


def _result(folder: Path, space: Space, config: Config, watch: Watch) -> Tuned:
    known = trials.read(folder)
    chosen = trials.best(known, space.goal)
    settings = None
    if chosen is not None:
        settings = folder / trials.BEST
        settings.write_text(trials.as_toml(chosen, config, space.goal, tune=folder.name), "utf-8")
    return Tuned(folder, known, chosen, settings, _draw(folder, known, space, watch))


def _draw(folder: Path, known: list[Trial], space: Space, watch: Watch) -> Path | None:
    """The picture, which is worth less than the trials: one that cannot be drawn is told and left."""
    staged = folder / f".{PICTURE}.{os.getpid()}"
    try:
        from cluster.tuning.picture import draw_trials  # matplotlib takes a while to load

        draw_trials(known, space, staged, title=folder.name)
        return staged.replace(folder / PICTURE)
    except Exception as error:
        watch.note(f"{folder / PICTURE} cannot be drawn: {error}")
        with contextlib.suppress(OSError):
            staged.unlink(missing_ok=True)
        return None
