"""From the store to files that `recsys prepare --append` reads: each event in exactly one of them."""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.bundle.store import sync_folder
from recsys.errors import DataError
from serve.events.event import TO_ROLL, EventStore, LiveEvent, Rolled

SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("rating", pa.float32()),
        ("time", pa.int64()),
        ("kind", pa.string()),
        ("event_id", pa.string()),
    ]
)
PLACE, STORE = b"recsys.last_place", b"recsys.store"


def roll(store: EventStore, folder: Path, *, unrated: float = 1.0, most: int = TO_ROLL) -> list[Path]:
    """Write what has come since the last time as `events-NNNNNN.parquet`, at most so many events each. Returns the files.

    unrated: what stands for the rating of an event without one. A file is written whole, then noted in the store. If the
    process dies in between, the next one finds the file, notes it, and writes what comes behind: into the same folder.
    Raises StoreError, and DataError where the file that is due is there and is of another store, or none of ours.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made, identity = [], store.identity()
    with _locked(folder):
        while True:
            files, place = store.rolled()
            path = folder / f"events-{files:06}.parquet"
            if path.exists():
                store.note_rolled(Rolled(files + 1, _last_place(path, identity)))
                made.append(path)
                continue
            stored = store.after(place, most)
            if not stored:
                return made
            _write(path, [entry.event for entry in stored], stored[-1].place, unrated, identity)
            store.note_rolled(Rolled(files + 1, stored[-1].place))
            made.append(path)


def elsewhere(store: EventStore, folder: Path) -> int:
    """How many of the files that were ever rolled are not in a folder. Raises StoreError."""
    return sum(not (folder / f"events-{number:06}.parquet").exists() for number in range(store.rolled().files))


def forget(folder: Path, user: str) -> int:
    """Write the files anew that hold events of a user, without them. Returns how many events are gone."""
    gone = 0
    with _locked(folder):
        for path in sorted(folder.glob("events-*.parquet")):
            table = pq.read_table(path)
            kept = table.filter(pc.not_equal(table.column("user_id"), user))
            if kept.num_rows < table.num_rows:
                _replace(path, kept)
                gone += table.num_rows - kept.num_rows
    return gone


def _write(path: Path, events: Sequence[LiveEvent], place: str, unrated: float, identity: str) -> None:
    rows = [(e.user, e.item, unrated if e.rating is None else e.rating, e.time, e.kind, e.id) for e in events]
    table = pa.table([pa.array(column) for column in zip(*rows, strict=True)], SCHEMA.names).cast(SCHEMA)
    _replace(path, table.replace_schema_metadata({PLACE: place.encode(), STORE: identity.encode()}))


def _replace(path: Path, table: pa.Table) -> None:
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("wb") as file:
        pq.write_table(table, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(path.parent)


def _last_place(path: Path, identity: str) -> str:
    try:
        told: dict[bytes, bytes] = pq.read_schema(path).metadata or {}
    except pa.ArrowException as error:
        raise DataError(f"{path}: not a file of events ({error}). Move it away, and roll again.") from None
    if told.get(STORE) != identity.encode() or PLACE not in told:
        raise DataError(f"{path}: rolled from another store, or by something else. Roll into another folder.")
    return told[PLACE].decode()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
