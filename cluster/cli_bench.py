"""`recsys bench`: how much a service takes, what that costs its callers in time, and what its index finds for how much time."""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster import console
from recsys.errors import ConfigError, RecsysError

if TYPE_CHECKING:
    from cluster.bench import Load

bench_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure a service: latency by load, recall by time.")

KEY = "RECSYS_KEY"
MOST = 20_000
"""Requests a second that can be asked for: more than one process could send."""


@bench_app.callback()
def _bench() -> None:
    """Measure a service: latency by load, recall by time."""


@bench_app.command("serve")
def bench_serve(
    bundle: Annotated[Path, typer.Argument(help="The bundle that is served, or a folder with a CURRENT one.")],
    url: Annotated[
        str | None,
        typer.Option(help=f"The service that is asked, its key in ${KEY}. Without, one is started and stopped again."),
    ] = None,
    rates: Annotated[str | None, typer.Option(help="Requests a second, with commas. Without, shares of the peak.")] = None,
    seconds: Annotated[float, typer.Option(min=0.5, help="How long each rate is held.")] = 10,
    connections: Annotated[
        int,
        typer.Option(min=1, max=1000, help="Callers who find the peak; fewer where so many users would not fit in the queue."),
    ] = 64,
    k: Annotated[int, typer.Option("--k", min=1, max=1000, help="How many items a list.")] = 10,
    at_once: Annotated[int, typer.Option(min=1, max=256, help="Users in one request.")] = 1,
    replicas: Annotated[int, typer.Option(min=1, help="Of the service that is started.")] = 1,
    out: Annotated[Path, typer.Option("--out", help="Folder of bench.json and bench.png.")] = Path("bench"),
    json_: Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of tables.")] = False,
) -> None:
    """Ask at given rates, whatever comes back, and tell how long callers waited; then sweep how far the index looks."""
    from cluster import bench
    from recsys.bundle import store
    from recsys.bundle.read import open_bundle
    from recsys.retrieval.measure import sweep
    from recsys.retrieval.recommender import Recommender
    from serve.load import questions

    steps = None if rates is None else _numbers(rates)
    recommender = Recommender(open_bundle(store.resolve(bundle)))
    users = bench.users_of(recommender)
    if not users:
        raise ConfigError(f"{bundle}: there is no user in it to ask for.")
    callers = max(2, min(connections, bench.FIT * replicas // at_once))
    out.mkdir(parents=True, exist_ok=True)
    with console.ProgressView() as view:
        with _asked(url, bundle, replicas) as address:
            peak, held = _load(address, questions(users, k, at_once), callers, steps, seconds, view.stage)
        index = sweep(recommender, bench.SWEPT_USERS, lambda done, total: view.stage("settings of the index", done, total))
    asked = {"url": url, "seconds": seconds, "connections": callers, "k": k, "at_once": at_once}
    asked["replicas"] = replicas if url is None else None
    measured = bench.Measured(bench.called(recommender), asked, peak, held, index)
    bench.write(measured, out)
    if json_:
        console.print_json(bench.as_json(measured))
    else:
        bench.print_tables(measured, out)


def _load(
    address: str,
    bodies: Iterator[bytes],
    callers: int,
    rates: list[float] | None,
    seconds: float,
    progress: Callable[[str, int, int], None],
) -> "tuple[Load, list[Load]]":
    """The peak and the rates. Raises ConfigError for an address or a key that cannot be, RecsysError where nobody answers."""
    from cluster.bench import measure_load
    from serve.load import Seen, Target, closed_loop, open_loop

    try:
        target = Target(address, os.environ.get(KEY))
    except ValueError as error:
        raise ConfigError(f"{address}, ${KEY}: {error}.") from None

    def closed(seconds: float) -> Seen:
        return asyncio.run(closed_loop(target, bodies, callers, seconds))

    def opened(rate: float, seconds: float) -> Seen:
        return asyncio.run(open_loop(target, bodies, rate, seconds))

    try:
        return measure_load(closed, opened, rates, seconds, progress)
    except OSError as error:
        raise RecsysError(f"{address} cannot be asked: {error}. Is it up? curl {address}/readyz") from error


@contextmanager
def _asked(url: str | None, bundle: Path, replicas: int) -> Iterator[str]:
    """The address of a service, for the time of a `with`."""
    if url is not None:
        yield url.rstrip("/")
        return
    from serve.app import serving
    from serve.args import make_args

    # Events stay out: a bench must leave nothing behind.
    with serving(make_args(bundles=str(bundle.resolve()), port=0, replicas=replicas, events="none")) as address:
        yield address


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number <= MOST for number in numbers):
        raise ConfigError(f"--rates {text}: give requests a second, {MOST:,} at most, with commas between, such as 50,100,200.")
    return numbers
