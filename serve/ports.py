"""Which port to listen on: the one asked for, if nobody has it, or a free one."""

import contextlib
import errno
import os
import random
import socket

import psutil

from recsys.errors import ConfigError

# Below what systems hand out to connections by themselves (from 32,768 on Linux, 49,152 elsewhere), above what Ray gives its
# workers (10,002 to 19,999), below what it gives replicas behind HAProxy (30,000 on): a port from there, found free, is still
# free when its server has started, seconds later. A port that the system chose (bind to 0) may be some connection's by then:
# Ray makes dozens while it starts.
CHOSEN_FROM = range(20_000, 30_000)
TRIES = 100
AGENT, PATIENCE_S = "ray::DashboardAgent", 5.0


def require_port(host: str, port: int, option: str = "--port") -> int:
    """`port` itself if it can be listened on, else ConfigError, which names the option; for 0 a free one."""
    if port == 0:
        return free_port(host)
    if (error := _refusal(host, port)) is not None:
        taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
        advice = (
            f"Stop what listens there, or choose another port: {option}" if taken else "Give an address of this machine: --host"
        )
        raise ConfigError(f"{host}:{port} cannot be listened on ({error.strerror}). {advice}.")
    return port


def free_port(host: str = "127.0.0.1") -> int:
    """One that nobody listens on, by chance, so that two who ask at once hardly get the same; ConfigError if none is found."""
    for port in random.SystemRandom().sample(CHOSEN_FROM, TRIES):
        error = _refusal(host, port)
        if error is None:
            return port
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise ConfigError(f"{host} cannot be listened on ({error.strerror}). Give an address of this machine: --host.")
    span = f"{CHOSEN_FROM.start}..{CHOSEN_FROM.stop - 1}"
    raise ConfigError(f"{host}: nobody may listen on any of {TRIES} ports tried of {span}. Name one yourself: --port.")


def end_orphan(port: int) -> None:
    """End the agent of a Ray that was killed, which else holds its port for a minute more, and with it who starts anew."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.pid and connection.laddr[1:2] == (port,):
                _end_if_orphan(psutil.Process(connection.pid))


def _end_if_orphan(process: psutil.Process) -> None:
    parent = process.parent()
    is_agent = process.cmdline()[:1] and process.cmdline()[0].strip() == AGENT and process.uids().real == os.getuid()
    if is_agent and (parent is None or parent.name() != "raylet"):
        process.kill()  # it does not mind SIGTERM
        process.wait(PATIENCE_S)


def _refusal(host: str, port: int) -> OSError | None:
    """Why it cannot be listened on."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()  # what SO_REUSEADDR lets bind, this refuses
        except OSError as error:
            return error
    return None
