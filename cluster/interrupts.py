"""Being asked to stop: Ctrl-C and SIGTERM end a run after a checkpoint, a second Ctrl-C at once."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

GRACE_SECONDS = 25.0
"""Between SIGTERM and SIGKILL lie 30 seconds on Kubernetes; what is not done by now will not be."""


class Request:
    """Whether somebody asked."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.at = 0.0

    def overdue(self) -> bool:
        """Whether the grace period is over."""
        return self.signal is not None and time.monotonic() - self.at > GRACE_SECONDS


@contextmanager
def listening(ask: Callable[[], None]) -> Iterator[Request]:
    """For a `with`: the first signal calls `ask`, a second one raises KeyboardInterrupt. Only the main thread can listen."""
    request = Request()

    def on_signal(number: int, _: FrameType | None) -> None:
        if request.signal is not None:
            raise KeyboardInterrupt
        request.signal, request.at = number, time.monotonic()
        ask()

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
