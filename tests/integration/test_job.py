"""`ray job submit` against a real cluster of one machine, on ports and in a folder of its own."""

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.datasets import planted_histories, write_dataset
from tests.processes import end, free_ports

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
TOKEN = secrets.token_hex(32)


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def address(environment: dict[str, str]) -> Iterator[str]:
    """A head node with its dashboard, which takes jobs; ended by its own process."""
    gcs, dashboard, grpc, agent = free_ports(4)
    with tempfile.TemporaryDirectory(prefix="rj", ignore_cleanup_errors=True) as folder:  # short: sockets live in it
        command = [
            str(RAY), "start", "--head", "--block", f"--port={gcs}", f"--temp-dir={folder}", "--num-cpus=4",
            "--include-dashboard=true", f"--dashboard-port={dashboard}", f"--dashboard-agent-grpc-port={grpc}",
            f"--dashboard-agent-listen-port={agent}", f"--object-store-memory={200 << 20}",
        ]  # fmt: skip
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as head:
            try:
                wait_for_jobs(f"http://127.0.0.1:{dashboard}", head)
                yield f"http://127.0.0.1:{dashboard}"
            finally:
                end(psutil.Process(head.pid))


def wait_for_jobs(address: str, head: subprocess.Popen) -> None:
    request = urllib.request.Request(f"{address}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert head.poll() is None, head.stdout.read().decode()
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.3)
    raise AssertionError("the head took no jobs within 90 seconds")


def submit(
    address: str, environment: dict[str, str], *arguments: str, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """options: of `ray job submit`."""
    entry = ["--working-dir", ".", *options, "--", sys.executable, "train.py", *arguments]
    return ray_job(address, environment, "submit", *entry)


def ray_job(address: str, environment: dict[str, str], verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(RAY), "job", verb, "--address", address, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)


def test_a_job_trains_on_the_cluster_it_is_in(address, environment, tmp_path):
    write_dataset(tmp_path / "dataset", planted_histories(), shards=6)
    sets = [
        "model.dim=16",
        "train.epochs=2",
        "train.batch_size=64",
        "cluster.readers=1",
        f"cluster.storage={tmp_path / 'runs'}",
    ]
    done = submit(address, environment, str(tmp_path / "dataset"), *[p for s in sets for p in ("--set", s)], "--name", "job")
    assert done.returncode == 0, done.stdout + done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [row["epoch"] for row in told[:-1]] == [1, 2]
    assert told[-1]["folder"] == str(tmp_path / "runs" / "job")
    assert json.loads((tmp_path / "runs" / "job" / "result.json").read_text())["test"] == told[-1]["test"]


def test_a_stopped_job_leaves_a_checkpoint_and_the_same_job_goes_on(address, environment, tmp_path):
    write_dataset(tmp_path / "dataset", planted_histories(users=3000), shards=6)
    sets = ["model.dim=8", "train.epochs=3", "train.batch_size=16", "cluster.readers=1", f"cluster.storage={tmp_path / 'runs'}"]
    arguments = [str(tmp_path / "dataset"), *[p for s in sets for p in ("--set", s)], "--name", "stopped"]
    run = tmp_path / "runs" / "stopped"
    begun = submit(address, environment, *arguments, options=("--no-wait", "--submission-id", "first"))
    assert begun.returncode == 0, begun.stdout + begun.stderr
    wait_for(lambda: (run / "progress.json").exists())
    stopped = ray_job(address, environment, "stop", "first")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert not (run / "result.json").exists() and list(run.glob("checkpoint_*/state.json"))
    again = submit(address, environment, *arguments)
    assert again.returncode == 0, again.stdout + again.stderr
    assert json.loads((run / "resumes.jsonl").read_text())["lost_steps"] <= 8, "the checkpoint was made when asked to stop"
    assert [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]


def wait_for(happened: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def test_a_job_that_cannot_be_done_fails_and_says_why(address, environment, tmp_path):
    done = submit(address, environment, str(tmp_path))
    assert done.returncode != 0
    assert "no dataset.json here" in done.stdout + done.stderr
