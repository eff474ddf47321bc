"""`recsys events`: what came while serving, rolled to files for training, and forgotten."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster import console
from recsys.errors import ConfigError, RecsysError

events_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Events that came while serving: roll, forget.")

StoreArgument = Annotated[
    str, typer.Argument(help="The store: events.sqlite, `redis` for $RECSYS_REDIS_URL, or an address.", metavar="STORE")
]
NameOption = Annotated[str, typer.Option("--name", help="Of a Redis: the name of the bundles whose events are meant.")]


@events_app.command("roll")
def events_roll(
    store: StoreArgument,
    out: Annotated[Path, typer.Option("--out", help="Folder of the files.")],
    name: NameOption = "",
    unrated: Annotated[float, typer.Option(help="What stands for the rating of an event without one.")] = 1.0,
) -> None:
    """Write what has come since the last time to parquet, for `recsys prepare --append`; each event to exactly one file."""
    from serve.events.roll import elsewhere, roll

    with _opened(store, name) as opened:
        made, away = roll(opened, out, unrated=unrated), elsewhere(opened, out)
    for path in made:
        print(path)
    new = "1 new file." if len(made) == 1 else f"{len(made)} new files."
    console.err.print(new if made else "Nothing has come since the last time.", markup=False)
    if away:
        told = f"{away} files of events before are not in {out}: they were rolled to another folder, or moved since."
        console.err.print(f"{told} What reads this folder alone learns nothing from them.", markup=False)


@events_app.command("forget")
def events_forget(
    store: StoreArgument,
    user: Annotated[list[str], typer.Option("--user", help="A user's id; may be repeated.")],
    name: NameOption = "",
    files: Annotated[Path | None, typer.Option("--files", help="Folder of rolled files, which forget them, too.")] = None,
) -> None:
    """Keep nothing of some users in the store, nor in FILES. Datasets forget by `recsys prepare --append DATASET --forget`."""
    from serve.events.roll import forget

    with _opened(store, name) as opened:
        for each in user:
            kept, rolled = opened.forget(each), 0 if files is None else forget(files, each)
            console.say(f"{each}: {kept:,} events are gone from the store, {rolled:,} from files.")


@contextmanager
def _opened(told: str, name: str) -> Iterator[Any]:
    """A store for the time of a `with`; what it cannot do is told as an error of ours."""
    from serve.events.event import StoreError
    from serve.events.feed import is_address, open_redis
    from serve.events.sqlite import SqliteEvents

    if not is_address(told) and not Path(told).is_file():
        raise ConfigError(f"{told}: no such file. A service writes it beside a bundle's versions: events.sqlite.")
    if is_address(told) and not name:
        raise ConfigError("--name: say whose events; a Redis holds those of bundles of several names.")
    store = open_redis(told, name) if is_address(told) else SqliteEvents(Path(told))
    try:
        yield store
    except StoreError as error:
        raise RecsysError(str(error)) from error
    finally:
        store.close()
