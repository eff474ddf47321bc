"""Ends a worker that gets nowhere, with its stacks written down: one that hangs holds up all the others for ever."""

import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

STACKS = "stacks-rank{rank}.txt"
EXIT_CODE = 86


@contextmanager
def watching(folder: Path, rank: int, seconds: float) -> Iterator[Callable[[], None]]:
    """For a `with`: gives what to call when work has been done. Not called for so many seconds, the process writes all its
    stacks to `stacks-rank<n>.txt` in `folder` and ends at once; Ray then starts the worker group again, where there is one.
    """
    last, over = [time.monotonic()], threading.Event()

    def alive() -> None:
        last[0] = time.monotonic()

    def watch() -> None:
        looked = time.monotonic()
        while not over.wait(min(1.0, seconds / 4)):
            before, looked = looked, time.monotonic()
            if looked - before > seconds / 2:  # the whole process was stopped, as by Ctrl-Z
                last[0] = looked
            if looked - last[0] > seconds:
                _end(folder / STACKS.format(rank=rank), seconds)

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield alive
    finally:
        over.set()
        thread.join()


def _end(stacks: Path, seconds: float) -> None:
    try:
        told = f"No step for {seconds:g} seconds (cluster.stall_seconds)"
        with contextlib.suppress(OSError), stacks.open("w") as file:  # a full disk
            file.write(f"{told}.\n")
            file.flush()
            faulthandler.dump_traceback(file)
        os.write(2, f"{told}: ended, with stacks in {stacks}.\n".encode())
    finally:  # whether or not the disk has room for them
        os._exit(EXIT_CODE)
