"""What the kernel tells of a machine, read from planted files."""

import math
import os
from pathlib import Path

import psutil
import pytest

from recsys.training import machine

GIB = 1 << 30


def plant(root: Path, **files: str) -> Path:
    """Files by path, `__` for a slash and `_dot_` for a dot."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    return plant(tmp_path / "proc", self__cgroup="0::/jobs/one\n")


@pytest.mark.parametrize(
    ("cpuinfo", "name", "bf16"),
    [
        (
            "model name\t: Planted CPU\nflags\t\t: fpu avx512_bf16 amx_bf16 avx512f\n",
            "Planted CPU",
            ("avx512_bf16", "amx_bf16"),
        ),
        ("model name : First\nflags : avx2 f16c\n\nmodel name : Second\nflags : avx512_bf16\n", "First", ()),
        ("Features\t: fp asimd bf16 i8mm\nmodel name : Arm\n", "Arm", ("bf16",)),
    ],
)
def test_the_processor_is_what_cpuinfo_says(proc, tmp_path, cpuinfo, name, bf16):
    plant(proc, cpuinfo=cpuinfo)
    found = machine.processor(proc, tmp_path)
    assert (found.name, found.bf16) == (name, bf16)


def test_where_the_kernel_says_nothing_all_allowed_cores_are_usable(tmp_path):
    found = machine.processor(tmp_path / "none", tmp_path / "none")
    assert found.name and found.bf16 == ()
    assert found.usable_cores == len(os.sched_getaffinity(0))
    assert 1 <= found.physical_cores <= found.logical_cores


@pytest.mark.parametrize(
    ("files", "usable"),
    [
        ({"jobs__one__cpu_dot_max": "50000 100000\n"}, 0.5),
        ({"jobs__one__cpu_dot_max": "max 100000\n", "jobs__cpu_dot_max": "25000 100000\n"}, 0.25),  # the tightest above counts
        ({"cpu_dot_max": "75000 100000\n"}, 0.75),  # inside a container, where the outer path does not exist
        ({"cpu_dot_max": "100000000 100000\n"}, math.inf),
        ({"other__cpu_dot_max": "50000 100000\n"}, math.inf),
    ],
)
def test_a_quota_of_cpus_is_respected(proc, tmp_path, files, usable):
    found = machine.processor(proc, plant(tmp_path / "cgroup", **files))
    assert found.usable_cores == min(usable, len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(("quota", "usable"), [("50000", 0.5), ("-1", math.inf)])
def test_a_quota_of_the_older_kind_too(tmp_path, quota, usable):
    proc = plant(tmp_path / "proc", self__cgroup="4:memory:/\n3:cpu,cpuacct:/job\n2:cpuset:/\n")
    files = {"cpu__job__cpu_dot_cfs_quota_us": quota + "\n", "cpu__job__cpu_dot_cfs_period_us": "100000\n"}
    found = machine.processor(proc, plant(tmp_path / "cgroup", **files))
    assert found.usable_cores == min(usable, len(os.sched_getaffinity(0)))


def test_a_limit_of_memory_is_respected_and_caches_count_as_free(proc, tmp_path):
    files = {"memory_dot_max": "1000\n", "memory_dot_current": "700\n", "memory_dot_stat": "anon 300\ninactive_file 400\n"}
    assert machine.memory(proc, plant(tmp_path / "cgroup", **files)) == machine.Memory(total=1000, free=700)


def test_a_limit_of_memory_of_the_older_kind_too(tmp_path):
    proc = plant(tmp_path / "proc", self__cgroup="4:memory:/job\n")
    files = {
        "memory__job__memory_dot_limit_in_bytes": "1000\n",
        "memory__job__memory_dot_usage_in_bytes": "1200\n",
        "memory__job__memory_dot_stat": "inactive_file 1\ntotal_inactive_file 100\n",
        "memory__memory_dot_limit_in_bytes": "9223372036854771712\n",
    }
    assert machine.memory(proc, plant(tmp_path / "cgroup", **files)) == machine.Memory(total=1000, free=0)


def test_without_a_limit_it_is_the_hosts_memory(proc, tmp_path):
    found = machine.memory(proc, plant(tmp_path / "cgroup", memory_dot_max="max\n", memory_dot_current="5\n"))
    assert found.total == psutil.virtual_memory().total and 0 < found.free < found.total


def test_gpus_of_the_driver_are_counted(tmp_path):
    assert machine.driver_gpus(tmp_path) == 0
    plant(tmp_path, driver__nvidia__gpus__a__information="", driver__nvidia__gpus__b__information="")
    assert machine.driver_gpus(tmp_path) == 2


def test_this_machine():
    found = machine.found()
    assert found.device == ("cuda" if found.gpus else "cpu") and found.name
    assert found.fp32_gflops > 0.1 and found.bf16_gflops > 0.001
    assert 0 < found.processor.usable_cores <= found.processor.logical_cores
    assert 0 < found.memory.free <= found.memory.total > GIB
