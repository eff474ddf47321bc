"""How busy what a worker computes with is: the share of its threads' time, or of a GPU's."""

import contextlib
import time

import torch

from recsys.training.hardware import Hardware


class Utilisation:
    """From its making on. A CPU's is counted by the kernel; a GPU's is asked for now and then, by `sample`."""

    def __init__(self, hardware: Hardware) -> None:
        self.hardware = hardware
        self.began, self.used = time.perf_counter(), time.process_time()
        self.samples: list[float] = []

    def sample(self) -> None:
        """Ask the GPU's driver, through nvidia-ml-py where that is installed; it answers for about the last second."""
        if self.hardware.device.type == "cuda":
            with contextlib.suppress(ModuleNotFoundError, RuntimeError):
                self.samples.append(torch.cuda.utilization(self.hardware.device) / 100)

    def share(self) -> float | None:
        """0 to 1; None where a GPU was never asked."""
        if self.hardware.device.type == "cuda":
            return sum(self.samples) / len(self.samples) if self.samples else None
        seconds = time.perf_counter() - self.began
        return min(1.0, (time.process_time() - self.used) / (seconds * self.hardware.threads))
