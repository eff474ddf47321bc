"""`recsys demo`: the whole way on real films, from raw files to an answer over HTTP, and then a service to play with."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.columns import Columns
from rich.table import Table

from cluster import console, report
from cluster.pipeline import Outcome, run_pipeline
from cluster.samples import choose
from recsys.config import Config
from recsys.data import schema
from recsys.data.dataset import read_manifest, read_user_file
from recsys.data.histories import Histories

# The service itself is passed in: only cli.py may import `serve`.
Service = Callable[[Path], AbstractContextManager[str]]
"""Serves a folder of bundles for the time of a `with`; gives the URL."""
Connect = Callable[[str], AbstractContextManager[Any]]
"""A client of the service at a URL."""

SHOWN = 10
A_GOOD_LENGTH = 30  # a history long enough to tell a taste, short enough to read


def run_demo(data: str | None, workspace: Path, wait: bool, config: Config, service: Service, connect: Connect) -> None:
    """Prepare, train, export, serve, ask; print one user's history beside his recommendations."""
    started = time.monotonic()
    choice = choose(data, workspace)
    console.say(f"Data: {choice.source} ({choice.why}).")
    outcome = _build(choice.source, workspace, config)
    with service(outcome.bundle.parent) as url:
        _ask(connect, url, a_user(outcome.dataset), rated=outcome.manifest.has_rating)
        console.say(f"First answer over HTTP after {time.monotonic() - started:.0f} s.")
        if wait:
            console.say_serving(url)
            _until_interrupted()


def a_user(dataset: Path) -> str:
    """Id of the user whose history is nearest to A_GOOD_LENGTH: chosen by length alone, not by how well he is served."""
    nearest = []
    for file in read_manifest(dataset).user_files:
        table = read_user_file(dataset, file)
        distance = abs(Histories.from_arrow(table).lengths - A_GOOD_LENGTH)
        row = int(distance.argmin())
        nearest.append((int(distance[row]), file.first_user, table.column(schema.USER_ID)[row].as_py()))
    return str(min(nearest)[-1])


def _build(source: str, workspace: Path, config: Config) -> Outcome:
    view = console.ProgressView(config.train.epochs, config.train.metric)
    with view:
        outcome = run_pipeline([source], workspace, config, view, name="films")
    console.print_metrics(f"{outcome.run.folder}: full ranking", report.run_columns(outcome.run.folder))
    return outcome


def _ask(connect: Connect, url: str, user: str, rated: bool) -> None:
    with connect(url) as client:
        answer = client.recommend(user=user, k=SHOWN)
        history = client.user(user, limit=SHOWN)
    watched = [(event["title"], event.get("rating") if rated else None) for event in history["history"]]
    seen = _titles(f"User {user} watched (last {SHOWN})", watched)
    next_ = _titles(f"Watch next ({answer['path']})", [(i["title"], f"{i['score']:.3f}") for i in answer["items"]])
    console.out.print(Columns([seen, next_]))


def _titles(title: str, rows: list[tuple[Any, Any]]) -> Table:
    table = Table("film", "", title=console.printable(title), title_justify="left")
    for name, value in rows:
        table.add_row(console.printable(str(name)), "" if value is None else str(value))
    return table


def _until_interrupted() -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with contextlib.suppress(KeyboardInterrupt):
        stop.wait()
    console.say("Stopped.")
