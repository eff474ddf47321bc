"""How the service ends: when it is told to, after what is under way; at once where Ray has ended before it."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STARTED_S = 10.0
"""What was told to stop while it started has ended by then; there is nothing under way."""
LOOK_S, GONE_S = 0.2, 3.0
"""Ray is gone when it has not listened for so long; a shutdown ends sooner than that once Ray does not listen."""
GONE = (
    "Ray was ended together with the service, so that requests under way were lost. Send SIGTERM to this process alone, not to "
    "its group (systemd: KillMode=mixed): it ends Ray after them."
)


class Stop:
    """Waits to be told by SIGINT or SIGTERM. SIGTERM before `wait` raises SystemExit(143), in the main thread."""

    def __init__(self) -> None:
        self._told, self._waits = threading.Event(), False

    def wait(self) -> None:
        """Until told."""
        self._waits = True
        self._told.wait()

    def tell(self, number: int, _: FrameType | None = None) -> None:
        """The handler of the signals."""
        if not self._waits:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + number)
        self._told.set()


@contextmanager
def told_to_stop() -> Iterator[Stop]:
    """A `Stop` that hears the signals for the time of a `with`. In the main thread."""
    stop = Stop()
    before = {number: signal.signal(number, stop.tell) for number in SIGNALS}
    try:
        yield stop
    except SystemExit:  # Ray's own handler, while it starts, has the bare number for a code
        _end_within(STARTED_S)
        raise SystemExit(128 + signal.SIGTERM) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_within(seconds: float) -> None:
    def end() -> None:
        time.sleep(seconds)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=end, name="end-within", daemon=True).start()


@contextmanager
def own_sigterm_kept() -> Iterator[None]:
    """Ray puts a handler of its own in place of ours when it starts, which first drains its node, for up to half a minute."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before not in (signal.SIG_DFL, None) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def end_without_ray(address: str) -> None:
    """From now on: end the whole process once Ray is gone, which else would be waited for, for a minute.

    address: of Ray's control store, HOST:PORT.
    """
    threading.Thread(target=_end_without, args=(address,), name="ray-gone", daemon=True).start()


def _end_without(address: str) -> None:
    last = time.monotonic()
    while time.monotonic() - last < GONE_S:
        time.sleep(LOOK_S)
        if _listens(address):
            last = time.monotonic()
    print(GONE, file=sys.stderr, flush=True)
    os._exit(1)


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=LOOK_S).close()
    except OSError:
        return False
    return True
