"""Events in an SQLite file: the embedded store, for replicas on one host, which all read and write it themselves."""

import fcntl
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from serve.events.event import LATEST, TO_ROLL, LiveEvent, Rolled, Stored, StoreError

WRITE_S, READ_S = 10.0, 0.25
"""How long a writer waits for another process's, and a reader, for which a list waits, for the file."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    user TEXT NOT NULL,
    item TEXT NOT NULL,
    rating REAL,
    kind TEXT,
    time INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS events_of_user ON events (user, place);
CREATE TABLE IF NOT EXISTS identity (name TEXT NOT NULL);
INSERT INTO identity SELECT lower(hex(randomblob(16))) WHERE NOT EXISTS (SELECT * FROM identity);
CREATE TABLE IF NOT EXISTS rolled (files INTEGER NOT NULL, place TEXT NOT NULL);
"""
PREPARED = f"PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA secure_delete=ON; {SCHEMA}"
COLUMNS = "id, user, item, rating, kind, time"
OF_USER = f"SELECT {COLUMNS} FROM events WHERE user = ? ORDER BY place DESC LIMIT {LATEST}"


MADE = "made"
"""Stands in the lock beside the file once that is there, so that it is missed where it is not."""
MISSED = (
    "{path}: the file of events was moved, deleted or replaced. Put it back, with the -wal and -shm that it had. To begin a "
    "new one stop the service, and move away what is left of it and {lock}."
)
File = tuple[int, int]
"""Which file a path names: it stays the same as long as nobody moves another there."""


