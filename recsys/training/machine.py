"""What this machine is, for people and records: processor, memory, GPUs, and what its arithmetic measures."""

import math
import os
import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")

# Flags of /proc/cpuinfo that mean products of bf16 in hardware: two of x86, two of arm.
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16", "svebf16")

# Floating-point operations of the product that `gemm_seconds` times.
GEMM_FLOP = 2 * 1024 * 64 * 1024


@dataclass(frozen=True)
class Processor:
    """The CPU, and how much of it this process may use."""

    name: str
    physical_cores: int
    logical_cores: int
    usable_cores: float
    """What affinity and control groups leave; a quota may grant a fraction of a core."""
    bf16: tuple[str, ...]
    """Its instructions for bf16, by the kernel's names; empty: none."""


@dataclass(frozen=True)
class Memory:
    """Bytes, within the limits of this process's control groups."""

    total: int
    free: int
    """What can be had without swapping: caches that would give way count as free."""


@dataclass(frozen=True)
class Gpu:
    """One GPU that torch can use."""

    name: str
    memory: int
    """Bytes in all."""
    capability: tuple[int, int]
    """CUDA compute capability, such as (9, 0)."""


@dataclass(frozen=True)
class Machine:
    """What a process on this machine computes with."""

    processor: Processor
    memory: Memory
    gpus: tuple[Gpu, ...]
    fp32_gflops: float
    """GFLOP/s that one thread of the CPU reaches in the product of `hardware.gemm_seconds`."""
    bf16_gflops: float
    tf32: bool
    """Whether this process makes fp32 products on a GPU in TF32; `hardware.choose` turns that on."""
    cudnn: int | None
    """Version of cuDNN as torch counts it; None where torch has none."""

    @property
    def device(self) -> str:
        """cuda or cpu."""
        return "cuda" if self.gpus else "cpu"

    @property
    def name(self) -> str:
        """Name of the device: the first GPU's, or the CPU's."""
        return self.gpus[0].name if self.gpus else self.processor.name


def found(proc: Path = PROC, cgroups: Path = CGROUPS) -> Machine:
    """Describe this machine; takes about half a second, most of it to measure products.

    proc, cgroups: where the kernel tells of processor and control groups.
    """
    fp32, bf16 = (GEMM_FLOP / seconds / 1e9 for seconds in gemm_seconds(torch.float32, torch.bfloat16))
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    return Machine(processor(proc, cgroups), memory(proc, cgroups), gpus(), fp32, bf16, tf32_is_on(), cudnn)


def processor(proc: Path = PROC, cgroups: Path = CGROUPS) -> Processor:
    """The CPU by /proc/cpuinfo, and how many of its cores affinity and control groups leave to this process."""
    told = _fields(_read(proc / "cpuinfo"))
    flags = f"{told.get('flags', '')} {told.get('Features', '')}".split()
    allowed = len(os.sched_getaffinity(0))
    logical = psutil.cpu_count() or allowed
    return Processor(
        name=told.get("model name") or platform.processor() or platform.machine(),
        physical_cores=psutil.cpu_count(logical=False) or logical,
        logical_cores=logical,
        usable_cores=min(allowed, *map(_cpu_quota, control_groups(proc, cgroups, "cpu")), math.inf),
        bf16=tuple(flag for flag in BF16_FLAGS if flag in flags),
    )


def memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> Memory:
    """Total and free bytes of the host, or of the tightest control group."""
    host = psutil.virtual_memory()
    total, free = float(host.total), float(host.available)
    for folder in control_groups(proc, cgroups, "memory"):
        limit, used = _memory_limit(folder)
        total, free = min(total, limit), min(free, limit - used)
    return Memory(int(total), max(int(free), 0))


def gpus() -> tuple[Gpu, ...]:
    """The GPUs that torch can use, in its order."""
    every = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return tuple(Gpu(one.name, one.total_memory, (one.major, one.minor)) for one in every)


def tf32_is_on() -> bool:
    """Whether this process makes fp32 products on a GPU in TF32, which GPUs have from compute capability 8 on."""
    return torch.get_float32_matmul_precision() != "highest" and any(gpu.capability >= (8, 0) for gpu in gpus())


def driver_gpus(proc: Path = PROC) -> int:
    """NVIDIA GPUs that the kernel's driver knows, whether torch can use them or not."""
    return len(list((proc / "driver/nvidia/gpus").glob("*")))


def control_groups(proc: Path, cgroups: Path, controller: str) -> list[Path]:
    """Folders of the control groups that bind this process, v2 and v1, each followed by those above it.

    controller: cpu or memory. In a container the outer part of a path may not exist: then the root stands for it.
    """
    folders: list[Path] = []
    for line in _read(proc / "self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = cgroups / controller if controllers else cgroups
        own = base / path.lstrip("/")
        folders += [own, *(above for above in own.parents if above.is_relative_to(base))]
    return folders


def _cpu_quota(folder: Path) -> float:
    """CPUs that a control group grants; infinite where it sets no limit ("max" in v2, -1 in v1)."""
    v1 = [_read(folder / name).strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    quota, period = _read(folder / "cpu.max").split() or v1
    return int(quota) / int(period) if quota.isdigit() else math.inf


def _memory_limit(folder: Path) -> tuple[float, float]:
    """Bytes that a control group may hold, infinite where it sets no limit, and bytes that it cannot do without."""
    limit = _first(folder, ("memory.max", "memory.limit_in_bytes"))
    used = _first(folder, ("memory.current", "memory.usage_in_bytes"))
    stat = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
    cached = stat.get("total_inactive_file", stat.get("inactive_file", "0"))
    return (int(limit) if limit.isdigit() else math.inf), max(int(used or 0) - int(cached), 0)


def _first(folder: Path, names: Iterable[str]) -> str:
    return next((text for name in names if (text := _read(folder / name).strip())), "")


def _fields(cpuinfo: str) -> dict[str, str]:
    """The first value of each field."""
    told: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        told.setdefault(key.strip(), value.strip())
    return told


def _read(path: Path) -> str:
    """Empty where there is no such file."""
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""


def gemm_seconds(*dtypes: torch.dtype, repeats: int = 15) -> list[float]:
    """Seconds of a product as the softmax loss makes it, 1024 users × 64 by 64 × 1024 negatives: the best of some.

    By one thread, and in turn: the answer decides what a run computes, so a busy machine must not change it.
    """
    pairs = [(torch.ones(1024, 64, dtype=dtype), torch.ones(64, 1024, dtype=dtype)) for dtype in dtypes]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rounds = [[_seconds(*pair) for pair in pairs] for _ in range(repeats)]
    finally:
        torch.set_num_threads(threads)
    return [min(times) for times in zip(*rounds, strict=True)]


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    start = time.perf_counter()
    left @ right
    return time.perf_counter() - start
