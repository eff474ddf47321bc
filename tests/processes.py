"""Processes that tests start: ports for them, what they started, and their end with all of that."""

import contextlib

import psutil

from serve.ports import free_port


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface, all different, that nobody listens on."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


def below(process: psutil.Process, words: str) -> list[psutil.Process]:
    """What it started, and they started, whose command has these words. One that ends meanwhile is none."""
    return [child for child in process.children(recursive=True) if words in command(child)]


def command(process: psutil.Process) -> str:
    """Its words, or none when it is gone or only waits to be collected."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # a zombie, too
        return ""


def gone(process: psutil.Process) -> bool:
    """Whether it has ended, collected or not."""
    return not command(process)


def end(process: psutil.Process) -> None:
    """At once, with all it started: an orderly stop of Ray takes half a minute."""
    family = [process, *process.children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=30)
