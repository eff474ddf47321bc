"""A process that gets nowhere is ended; one that was merely stopped is not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import sys, time
from pathlib import Path
from cluster.watchdog import watching
with watching(Path(sys.argv[1]), 0, 2) as alive:
    print("begun", flush=True)
    for _ in range(int(sys.argv[2])):
        alive()
        time.sleep(.1)
    time.sleep(float(sys.argv[3]))
print("over", flush=True)
"""


def begin(folder: Path, steps: int, then: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(folder), str(steps), str(then)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize("where", ["here", "nowhere"])
def test_one_that_hangs_is_ended_with_its_stacks_where_they_can_be_written(tmp_path: Path, where: str) -> None:
    folder = tmp_path if where == "here" else tmp_path / "missing"
    out, err = (process := begin(folder, 1, 60)).communicate(timeout=50)
    assert (process.returncode, out) == (86, "") and "No step for 2 seconds" in err
    if where == "here":
        assert "most recent call first" in (tmp_path / "stacks-rank0.txt").read_text()


def test_one_that_was_stopped_goes_on(tmp_path: Path) -> None:
    process = begin(tmp_path, 10, 0)
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    time.sleep(3)
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=50)
    assert (process.returncode, out) == (0, "over\n"), err
