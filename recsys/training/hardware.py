"""What this machine computes with: device, arithmetic, threads. Found by looking and measuring, not by name."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache

import torch
import torch.distributed as dist

from recsys.config import TrainConfig
from recsys.training import collective
from recsys.training.machine import gemm_seconds, processor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# bf16 must win clearly on a CPU: it costs three decimal digits.
CLEARLY = 1.15


@dataclass(frozen=True)
class Hardware:
    """How a worker computes."""

    device: torch.device
    dtype: torch.dtype
    threads: int

    @property
    def pin_memory(self) -> bool:
        """Whether batches should be made in pinned memory, from which a GPU copies while it computes."""
        return self.device.type == "cuda"

    @property
    def precision(self) -> str:
        """fp32, bf16 or fp16."""
        return next(name for name, dtype in DTYPES.items() if dtype == self.dtype)

    def autocast(self) -> AbstractContextManager[object]:
        """Where matrix products are in `dtype`; does nothing for fp32."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def wait(self) -> None:
        """Until a GPU has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def free_memory(self) -> None:
        """Give back what was allocated and is not in use."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def scaler(self) -> torch.amp.GradScaler:
        """Keeps fp16 gradients out of the range where they vanish; does nothing for other arithmetic."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)


def choose(config: TrainConfig, *, device: torch.device | None = None, workers_on_host: int = 1) -> Hardware:
    """Set this process up to compute: threads, TF32, cuDNN's choice of kernels; the same arithmetic on all workers.

    device: what this worker was given; unset: a GPU if there is one.
    workers_on_host: training workers that share this host's cores.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads = config.threads or max(1, int(processor().usable_cores) // workers_on_host)
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
        torch.backends.cudnn.benchmark = True
    dtype = DTYPES[config.precision] if config.precision != "auto" else _agreed(fastest(device), device)
    return Hardware(device, dtype, threads)


@contextmanager
def kept_as_it_was() -> Iterator[None]:
    """For a `with` in which a process trains that has other things to do, too: its arithmetic is again what it was after it,
    and peaks of memory are of this training."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    benchmark = torch.backends.cudnn.benchmark
    if torch.cuda.is_initialized():  # else there are none, and who trains without a GPU must not wake one
        torch.cuda.reset_peak_memory_stats()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.benchmark = benchmark


@cache
def fastest(device: torch.device) -> torch.dtype:
    """bf16 where the hardware has it (on a CPU: where it measures faster than fp32), else fp16 on a GPU, fp32 on a CPU."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    fp32, bf16 = gemm_seconds(torch.float32, torch.bfloat16)
    return torch.bfloat16 if fp32 > CLEARLY * bf16 else torch.float32


def _agreed(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What rank 0 found: measurements differ a little, and workers must not."""
    names = list(DTYPES.values())
    if collective.world_size() == 1:
        return dtype
    choice = torch.tensor(names.index(dtype), device=device)
    dist.broadcast(choice, src=0)
    return names[int(choice)]