class SqliteEvents:
    """`EventStore` in a file, which the first event makes. Where it is moved, deleted or replaced afterwards there are no
    events until it is back: SQLite would go on with what is left of it, and what is acknowledged be lost."""

    is_remote = False

    def __init__(self, path: Path) -> None:
        self._path, self._own, self._writing = path, threading.local(), threading.Lock()
        self._made: list[sqlite3.Connection] = []
        self._lock = path.with_name(f".{path.name}.lock")
        self._used: File | None = None  # of all threads

    def append(self, events: Sequence[LiveEvent]) -> list[bool]:
        """One transaction, on disk when it comes back (write-ahead log, synchronous FULL)."""
        with self._transaction(make=True) as connection:
            return [self._insert(connection, event) for event in events]

    def of(self, users: Sequence[str]) -> dict[str, list[LiveEvent]]:
        """As `EventStore` says; nothing before there is a file."""
        connection = self._reader()
        if connection is None:
            return {}
        with _said_plainly(self._path):
            found = {user: connection.execute(OF_USER, (user,)).fetchall() for user in dict.fromkeys(users)}
            return {user: [LiveEvent(*row) for row in reversed(rows)] for user, rows in found.items() if rows}

    def after(self, place: str, most: int = TO_ROLL) -> list[Stored]:
        """As `EventStore` says."""
        connection = self._reader()
        if connection is None:
            return []
        with _said_plainly(self._path):
            query = f"SELECT place, {COLUMNS} FROM events WHERE place > ? ORDER BY place LIMIT ?"
            return [Stored(str(first), LiveEvent(*row)) for first, *row in connection.execute(query, (int(place or 0), most))]

    def rolled(self) -> Rolled:
        """As `EventStore` says."""
        connection = self._reader()
        if connection is None:
            return Rolled(0, "")
        with _said_plainly(self._path):
            row = connection.execute("SELECT files, place FROM rolled").fetchone()
            return Rolled(*row) if row else Rolled(0, "")

    def identity(self) -> str:
        """As `EventStore` says."""
        with _said_plainly(self._path):
            name: str = self._writer(make=True).execute("SELECT name FROM identity").fetchone()[0]
            return name

    def note_rolled(self, rolled: Rolled) -> None:
        """As `EventStore` says."""
        with self._transaction(make=True) as connection:
            connection.execute("DELETE FROM rolled")
            connection.execute("INSERT INTO rolled VALUES (?, ?)", rolled)

    def forget(self, user: str) -> int:
        """Its bytes are overwritten, in the log too."""
        if self._reader() is None:
            return 0
        with self._transaction() as connection:
            gone = connection.execute("DELETE FROM events WHERE user = ?", (user,)).rowcount
        with _said_plainly(self._path):
            busy, *_ = self._writer().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise StoreError(f"{self._path}: forgotten, but its log is read so much that it could not be emptied. Ask again.")
        return gone

    def close(self) -> None:
        """Of all threads."""
        for connection in self._made:
            connection.close()
        self._made.clear()
        self._own = threading.local()

    @staticmethod
    def _insert(connection: sqlite3.Connection, event: LiveEvent) -> bool:
        added = connection.execute(f"INSERT OR IGNORE INTO events ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", event)
        return added.rowcount == 1

    @contextmanager
    def _transaction(self, *, make: bool = False) -> Iterator[sqlite3.Connection]:
        with self._writing, _said_plainly(self._path):
            connection = self._writer(make)
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                if connection.in_transaction:  # a full disk has ended it already, and is what should be told
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
            self._file()  # or it is on no disk that is looked at again

    def _reader(self) -> sqlite3.Connection | None:
        """This thread's connection to read by; None before there is a file."""
        with _said_plainly(self._path):
            there = self._file()
            made: sqlite3.Connection | None = getattr(self._own, "reader", None)
            if made is None and there is not None:
                made = self._own.reader = self._opened_to_read()
            return made

    def _writer(self, make: bool = False) -> sqlite3.Connection:
        """This thread's connection to write by."""
        self._file()
        made: sqlite3.Connection | None = getattr(self._own, "writer", None)
        if made is None:
            made = self._own.writer = self._opened_to_write(make)
        return made

    def _file(self) -> File | None:
        """What lies there; None before there is a file. Raises StoreError where there was another, or one that is gone."""
        try:
            told = self._path.stat()
        except FileNotFoundError:
            if self._used is None and not (self._lock.exists() and self._lock.stat().st_size):
                return None
        else:
            there = told.st_dev, told.st_ino
            if self._used in (None, there):
                return there
        raise self._missed()

    def _missed(self) -> StoreError:
        return StoreError(MISSED.format(path=self._path, lock=self._lock))

    def _kept(self, connection: sqlite3.Connection, before: File | None) -> sqlite3.Connection:
        """For use from now on, if what was opened is what lies there, and lay there `before`."""
        there = self._file()
        if before not in (None, there):
            raise self._missed()
        self._used = there
        self._made.append(connection)
        return connection

    def _opened_to_read(self) -> sqlite3.Connection | None:
        """None while the first event is being written, whose tables are not all there yet."""
        before = self._file()
        connection = self._connected("rw", READ_S)
        try:
            is_whole = bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'rolled'").fetchone())
            return self._kept(connection, before) if is_whole else None
        finally:
            if connection not in self._made:
                connection.close()  # else each try, of which there is one a second, would leave a file open

    def _opened_to_write(self, make: bool) -> sqlite3.Connection:
        # One at a time: a file's first turn to a write-ahead log fails at once, and does not wait, where others make it.
        with _alone(self._lock, WRITE_S) as lock:
            before = self._file()
            connection = self._connected("rwc" if make and before is None else "rw", WRITE_S)
            try:
                connection.executescript(PREPARED)
                if not self._lock.stat().st_size:
                    lock.write(MADE)
                return self._kept(connection, before)
            except BaseException:
                connection.close()  # as above
                raise

    def _connected(self, mode: str, seconds: float) -> sqlite3.Connection:
        """Which nothing has been asked yet."""
        uri = f"{self._path.resolve().as_uri()}?mode={mode}"
        return sqlite3.connect(uri, seconds, isolation_level=None, check_same_thread=False, uri=True)


@contextmanager
def _alone(path: Path, seconds: float) -> Iterator[TextIO]:
    """While no other process is here: the lock. Raises OSError where one stays for longer."""
    end = time.monotonic() + seconds
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)
        yield file


@contextmanager
def _said_plainly(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"{path}: {error}") from error
