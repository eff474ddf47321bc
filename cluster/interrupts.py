"""Being asked to stop: Ctrl-C and SIGTERM end a run after a checkpoint, a second Ctrl-C at once."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

POLL_SECONDS = 0.2
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


def beside(
    work: Callable[[], object], ask: Callable[[], None], look: Callable[[], None]
) -> tuple[Request, BaseException | None]:
    """Do long work in a thread, while this one looks now and then, and calls `ask` once somebody asks for an end.

    Returns whether somebody did, and what the work failed with; after the grace period without waiting for it.
    """
    failures: list[BaseException] = []

    def do() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=do, name="work", daemon=True)
    with listening(ask) as request:
        thread.start()
        while thread.is_alive() and not request.overdue():
            thread.join(POLL_SECONDS)
            look()
    return request, failures[0] if failures else None


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
