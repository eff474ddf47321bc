"""Peers in pinned environments of their own: made on first use, and run as processes that train an epoch at a time.

What an environment holds is `peers/<name>.txt`; what runs in it is a script of `peers/` that speaks as `peers/turns.py` says.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.samples import cache_folder

PEERS = Path(__file__).with_name("peers")

# Whatever a peer computes with takes its number of threads from these.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class PeerError(Exception):
    """A peer cannot be installed or does not run; the text says why."""


class Peer:
    """A script of `peers/` in its environment, ready to train. It waits while others do."""

    def __init__(
        self, environment: str, script: str, *arguments: object, threads: int, folder: Path | None = None, blas_threads: int = 0
    ) -> None:
        """folder: where environments lie, and are made; unset: the user's cache. blas_threads: unless as many as `threads`.

        Raises PeerError.
        """
        command = [python_of(environment, (folder or cache_folder() / "peers").resolve()), PEERS / script, *arguments]
        limits = dict.fromkeys(THREADS, str(threads))
        if blas_threads:
            limits["OPENBLAS_NUM_THREADS"] = str(blas_threads)
        # Whatever it writes beside what it is asked for, and what it says of itself.
        self.folder = tempfile.TemporaryDirectory()
        self.said = Path(self.folder.name) / "said.txt"
        with self.said.open("w") as said:
            self.process = subprocess.Popen(
                [*map(str, command)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                cwd=self.folder.name,
                # Of ours nothing may be imported there.
                env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | limits,
            )
        self._answer()  # or it would still be loading while others are timed

    def epoch(self) -> dict[str, Any]:
        """What the peer tells of one more epoch. Raises PeerError."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # its answer says so, too
            print(file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        try:
            answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        except json.JSONDecodeError:
            code, said = self.process.wait(), last_line(self.said.read_text())
            self.close()
            raise PeerError(f"ended with {code}: {said}") from None
        return answer

    def close(self) -> None:
        """End it: it has nothing to keep."""
        self.process.kill()
        self.process.communicate()
        self.folder.cleanup()


def python_of(name: str, folder: Path) -> Path:
    """The interpreter of an environment, which is made where it is not there, or is not what `peers/<name>.txt` says."""
    wanted = PEERS / f"{name}.txt"
    version = ".".join(map(str, sys.version_info[:2]))
    place = folder / f"{name}-{version}-{hashlib.sha256(wanted.read_bytes()).hexdigest()[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another benchmark may be making it
        if not (place / ".ready").exists():
            print(f"making an environment for {name}: {place}", file=sys.stderr, flush=True)
            shutil.rmtree(place, ignore_errors=True)
            _run(sys.executable, "-m", "venv", place)
            _run(place / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", wanted)
            (place / ".ready").touch()
    return place / "bin" / "python"


def versions(name: str, packages: tuple[str, ...]) -> str:
    """The versions that a peer's environment has of some packages."""
    lines = (line.split("#")[0].strip().partition("==") for line in (PEERS / f"{name}.txt").read_text().splitlines())
    pinned = {package.lower(): version for package, _, version in lines}
    return ", ".join(f"{package} {pinned[package]}" for package in packages)


def options(parser: argparse.ArgumentParser) -> None:
    """What benchmarks against such peers have in common."""
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="for each, while the others wait")
    parser.add_argument("--environments", type=Path, help="folder of the peers' environments; unset: the user's cache")


def missing(failed: Mapping[str, str]) -> str:
    """For a page: who could not be run, and why."""
    lines = [f"- {name} could not be run: {reason}" for name, reason in failed.items()]
    return "\n".join(["", *lines, ""]) if lines else ""


def last_line(text: str) -> str:
    """What a traceback, or pip, ends with."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if "error" in line.lower()] or lines
    return told[-1][:300] if told else "nothing was said"


def _run(*command: object) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerError(f"not installed: {last_line(done.stderr)}")
