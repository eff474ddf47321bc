"""The folder of a run: its name, what is in it, and whether it may be gone on with."""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cluster.task import USUAL
from recsys import __version__
from recsys.config import Config
from recsys.data.dataset import DatasetManifest
from recsys.errors import ConfigError, DataError, RecsysError

CONFIG, ENVIRONMENT, METRICS, PROGRESS = "config.json", "environment.json", "metrics.jsonl", "progress.json"
CURVES, RESULT, BEST = "curves.png", "result.json", "best"
STOP, RESUMES, WARNINGS, LOCK = "stop", "resumes.jsonl", "warnings.jsonl", ".lock"

# What people are told of a run that is asked to be another, and what a resume keeps of environment.json.
CALLED = {"fingerprint": "another dataset, or prepared anew with other content: fingerprint"}
BEGUN = ("begun_from", "known_to_rank_0")
LIBRARIES = ("ray", "torch", "numpy", "pyarrow", "pandas", "faiss-cpu")


def run_folder(config: Config, name: str) -> Path:
    """Absolute, because workers run elsewhere. Raises ConfigError for storage that is not a mounted folder."""
    storage = config.cluster.storage
    if "://" in storage:
        raise ConfigError(f"cluster.storage = {storage}: runs need a folder that all hosts mount. Give its path.")
    return Path(storage).resolve() / plain_name(name)


def plain_name(name: str) -> str:
    """The name. Raises ConfigError for one that is no folder's."""
    if Path(name).name != name:
        raise ConfigError(f"--name {name}: a run's name is one folder name, without slashes.")
    return name


def default_name(
    manifest: DatasetManifest,
    config: Config,
    refit_epochs: int | None = None,
    begun_from: Path | None = None,
    unusual: Mapping[str, Any] | None = None,
) -> str:
    """`<model>-<8 hex>` of what decides the result: the dataset, and every setting but the cluster's and the encoder's.

    So the same command finds its own run again, with whatever number of workers. unusual: what `task.unusual` gives.
    """
    settings = config.model_dump(mode="json", exclude={"cluster", "encoder"})
    decisive = {"dataset": manifest.fingerprint, "refit": refit_epochs, **settings} | dict(unusual or {})
    if begun_from is not None:
        decisive["begun_from"] = begun_from.name
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    return f"{config.model.name}-{digest[:8]}"


@dataclass(frozen=True)
class Before:
    """What an earlier start of the run has left: finished epochs, and whether that was all."""

    epochs: int = 0
    finished: bool = False


def claim(
    folder: Path,
    dataset: Path,
    manifest: DatasetManifest,
    config: Config,
    refit_epochs: int | None,
    begun_from: Path | None = None,
    unusual: Mapping[str, Any] | None = None,
) -> Before:
    """Make the run folder and note in it what is trained, or find there what an earlier start of the same has left.

    Raises ConfigError with the differences where a run of that name trains something else.
    """
    told = {"dataset": str(dataset), "fingerprint": manifest.fingerprint, "refit_epochs": refit_epochs}
    told["begun_from"] = str(begun_from) if begun_from else None
    told |= unusual or {}
    saved = read_json(folder / CONFIG)
    if saved is not None:
        _refuse_another(folder, saved, told, config)
    rows, result = read_rows(folder), read_json(folder / RESULT)
    trained = rows[-1]["epoch"] if rows else 0
    if trained > (refit_epochs or config.train.epochs):
        raise ConfigError(
            f"{folder}: has trained {trained} epochs already, train.epochs = {config.train.epochs} would take some back. "
            f"Ask for {trained}, which ends it there, or for more, or give another --name."
        )
    finished = result is not None and _ends_alike(result["config"]["train"], config)
    if not finished:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (RESULT, STOP, CURVES):
            (folder / name).unlink(missing_ok=True)
        write_json(folder / CONFIG, {**told, "config": config.model_dump(mode="json")})
        begun = {name: value for name, value in (read_json(folder / ENVIRONMENT) or {}).items() if name in BEGUN}
        write_json(folder / ENVIRONMENT, begun | _software())
    return Before(trained, finished)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Only one start of a run at a time. Raises RecsysError naming the other; who dies lets go.

    The lock is the kernel's, and NFS carries it to other hosts. A folder that cannot be written is only looked at.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        yield
        return
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            other = file.read().strip()
            raise RecsysError(f"{folder}: is being trained {other}. Wait for it, or give another --name.") from None
        file.truncate(0)
        file.write(f"by process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        yield


def note_hardware(folder: Path, hardware: Mapping[str, Any]) -> None:
    """Add to environment.json what the workers compute with, which only they know."""
    note(folder, {"hardware": hardware})


def note(folder: Path, content: Mapping[str, Any]) -> None:
    """Add to environment.json, where there is room: a training is worth more than a note."""
    with contextlib.suppress(OSError):
        write_json(folder / ENVIRONMENT, {**(read_json(folder / ENVIRONMENT) or {}), **content})


def read_json(path: Path) -> dict[str, Any] | None:
    """None where there is no such file. Raises DataError where it is cut or altered."""
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}). Delete this run folder and train again.") from None
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the file in one go: a reader sees the old or the new, never half."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_text(json.dumps(content, indent=1), "utf-8")
    staged.replace(path)


