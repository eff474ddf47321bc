"""The micro-batch: how many events gradients are made of at once. Found by trying, remembered, halved where memory runs out.

It changes speed and memory; the step stays that of the whole batch, because the losses are sums over events whose negatives are
drawn for the whole step.
"""

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from recsys.errors import RecsysError

SMALLEST = 256
REPEATS = 5
WORTH = 1.03
"""A larger micro-batch must be this much faster to be worth its memory."""


@dataclass
class MicroBatch:
    """events: at most so many at once; None: the whole batch."""

    events: int | None = None

    def halve(self, batch: int) -> None:
        """After memory ran out on a batch of so many."""
        self.events = max(1, min(self.events or batch, batch) // 2)


@dataclass(frozen=True)
class Trial:
    """One size that was tried; no rate where memory ran out."""

    events: int
    events_per_second: float | None


def search(
    gradients: Callable[[int], None], most: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[int, list[Trial]]:
    """The micro-batch for batches of up to `most` events a worker, and what was tried.

    gradients: makes gradients of so many events and waits for them; clock: in seconds. Sizes double from 256 until memory
    ends or the rate stops growing for two sizes in a row. Raises RecsysError where memory does not suffice for the smallest.
    """
    trials: list[Trial] = []
    for events in _sizes(most):
        rate = _rate(gradients, events, clock)
        trials.append(Trial(events, rate))
        if rate is None or _stopped_growing(trials):
            break
    best, best_rate = None, 0.0
    for trial in trials:
        if trial.events_per_second is not None and trial.events_per_second > WORTH * best_rate:
            best, best_rate = trial.events, trial.events_per_second
    if best is None:
        raise RecsysError(
            f"Out of memory with {trials[0].events} events at once. Set train.micro_batch lower, or take fewer "
            "model.negatives or a smaller model.dim."
        )
    return best, trials


def remembered(path: Path, key: str) -> int | None:
    """What an earlier search on this machine found for the same work."""
    try:
        found = json.loads(path.read_text("utf-8")).get(key)
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, int) and found > 0 else None


def remember(path: Path, key: str, events: int) -> None:
    """For the next time; where there is no room or no right to, it is searched again then."""
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(path.read_text("utf-8")) if path.exists() else {}
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f".{path.name}.{time.monotonic_ns()}")
        staged.write_text(json.dumps({**known, key: events}, indent=1), "utf-8")
        staged.replace(path)


def _sizes(most: int) -> list[int]:
    sizes = []
    size = SMALLEST
    while size < most:
        sizes.append(size)
        size *= 2
    return [*sizes, most]


def _rate(gradients: Callable[[int], None], events: int, clock: Callable[[], float]) -> float | None:
    try:
        gradients(events)  # the first pays for what is set up once
        seconds = [_seconds(gradients, events, clock) for _ in range(REPEATS)]
    except (torch.OutOfMemoryError, MemoryError):
        return None
    return events / median(seconds)


def _seconds(gradients: Callable[[int], None], events: int, clock: Callable[[], float]) -> float:
    start = clock()
    gradients(events)
    return clock() - start


def _stopped_growing(trials: list[Trial]) -> bool:
    rates = [trial.events_per_second or 0.0 for trial in trials]
    return len(rates) > 2 and max(rates[-2:]) < WORTH * max(rates[:-2])
