"""Recommendations a second over HTTP: this service, the plain way on Ray Serve, and bare uvicorn, by one load generator.

python benchmarks/bench_http.py                     62k items, 64 connections, five rounds
python benchmarks/bench_http.py --smoke             a small try, nothing written
"""

import argparse
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from common import publish, spread, table
from http_servers import KINDS

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
USERS = 6_000

TEXT = """
`python benchmarks/bench_http.py`: top-10 of {items:,} items of 64 dimensions for random known users, seen items left out, one
thread of arithmetic each, {connections} connections that ask again as soon as they are answered, the load generator on the same
cores. `plain` is FastAPI, `@serve.batch` and argpartition on Ray Serve's default ingress; `bare` is an ASGI function on
uvicorn with the same search and no Ray, the limit. All servers are up all the time and loaded in turn, {rounds} rounds of
{seconds} s.

{rows}
"""


class Connection(asyncio.Protocol):
    """One connection that asks, reads the answer, and asks again, until told to stop."""

    def __init__(self, seconds: list[float], users: int) -> None:
        self.seconds, self.users, self.going = seconds, users, True
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, found, body = self._read.partition(b"\r\n\r\n")
        if not found or len(body) < _length(head):
            return
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(head.decode("latin-1") + body.decode("latin-1")[:500])
        self.seconds.append(time.perf_counter() - self._asked)
        self._read = b""
        if self.going:
            self._ask()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def _ask(self) -> None:
        body = b'{"user":"u%d","k":10}' % random.randrange(self.users)
        head = b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self._asked = time.perf_counter()
        self._transport.write(head % len(body) + body)


def _length(head: bytes) -> int:
    return int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])


async def load(port: int, connections: int, seconds: float) -> list[float]:
    """Closed-loop load; the seconds that each answer took."""
    loop, took = asyncio.get_running_loop(), list[float]()
    made = [(await loop.create_connection(lambda: Connection(took, USERS), "127.0.0.1", port))[1] for _ in range(connections)]
    await asyncio.sleep(seconds)
    for connection in made:
        connection.going = False
    await asyncio.wait_for(asyncio.gather(*[connection.done for connection in made]), 60)
    return took


@contextmanager
def server(kind: str, bundles: Path) -> Iterator[int]:
    """A contender in a process of its own; its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(Path(__file__).with_name("http_servers.py")), kind, str(bundles), str(port)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | THREADS
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout
        try:
            for line in process.stdout:
                if line.startswith(b"READY"):
                    break
            else:
                raise RuntimeError(f"{kind} did not start")
            yield port
        finally:
            process.terminate()
            process.wait(60)


def write_bundle(root: Path, items: int) -> None:
    """Users and items of 32 tastes."""
    sys.path.append(str(Path(__file__).resolve().parents[1]))  # the tests' bundles, whose answers they check
    from tests.bundles import planted, write_planted

    write_planted(root, world=planted(users=USERS, items=items, tastes=32, dim=64))


def measure(
    kinds: list[str], bundles: Path, connections: int, seconds: float, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Requests a second and latencies of each contender, loaded in turn."""
    figures: dict[str, dict[str, list[float]]] = {kind: {"per second": [], "p50 ms": [], "p99 ms": []} for kind in kinds}
    with ExitStack() as stack:
        ports = {kind: stack.enter_context(server(kind, bundles)) for kind in kinds}
        for turn in range(rounds + 1):
            for kind, port in ports.items():
                took = asyncio.run(load(port, connections, seconds))
                if turn:  # the first warms up
                    figures[kind]["per second"].append(len(took) / seconds)
                    figures[kind]["p50 ms"].append(1e3 * float(np.quantile(took, 0.5)))
                    figures[kind]["p99 ms"].append(1e3 * float(np.quantile(took, 0.99)))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=62_000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", default=["ours", "plain", "bare"], choices=list(KINDS))
    parser.add_argument("--smoke", action="store_true", help="2,000 items, one round of 2 s, nothing written")
    args = parser.parse_args()
    if args.smoke:
        args.items, args.seconds, args.rounds = 2_000, 2, 1
    with tempfile.TemporaryDirectory() as folder:
        write_bundle(Path(folder), args.items)
        raw = measure(args.kinds, Path(folder), args.connections, args.seconds, args.rounds)
    figures = {kind: {name: spread(values, 1) for name, values in columns.items()} for kind, columns in raw.items()}
    if args.smoke:
        print(json.dumps(figures))
        return
    rows = [[kind, *[f"{c['median']} ({c['min']}–{c['max']})" for c in columns.values()]] for kind, columns in figures.items()]
    text = TEXT.format(**vars(args), rows=table(["", "requests a second", "p50 ms", "p99 ms"], rows))
    publish("http", "Recommendations over HTTP", text, figures, vars(args) | {"users": USERS, "dim": 64, "threads": 1})


if __name__ == "__main__":
    main()