def ask_to_stop(folder: Path) -> None:
    """Have the workers of a run leave a checkpoint and end. They may be on other hosts: what they share is the folder."""
    (folder / STOP).touch()


def asked_to_stop(folder: Path) -> bool:
    """Whether somebody has."""
    return (folder / STOP).exists()


def warn(folder: Path, text: str) -> None:
    """Leave a warning for who watches the run. Raises OSError where there is no room for it."""
    add_line(folder / WARNINGS, {"warning": text})


def add_line(path: Path, content: Mapping[str, Any]) -> None:
    """Append a line of JSON."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(content) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines of JSON. One that is just being written is left for later; one that a full disk has cut is passed over."""
    text = path.read_text("utf-8") if path.exists() else ""
    found = []
    for line in text.splitlines(keepends=True):
        with contextlib.suppress(ValueError):
            found += [json.loads(line)] if line.endswith("\n") else []
    return found


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Whole rows of metrics.jsonl."""
    return read_lines(folder / METRICS)


def learning_rates(folder: Path, epochs: int) -> tuple[float, ...] | None:
    """Of the first epochs of a run; None of a model without any. Raises DataError where metrics.jsonl does not tell them."""
    told = read_rows(folder)
    rates = {row["epoch"]: row["learning_rate"] for row in told if "learning_rate" in row}
    if told and not rates:
        return None
    if not rates.keys() >= set(range(1, epochs + 1)):
        raise DataError(f"{folder / METRICS}: does not tell the learning rates of {epochs} epochs. Train this run again.")
    return tuple(rates[epoch] for epoch in range(1, epochs + 1))


def dimensions(folder: Path) -> int | None:
    """Of a run's vectors; None where no run is."""
    found: int | None = ((read_json(folder / CONFIG) or {}).get("config") or {}).get("model", {}).get("dim")
    return found


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Replace metrics.jsonl."""
    staged = folder / f".{METRICS}"
    staged.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    staged.replace(folder / METRICS)


def _software() -> dict[str, Any]:
    """Versions of this project, Python and the libraries that decide a result, and the commit if there is one."""
    return {
        "recsys-cluster": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: version(name) for name in LIBRARIES},
    }


def _refuse_another(folder: Path, saved: dict[str, Any], told: dict[str, Any], config: Config) -> None:
    from recsys.training.checkpoint import differences  # it loads torch, which looking at runs can do without

    decisive = dict.fromkeys(("fingerprint", "refit_epochs", "begun_from")) | USUAL
    pairs = {name: (saved.get(name, usual), told.get(name, usual)) for name, usual in decisive.items()}
    changed = [f"{CALLED.get(name, name)}: {before} → {now}" for name, (before, now) in pairs.items() if before != now]
    changed += differences(saved["config"], config)
    if changed:
        raise ConfigError(
            f"{folder} is a run of something else:\n  " + "\n  ".join(changed) + "\n"
            "Take the old settings, give another --name, or delete that folder."
        )


def _ends_alike(train: dict[str, Any], config: Config) -> bool:
    """Whether training would end at the same epoch: if not, a finished run goes on."""
    now = config.model_dump(mode="json")["train"]
    return all(train[name] == now[name] for name in ("epochs", "patience", "metric_ks"))


def _commit() -> str | None:
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=10
        )
    except OSError:  # no git on this machine
        return None
    return done.stdout.strip() or None
