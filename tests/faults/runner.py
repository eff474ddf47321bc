"""`python train.py` as people run it, watched from outside: what it prints, its processes, and what it leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from recsys.training import checkpoint
from tests.processes import below

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "model.dim": 16,
    "model.negatives": 32,
    "train.batch_size": 64,
    "train.learning_rate": 0.01,
    "train.precision": "fp32",
    "train.threads": 1,
    "train.epochs": 2,
    "cluster.num_workers": 2,
    "cluster.readers": 1,
    "cluster.window_events": 5000,
    "cluster.checkpoint_steps": 100,
    "cluster.object_store_bytes": 200 << 20,
}


class Training:
    """One start of a run in a process of its own, with a Ray of its own."""

    def __init__(
        self, dataset: Path, runs: Path, name: str, environment: dict[str, str] | None = None, **settings: Any
    ) -> None:
        """settings: `section__key=value`."""
        self.run, self.broken = runs / name, 0.0
        chosen = SETTINGS | {"cluster.storage": runs} | {key.replace("__", "."): value for key, value in settings.items()}
        sets = [part for key, value in chosen.items() for part in ("--set", f"{key}={value}")]
        kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), str(dataset), *sets, "--name", name],
            cwd=runs.parent,
            env=kept | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_until(self, happened: Callable[[], bool], seconds: float = 240) -> None:
        """Look again and again, as long as the run goes on."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert self.process.poll() is None, self.finish()
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.02)

    def is_at(self, epoch: int, step: int) -> bool:
        """Whether it has come so far."""
        try:
            word = json.loads((self.run / "progress.json").read_text())
        except (OSError, ValueError):
            return False
        return (word["epoch"], word["step"]) >= (epoch, step)

    def breaks(self) -> None:
        """Note when it is broken; what came of it goes to $FAULTS_REPORT, a file of JSON lines, where that is set."""
        self.broken = time.time()

    def workers(self) -> list[psutil.Process]:
        """Its training workers, by rank's age."""
        return self.family("RayTrainWorker")

    def family(self, name: str) -> list[psutil.Process]:
        """Its processes whose command has `name`."""
        return below(psutil.Process(self.process.pid), name)

    def finish(self, seconds: float = 480) -> "Ended":
        """Its end."""
        out, err = self.process.communicate(timeout=seconds)
        ended = Ended(self.process.returncode, out, err, self.run)
        if (report := os.environ.get("FAULTS_REPORT")) and self.broken:
            resume = next((r for r in ended.resumes() if r["at"] > self.broken), {})
            recovered = resume["at"] - self.broken if resume else None
            lost = {name: resume.get(name) for name in ("lost_steps", "lost_seconds")}
            with Path(report).open("a") as file:
                file.write(json.dumps({"run": self.run.name, "code": ended.code, "recovered_after": recovered, **lost}) + "\n")
        return ended

    def kill(self) -> None:
        """The driver alone, at once; Ray's processes notice and end by themselves."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=60)
        psutil.wait_procs(family, timeout=60)


class Ended:
    """What a start came to."""

    def __init__(self, code: int, out: str, err: str, run: Path) -> None:
        self.code, self.out, self.err, self.run = code, out, err, run

    def __repr__(self) -> str:
        return f"exit code {self.code}\n{self.out[-2000:]}\n{self.err[-4000:]}"

    @property
    def result(self) -> dict[str, Any]:
        """The last line."""
        assert self.code == 0, self
        return json.loads(self.out.splitlines()[-1])

    def weights(self) -> dict[str, torch.Tensor]:
        """The best epoch's."""
        return checkpoint.read_weights(self.run / "best")

    def rows(self) -> list[dict[str, Any]]:
        """metrics.jsonl"""
        return [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]

    def resumes(self) -> list[dict[str, Any]]:
        """resumes.jsonl"""
        path = self.run / "resumes.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def checkpoints(self) -> list[Path]:
        """Checkpoint folders that are left."""
        return sorted(path for path in self.run.glob("checkpoint_*") if path.is_dir())
