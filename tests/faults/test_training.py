"""What clusters do to a training, and that it ends where an undisturbed one does. The numbers are those of the fault table
in docs/reliability.md."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from recsys.training import checkpoint
from tests.datasets import planted_histories, write_dataset
from tests.faults.runner import Ended, Training
from tests.processes import below, end, free_ports

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.timeout(1200)]

STEPS = 625  # of an epoch: 40,000 train events in batches of 64
INTERVAL = 100  # steps between checkpoints


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("faults")
    (root / "runs").mkdir()
    write_dataset(root / "dataset", planted_histories(users=4000), shards=8, row_group_events=800)
    return root


@pytest.fixture(scope="module")
def undisturbed(root) -> Ended:
    ended = Training(root / "dataset", root / "runs", "undisturbed").finish()
    assert ended.result["test"]["ndcg@10"] > 3 * ended.result["test_popularity"]["ndcg@10"]
    return ended


def start(root: Path, name: str, **more) -> Training:
    return Training(root / "dataset", root / "runs", name, **more)


def assert_same_end(ended: Ended, undisturbed: Ended) -> None:
    """To the bit: nothing was lost, nothing done twice, in the same order."""
    assert ended.result["test"] == undisturbed.result["test"]
    ours, theirs = ended.weights(), undisturbed.weights()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    for row, other in zip(ended.rows(), undisturbed.rows(), strict=True):
        assert (row["events"], row["steps"]) == (other["events"], other["steps"])
        assert row["loss"] == pytest.approx(other["loss"])


def without_a_worker(training: Training, undisturbed: Ended) -> tuple[Ended, dict[str, Any]]:
    """Kill one of them behind step 200 of the second epoch. The end, and what the resume told."""
    training.breaks()
    training.workers()[-1].kill()
    ended = training.finish()
    assert_same_end(ended, undisturbed)
    (resume,) = ended.resumes()
    assert resume["epoch"] == 2 and resume["step"] >= 200
    return ended, resume


def test_t1_a_worker_killed_within_an_epoch_costs_one_interval_at_most(root, undisturbed):
    training = start(root, "t1")
    training.wait_until(lambda: training.is_at(2, 250))
    ended, resume = without_a_worker(training, undisturbed)
    assert resume["lost_steps"] <= INTERVAL + 100  # the word of progress is half a second old
    assert f"{resume['lost_steps']} steps" in ended.err


def test_t1_a_checkpoint_that_ray_was_not_told_of_is_gone_on_from(root, undisturbed):
    """Ray hears of one when it next asks its workers. One of them dies before that: what it wrote is as good as any."""
    training = start(root, "t1-untold", environment={"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "5"})
    training.wait_until(lambda: (training.run / "checkpoint_00001_0000200" / "state.json").exists())
    ended, _ = without_a_worker(training, undisturbed)
    assert len(ended.checkpoints()) <= 3, "Ray was told of it later, and removes it in its turn"


def test_t2_a_lost_node_leaves_the_rest_to_fewer_workers(root, undisturbed):
    """Two nodes with room for one worker each; one of them goes. Every event is still used once an epoch."""
    with cluster_of(2, cpus=4) as (address, nodes, environment):
        training = start(root, "t2", environment=environment | {"RAY_ADDRESS": address}, cluster__num_workers="[1,2]",
                         cluster__cpus_per_worker=3)  # fmt: skip
        training.wait_until(lambda: training.is_at(2, 250))
        training.breaks()
        end(nodes[-1])
        ended = training.finish()
    assert (ended.rows()[0]["workers"], ended.rows()[-1]["workers"]) == (2, 1)
    assert {row["events"] for row in ended.rows()} == {row["events"] for row in undisturbed.rows()}
    assert ended.result["test"]["ndcg@10"] == pytest.approx(undisturbed.result["test"]["ndcg@10"], rel=0.05)


def test_t3_a_killed_driver_is_gone_on_with_by_the_same_command(root, undisturbed):
    first = start(root, "t3")
    first.wait_until(lambda: first.is_at(1, 250))
    first.kill()  # its workers outlive it by seconds, and what they still write counts
    again = start(root, "t3")
    again.breaks()
    ended = again.finish()
    assert_same_end(ended, undisturbed)
    resume = ended.resumes()[-1]
    assert (resume["epoch"], resume["step"]) >= (1, 200)


def test_t4_a_lost_head_ends_the_command_and_the_same_command_goes_on(root, undisturbed):
    first = start(root, "t4", environment={"RAY_gcs_rpc_server_reconnect_timeout_s": "2"})
    first.wait_until(lambda: first.is_at(1, 250))
    (gcs,) = first.family("gcs_server")
    gcs.kill()
    first.breaks()
    assert first.finish().code != 0
    again = start(root, "t4")
    again.breaks()
    ended = again.finish()
    assert_same_end(ended, undisturbed)
    assert ended.resumes(), "its workers had finished without it"


@pytest.mark.parametrize(("asked", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_t5_asked_to_stop_it_leaves_a_checkpoint_within_the_grace_period(root, undisturbed, asked, code):
    name = f"t5-{code}"
    first = start(root, name, cluster__checkpoint_steps="none")
    first.wait_until(lambda: first.is_at(2, 250))
    began = time.monotonic()
    first.process.send_signal(asked)
    ended = first.finish()
    assert (ended.code, time.monotonic() - began < 30) == (code, True), ended
    assert "same command goes on" in ended.err
    again = start(root, name, cluster__checkpoint_steps="none").finish()
    assert_same_end(again, undisturbed)
    assert again.result["resumed_from"] == 1
    assert again.resumes()[-1]["lost_steps"] <= 8, "a checkpoint was written just in time"


def test_other_numbers_of_workers_go_on_within_the_epoch(root, undisturbed):
    """Every event is used once, whoever began; the end is as good, though not the same bits."""
    often = {"cluster__checkpoint_steps": 8}  # so that a step is long beside the half second that its word takes
    for workers, at in ((1, (1, 50)), (2, (1, 250)), (3, (2, 50))):
        begun = start(root, "in-turn", cluster__num_workers=workers, **often)
        begun.wait_until(lambda begun=begun, at=at: begun.is_at(*at))
        begun.process.send_signal(signal.SIGTERM)
        assert begun.finish().code == 143
    ended = start(root, "in-turn", cluster__num_workers=1, **often).finish()
    assert [row["events"] for row in ended.rows()] == [row["events"] for row in undisturbed.rows()]
    assert [row["workers"] for row in ended.rows()] == [3, 1]
    resumes = [(resume["epoch"], resume["step"]) for resume in ended.resumes()]
    assert len(resumes) == 3 and resumes == sorted(resumes) and all(step % STEPS for _, step in resumes)
    assert ended.result["test"]["ndcg@10"] == pytest.approx(undisturbed.result["test"]["ndcg@10"], rel=0.05)


def test_t6_a_full_disk_keeps_the_checkpoint_before_and_the_run_goes_on(root, undisturbed, small_disk):
    training = Training(root / "dataset", small_disk / "runs", "t6")
    training.wait_until(lambda: training.is_at(1, 250))
    ballast = small_disk / "ballast"
    fill(ballast)
    time.sleep(3)  # some checkpoints find no room
    whole = [path for path in training.run.glob("checkpoint_*") if (path / "state.json").exists()]
    assert whole, "the checkpoint before stays"
    ballast.unlink()
    ended = training.finish()
    assert "Make room on the disk" in ended.err
    assert_same_end(ended, undisturbed)


def test_t7_a_loss_that_is_no_number_stops_at_once_and_leaves_the_last_finite_checkpoint(root):
    ended = start(root, "t7", train__learning_rate="1e30", train__optimizer="adagrad", cluster__checkpoint_steps=1).finish()
    assert ended.code == 5 and "learning_rate" in ended.err
    last = ended.checkpoints()[-1]
    assert all(tensor.isfinite().all() for tensor in checkpoint.read_weights(last).values())


def test_t9_a_hung_rank_is_noticed_and_the_group_started_again(root, undisturbed):
    training = start(root, "t9", cluster__stall_seconds=8)
    training.wait_until(lambda: training.is_at(2, 250))
    training.breaks()
    training.workers()[-1].suspend()
    ended = training.finish()
    assert_same_end(ended, undisturbed)
    stacks = list(ended.run.glob("stacks-rank*.txt"))
    assert stacks and "No step for 8 seconds" in stacks[0].read_text() and "Thread" in stacks[0].read_text()


def test_t11_repeated_crashes_leave_a_bounded_disk(root, undisturbed):
    training = start(root, "t11", cluster__max_failures=6)
    for epoch, step in ((1, 100), (1, 300), (1, 500), (2, 100), (2, 300)):
        training.wait_until(lambda at=(epoch, step): training.is_at(*at) and bool(training.workers()))
        training.workers()[0].kill()
        time.sleep(1)
    ended = training.finish(400)
    assert_same_end(ended, undisturbed)
    assert len(ended.checkpoints()) <= 3, ended.checkpoints()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 12 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("needs to mount a small file system, which takes root")
    (disk / "runs").mkdir()
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(path: Path) -> None:
    """Take all the room there is."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            return


