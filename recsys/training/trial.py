"""Gradients of random batches, for finding the micro-batch: made and thrown away, without asking another worker."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys.data.histories import Pairs
from recsys.data.windows import Sequences, Windows
from recsys.training.hardware import Hardware

Maker = Callable[[int, torch.Generator], Any]


def try_gradients(model: nn.Module, hardware: Hardware, make: Maker) -> Callable[[int], None]:
    """For `micro_batch.search`: makes gradients of so many random events, and throws them away.

    make: a batch of so many events. The model must not be in DDP, as one worker tries alone.
    """
    generator = torch.Generator().manual_seed(0)

    def gradients(events: int) -> None:
        batch = make(events, generator)
        with hardware.autocast():
            loss = model(batch)
        loss.backward()
        model.zero_grad(set_to_none=True)
        hardware.wait()

    return gradients


def random_pairs(users: tuple[int, int], items: int, negatives: int, device: torch.device) -> Maker:
    """users: first and behind the last of a range the model has rows for."""

    def make(events: int, generator: torch.Generator) -> Pairs:
        ranges = (users, (0, items))
        user, item = (torch.randint(*ends, (events,), generator=generator).to(device) for ends in ranges)
        drawn = _drawn(items, negatives, generator, device)
        return Pairs(user, item, torch.ones(events, device=device), drawn, events)

    return make


def random_sequences(length: int, items: int, negatives: int, device: torch.device) -> Maker:
    """In windows of `length` tokens."""

    def make(events: int, generator: torch.Generator) -> Sequences:
        windows = max(1, events // length)
        item = torch.randint(items, (windows * length + 1,), generator=generator).int().numpy()
        first = np.arange(windows, dtype=np.int64) * length
        return Sequences(Windows(item, first, first + length, length), _drawn(items, negatives, generator, device), events)

    return make


def _drawn(items: int, negatives: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.randint(items, (negatives,), generator=generator).to(device)
