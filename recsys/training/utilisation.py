"""How busy a worker is: what its process takes of a CPU, or the share of a GPU's time."""

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
        """Ask the GPU's driver, which answers for about the last second."""
        if self.hardware.device.type == "cuda":
            with contextlib.suppress(Exception):  # drivers refuse in many ways, and a figure for the log ends no training
                self.samples.append(torch.cuda.utilization(self.hardware.device) / 100)

    def share(self) -> float | None:
        """Of a CPU, seconds of the process, its readers included, over those of the threads it computes with: more than 1 where
        readers have cores of their own. Of a GPU, 0 to 1, None where it never answered."""
        if self.hardware.device.type == "cuda":
            return sum(self.samples) / len(self.samples) if self.samples else None
        seconds = time.perf_counter() - self.began
        return (time.process_time() - self.used) / (seconds * self.hardware.threads)
