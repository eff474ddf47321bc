"""Recommendations a second over HTTP: this service, the plain way on Ray Serve, and bare uvicorn, by one load generator.

python benchmarks/bench_http.py                     62k items, 64 connections, five rounds
python benchmarks/bench_http.py --smoke             a small try, nothing written
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from common import publish, spread, table
from http_servers import KINDS

from serve.load import Target, closed_loop, questions
from serve.ports import free_port

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
USERS = 6_000

TEXT = """
`python benchmarks/bench_http.py`: top-10 of {items:,} items of 64 dimensions for random known users, seen items left out, one
thread of arithmetic each, {connections} connections that ask again as soon as they are answered, the load generator on the same
cores. `plain` is FastAPI, `@serve.batch` and argpartition on Ray Serve's default ingress; `bare` is an ASGI function on
uvicorn round the search of `ours`, no Ray and nothing checked: the limit. All servers are up all the time and loaded in turn,
{rounds} rounds of
{seconds} s.

{rows}
"""


@contextmanager
def server(kind: str, bundles: Path) -> Iterator[int]:
    """A contender in a process of its own; its port."""
    port = free_port()
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
    bodies = questions([f"u{user}" for user in range(USERS)], 10)
    with ExitStack() as stack:
        ports = {kind: stack.enter_context(server(kind, bundles)) for kind in kinds}
        for turn in range(rounds + 1):
            for kind, port in ports.items():
                target = Target(f"http://127.0.0.1:{port}")
                seen = asyncio.run(closed_loop(target, bodies, connections, seconds))
                if seen.failed:
                    raise RuntimeError(f"{kind}: {seen.failed}")
                if turn:  # the first warms up
                    figures[kind]["per second"].append(seen.per_second)
                    figures[kind]["p50 ms"].append(seen.milliseconds(0.5) or 0)
                    figures[kind]["p99 ms"].append(seen.milliseconds(0.99) or 0)
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