@contextmanager
def cluster_of(nodes: int, cpus: int) -> Iterator[tuple[str, list[psutil.Process], dict[str, str]]]:
    """A Ray of several nodes on this machine, started by `ray start` as people do: (address, nodes, how to be let in)."""
    (port,) = free_ports(1)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    fast = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "4"}
    with tempfile.TemporaryDirectory(prefix="rf", ignore_cleanup_errors=True) as folder:  # short: sockets live in it
        head = ["--head", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false"]
        started = [ray_start(head, cpus, token | fast)]
        try:
            wait_for_port(port)
            started += [ray_start([f"--address=127.0.0.1:{port}"], cpus, token | fast) for _ in range(nodes - 1)]
            wait_for_raylets(started)
            yield f"127.0.0.1:{port}", [psutil.Process(node.pid) for node in started], token
        finally:
            for node in started:
                if node.poll() is None:
                    end(psutil.Process(node.pid))
                node.wait(timeout=30)


def ray_start(options: list[str], cpus: int, environment: dict[str, str]) -> subprocess.Popen:
    ray = str(Path(sys.executable).with_name("ray"))
    common = ["--block", f"--num-cpus={cpus}", f"--object-store-memory={200 << 20}", "--disable-usage-stats"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([ray, "start", *options, *common], env={**os.environ, **environment}, **quiet)


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the head did not come up")


def wait_for_raylets(nodes: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if all(below(psutil.Process(node.pid), "raylet/raylet") for node in nodes):
            time.sleep(3)  # to register
            return
        time.sleep(0.2)
    raise AssertionError("the nodes did not come up")
