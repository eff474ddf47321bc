"""Who waits for whom where cores are few: what answers goes before what opens bundles, and before Ray's reporters."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterable

import psutil

NICENESS = 10
PROGRAM = 3  # words: python -u SCRIPT. Others stand in arguments, those of Ray's own daemon among them
REPORTERS = ("DashboardAgent", "dashboard/agent.py", "dashboard/dashboard.py", "log_monitor.py", "_private/monitor.py")
"""Ray's processes for whom nobody waits, by the ends of their names. The first takes a core for .2 s every few seconds."""


def give_way() -> None:
    """Make this thread less urgent than others, where threads have a niceness of their own."""
    _less_urgent([threading.get_native_id()])


def reporters_give_way() -> None:
    """The same for Ray's reporters, of a Ray that this process has started."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(word.rstrip().endswith(REPORTERS) for word in process.cmdline()[:PROGRAM]):
                _less_urgent(thread.id for thread in process.threads())


def _less_urgent(threads: Iterable[int]) -> None:
    """Those that a thread begins are as urgent as it is."""
    if sys.platform != "linux":
        return
    for thread in threads:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS))
