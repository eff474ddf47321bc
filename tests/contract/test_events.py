"""What every store of events promises: kept once, on disk when acknowledged, seen by all at once, rolled exactly once."""

import contextlib
import fcntl
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.errors import ConfigError, DataError
from serve.events import roll as rolling
from serve.events import sqlite
from serve.events.event import LATEST, EventStore, LiveEvent, Rolled, StoreError
from serve.events.feed import is_address, open_redis, open_store
from serve.events.roll import forget
from serve.events.sqlite import SqliteEvents
from serve.ports import free_port
from tests.bundles import write_planted

SERVER = shutil.which("redis-server")
UNRATED = 3.5
roll = partial(rolling.roll, unrated=UNRATED)
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


class Redis:
    """A redis-server of one's own, on a free port of the loopback interface."""

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.options, self.port = folder, options, free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        assert SERVER is not None
        command = [
            SERVER,
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(self.folder),
            "--save",
            "",
            *self.options,
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.5):
                break
            assert time.monotonic() < end and self.process.poll() is None, "redis-server does not start"
            time.sleep(0.02)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    if SERVER is None:
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    server = Redis(tmp_path_factory.mktemp("redis"), *DURABLE)
    yield server
    server.kill()


@pytest.fixture(params=["sqlite", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """What `open_store` is told: a store without an event."""
    if request.param == "sqlite":
        yield str(tmp_path / "events.sqlite")
        return
    server: Redis = request.getfixturevalue("redis")
    wipe(server.url)
    yield server.url


def wipe(url: str) -> None:
    import redis

    with redis.Redis.from_url(url) as client:
        client.flushall()


@pytest.fixture
def open_one(place: str) -> Iterator[Callable[[], EventStore]]:
    """Opens the store once more, as another process would."""
    made: list[EventStore] = []

    def make() -> EventStore:
        made.append(opened(place))
        return made[-1]

    yield make
    for store in made:
        store.close()


def opened(place: str) -> EventStore:
    """A file, or the events of one name in a Redis."""
    return open_redis(place, "films") if is_address(place) else SqliteEvents(Path(place))


def event(number: int, user: str = "u", **changes: Any) -> LiveEvent:
    return LiveEvent(f"e{number}", user, f"i{number}", None, None, 1000 + number)._replace(**changes)


def test_what_is_appended_is_seen_by_everybody_at_once_in_its_order(open_one: Callable[[], EventStore]) -> None:
    writer, reader = open_one(), open_one()
    assert reader.of(["a", "b"]) == {} and reader.after("") == []
    first = [event(1, "a", rating=4.5, kind="view"), event(2, "b"), event(3, "a", time=5)]
    assert writer.append(first) == [True, True, True]
    assert reader.of(["a", "b", "c", "a"]) == {"a": [first[0], first[2]], "b": [first[1]]}
    late = event(4, user="ä\n'\"😀", item="\x00 …")
    writer.append([late])
    assert reader.of([late.user]) == {late.user: [late]}
    assert [entry.event for entry in reader.after("")] == [*first, late]
    assert [entry.event for entry in reader.after(reader.after("", 2)[-1].place)] == [first[2], late]


def test_an_event_is_kept_once_however_often_it_is_sent(open_one: Callable[[], EventStore]) -> None:
    store = open_one()
    assert store.append([event(1), event(2), event(1, item="other")]) == [True, True, False]
    assert open_one().append([event(2, user="other"), event(3)]) == [False, True]
    assert store.of(["u", "other"]) == {"u": [event(1), event(2), event(3)]}


def test_of_one_user_the_latest_are_served_and_all_are_kept(open_one: Callable[[], EventStore]) -> None:
    store = open_one()
    many = [event(number) for number in range(LATEST + 5)]
    store.append(many)
    assert store.of(["u"])["u"] == many[5:]
    assert len(store.after("")) == LATEST + 5


def test_many_may_write_together(open_one: Callable[[], EventStore]) -> None:
    stores = [open_one(), open_one()]
    threads = [
        threading.Thread(target=lambda n=n: [stores[n % 2].append([event(1000 * n + m, f"u{n}")]) for m in range(30)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = open_one().of([f"u{n}" for n in range(4)])
    assert found == {f"u{n}": [event(1000 * n + m, f"u{n}") for m in range(30)] for n in range(4)}


def test_the_first_events_may_come_together(tmp_path: Path) -> None:
    """To a file that each of them would make."""
    for round_ in range(15):
        stores = [opened(str(tmp_path / f"{round_}.sqlite")) for _ in range(4)]
        begin = threading.Barrier(8)

        def write(number: int, stores: list[EventStore] = stores, begin: threading.Barrier = begin) -> None:
            begin.wait()
            stores[number % 4].append([event(number)])
            stores[number % 4].of(["u"])

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(8)))  # raises what any of them did
        assert sorted(stores[0].of(["u"])["u"]) == [event(number) for number in range(8)]
        for store in stores:
            store.close()


WRITER = """
import sys
from serve.events.event import LiveEvent
from tests.contract.test_events import opened
store = opened(sys.argv[1])
number = 0
while True:
    store.append([LiveEvent(f"e{number}", "u", f"i{number}", None, None, number)])
    print(number, flush=True)
    number += 1
"""


def test_what_was_acknowledged_survives_the_writers_death(place: str, open_one: Callable[[], EventStore]) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, place], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline()) for _ in range(40)]
        writer.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in writer.stdout.read().split()]
    kept = [entry.event for entry in open_one().after("")]
    assert [int(e.id[1:]) for e in kept] == list(range(len(kept)))
    assert len(acknowledged) <= len(kept) <= len(acknowledged) + 1


def test_what_was_acknowledged_survives_the_death_of_redis(tmp_path: Path) -> None:
    if SERVER is None:
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    server = Redis(tmp_path / "redis", *DURABLE)
    store = opened(server.url)
    store.append([event(1), event(2)])
    server.kill()
    began = time.monotonic()
    for call in (lambda: store.append([event(3)]), lambda: store.of(["u"]), lambda: store.after(""), lambda: store.rolled()):
        with pytest.raises(StoreError, match="Redis"):
            call()
    assert time.monotonic() - began < 5
    server.start()
    assert store.of(["u"]) == {"u": [event(1), event(2)]}
    assert store.append([event(2), event(3)]) == [False, True]
    store.close()
    server.kill()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--appendonly", "yes", "--appendfsync", "everysec"), "appendfsync always"),
        (("--appendonly", "no"), "appendonly yes"),
        ((*DURABLE, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"), "noeviction"),
        ((*DURABLE, "--rename-command", "CONFIG", ""), "RECSYS_REDIS_TRUSTED=1"),
    ],
)
def test_a_redis_that_may_forget_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], words: str
) -> None:
    if SERVER is None:
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    server = Redis(tmp_path / "redis", *options)
    try:
        with pytest.raises(ConfigError, match=words):
            opened(server.url)
        server.kill()
        late = opened(server.url)  # it is not there yet, and is asked when it is
        server.start()
        with pytest.raises(StoreError, match=words):
            late.append([event(1)])
        monkeypatch.setenv("RECSYS_REDIS_TRUSTED", "1")
        assert opened(server.url).append([event(1)]) == [True]
        late.close()
    finally:
        server.kill()


def test_names_share_a_redis_and_nothing_in_it(redis: Redis) -> None:
    wipe(redis.url)
    films, books = open_redis(redis.url, "films"), open_redis(redis.url, "books")
    films.append([event(1)])
    assert books.of(["u"]) == {} and books.append([event(1)]) == [True] and films.identity() != books.identity()
    assert films.forget("u") == 1 and books.of(["u"]) == {"u": [event(1)]}
    films.close()
    books.close()


def test_where_events_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RECSYS_REDIS_URL", raising=False)
    films, books = (write_planted(tmp_path / "bundles", name) for name in ("films", "books"))
    assert open_store("none", tmp_path) is None
    with pytest.raises(ConfigError, match="RECSYS_REDIS_URL"):
        open_store("redis", films)
    with pytest.raises(ConfigError, match="not the address"):
        open_store("redis://host:port/x", films)
    for told, name, folder in ((films, None, films), (tmp_path / "bundles", "books", books)):
        store = open_store("auto", told, name)
        assert store is not None
        store.append([event(1)])
        assert (folder.parent / "events.sqlite").exists()
        store.close()


def test_a_file_that_cannot_be_is_said(tmp_path: Path) -> None:
    store = opened(str(tmp_path / "nowhere" / "events.sqlite"))
    assert store.of(["u"]) == {}
    with pytest.raises(StoreError, match=r"nowhere.*No such file"):
        store.append([event(1)])
    (tmp_path / "events.sqlite").write_bytes(b"no database at all, whatever its name says" * 100)
    broken = opened(str(tmp_path / "events.sqlite"))
    for call in (lambda: broken.append([event(1)]), lambda: broken.of(["u"])):
        with pytest.raises(StoreError, match="not a database"):
            call()
    files = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    for _ in range(20):
        for call in (lambda: broken.append([event(1)]), lambda: broken.of(["u"])):
            with pytest.raises(StoreError, match="not a database"):
                call()
    assert not files or len(list(Path("/proc/self/fd").iterdir())) <= files, "each try leaves a file open"
    broken.close()


def test_nothing_is_left_of_who_is_forgotten(place: str, open_one: Callable[[], EventStore], tmp_path: Path) -> None:
    store = open_one()
    store.append([event(n, "nobody-else-is-called-so" if n % 2 else "b") for n in range(20)])
    assert store.forget("nobody-else-is-called-so") == 10 and store.forget("stranger") == 0
    assert [entry.event for entry in open_one().after("")] == [event(n, "b") for n in range(0, 20, 2)]
    assert store.of(["nobody-else-is-called-so"]) == {}
    if not place.startswith("redis"):
        store.close()
        assert all(b"nobody-else-is-called-so" not in path.read_bytes() for path in tmp_path.glob("events.sqlite*"))


def test_a_log_that_cannot_be_emptied_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "WRITE_S", 0.05)
    store = opened(str(tmp_path / "events.sqlite"))
    store.append([event(1)])
    with contextlib.closing(sqlite3.connect(tmp_path / "events.sqlite", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM events").fetchall()
        with pytest.raises(StoreError, match="could not be emptied"):
            store.forget("u")
        assert store.of(["u"]) == {}
    assert store.forget("u") == 0
    assert (tmp_path / "events.sqlite-wal").stat().st_size == 0
    store.close()


def test_who_stays_where_one_may_be_at_a_time_is_waited_for_so_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "WRITE_S", 0.05)
    store = opened(str(tmp_path / "events.sqlite"))
    with (tmp_path / ".events.sqlite.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match=r"events.sqlite.*unavailable"):
            store.append([event(1)])
    assert store.append([event(1)]) == [True]
    store.close()


def test_who_only_reads_waits_for_no_writer_and_changes_nothing(tmp_path: Path) -> None:
    store, other = opened(str(tmp_path / "events.sqlite")), opened(str(tmp_path / "events.sqlite"))
    (tmp_path / "events.sqlite").touch()  # the first event is on its way
    assert other.of(["u"]) == {} and other.rolled() == Rolled(0, "") and (tmp_path / "events.sqlite").stat().st_size == 0
    store.append([event(1)])
    with contextlib.closing(sqlite3.connect(tmp_path / "events.sqlite", isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert other.of(["u"]) == {"u": [event(1)]}
    store.close()
    other.close()


# Rolling


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("events-*.parquet")) for row in pq.read_table(path).to_pylist()]


def as_row(e: LiveEvent) -> dict[str, Any]:
    rating = UNRATED if e.rating is None else e.rating
    return {"user_id": e.user, "item_id": e.item, "rating": rating, "time": e.time, "kind": e.kind, "event_id": e.id}


def test_each_event_is_rolled_to_exactly_one_file(open_one: Callable[[], EventStore], tmp_path: Path) -> None:
    store, out = open_one(), tmp_path / "out"
    assert roll(store, out) == []
    events = [event(n, rating=0.5 * n if n % 2 else None, kind="view" if n % 3 else None) for n in range(25)]
    store.append(events[:20])
    made = roll(store, out, most=8)
    assert [path.name for path in made] == [f"events-{n:06}.parquet" for n in range(3)]
    assert roll(open_one(), out) == []
    store.append(events[18:])
    assert len(roll(open_one(), out)) == 1
    assert rows(out) == [as_row(e) for e in events]
    assert store.of(["u"])["u"] == events  # they are served until a bundle has learnt from them, and after


def test_files_that_were_rolled_to_another_folder_are_missed(open_one: Callable[[], EventStore], tmp_path: Path) -> None:
    store = open_one()
    assert rolling.elsewhere(store, tmp_path / "one") == 0
    for folder, number in (("one", 1), ("one", 2), ("other", 3)):
        store.append([event(number)])
        rolling.roll(store, tmp_path / folder)
    assert [rolling.elsewhere(store, tmp_path / folder) for folder in ("one", "other")] == [1, 2]


@pytest.mark.parametrize("dies", ["before the file has its name", "before the store knows"])
def test_a_roll_that_died_is_gone_on_with(
    open_one: Callable[[], EventStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: str
) -> None:
    store, out = open_one(), tmp_path / "out"
    store.append([event(n) for n in range(5)])
    with monkeypatch.context() as broken:
        if dies == "before the store knows":
            broken.setattr(type(store), "note_rolled", killed)
        else:
            broken.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            roll(store, out)
    store.append([event(n) for n in range(5, 9)])
    roll(open_one(), out)
    assert rows(out) == [as_row(event(n)) for n in range(9)]
    assert roll(store, out) == []


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_file_of_somebody_else_is_not_taken_for_ours(open_one: Callable[[], EventStore], tmp_path: Path) -> None:
    store = open_one()
    store.append([event(1)])
    (tmp_path / "events-000000.parquet").write_bytes(b"hello")
    with pytest.raises(DataError, match="Move it away"):
        roll(store, tmp_path)
    assert store.rolled() == Rolled(0, "")


def test_files_of_another_store_are_not_taken_for_ours(open_one: Callable[[], EventStore], tmp_path: Path) -> None:
    """As after a store was lost, or one of another kind took its place: its events would be passed over."""
    before = SqliteEvents(tmp_path / "before.sqlite")
    before.append([event(n) for n in range(9)])
    roll(before, tmp_path / "out")
    before.close()
    store = open_one()
    store.append([event(n) for n in range(3)])
    with pytest.raises(DataError, match="another store"):
        roll(store, tmp_path / "out")
    roll(store, tmp_path / "other")
    assert rows(tmp_path / "other") == [as_row(event(n)) for n in range(3)]


def test_rolled_files_forget_too(open_one: Callable[[], EventStore], tmp_path: Path) -> None:
    store, out = open_one(), tmp_path / "out"
    store.append([event(n, "gone" if n % 2 else "b") for n in range(10)])
    roll(store, out, most=4)
    assert forget(out, "gone") == 5 and forget(out, "gone") == 0
    assert rows(out) == [as_row(event(n, "b")) for n in range(0, 10, 2)]
    assert rolling._last_place(out / "events-000000.parquet", store.identity())  # still known for ours
    store.append([event(10)])
    assert len(roll(store, out)) == 1


def test_a_file_that_is_moved_takes_no_events_until_it_is_back(tmp_path: Path) -> None:
    """They would be acknowledged and lost, or kept by some replicas and not known to others."""
    path, away = tmp_path / "events.sqlite", tmp_path / "away.sqlite"
    replicas = [SqliteEvents(path), SqliteEvents(path)]
    for number, store in enumerate(replicas):
        store.append([event(number, "a")])
        assert store.of(["a"])
    path.rename(away)
    for store in replicas:
        for ask in (lambda s: s.append([event(5, "a")]), lambda s: s.of(["a"]), lambda s: s.forget("a"), lambda s: s.rolled()):
            with pytest.raises(StoreError, match="moved, deleted or replaced"):
                ask(store)
    assert not path.exists()
    away.rename(path)
    for number, store in enumerate(replicas):
        store.append([event(7 + number, "a")])
        assert len(store.of(["a"])["a"]) == 3 + number
    for store in replicas:
        store.close()


def test_a_replica_that_starts_meanwhile_makes_no_other_file(tmp_path: Path) -> None:
    path, away = tmp_path / "events.sqlite", tmp_path / "away"
    store = SqliteEvents(path)
    store.append([event(0, "a")])
    away.mkdir()
    for part in tmp_path.glob("events.sqlite*"):
        part.rename(away / part.name)
    late = SqliteEvents(path)
    for ask in (lambda: late.append([event(1, "a")]), lambda: late.of(["a"]), lambda: store.append([event(2, "a")])):
        with pytest.raises(StoreError, match="Put it back, with the -wal and -shm"):
            ask()
    store.close()
    for part in away.iterdir():
        part.rename(tmp_path / part.name)
    late.append([event(3, "a")])
    assert [e.id for e in late.of(["a"])["a"]] == ["e0", "e3"]
    late.close()
    for part in tmp_path.glob("*events.sqlite*"):  # its lock, too: on purpose
        part.unlink()
    with contextlib.closing(SqliteEvents(path)) as new:
        assert new.append([event(0, "a")]) == [True]


def test_a_file_that_takes_its_place_is_not_written_over_with_what_is_left_of_it(tmp_path: Path) -> None:
    path, other = tmp_path / "events.sqlite", tmp_path / "other.sqlite"
    with contextlib.closing(SqliteEvents(other)) as made:
        made.append([event(number, "a") for number in range(20, 40)])
    store = SqliteEvents(path)
    for number in range(3):
        store.append([event(number, "a")])
    whole = other.read_bytes()
    other.replace(path)
    for ask in (lambda: store.append([event(9, "a")]), lambda: store.of(["a"])):
        with pytest.raises(StoreError, match="moved, deleted or replaced"):
            ask()
    store.close()
    assert path.read_bytes() == whole


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.lists(st.tuples(st.integers(0, 15), st.sampled_from("abc")), max_size=5)),
            st.tuples(st.just("forget"), st.sampled_from("abc")),
            st.tuples(st.just("roll"), st.integers(1, 3)),
        ),
        max_size=12,
    )
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_happens_it_is_a_list_of_first_comers(
    place: str, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, Any]]
) -> None:
    if place.startswith("redis"):
        wipe(place)
        store = opened(place)
    else:
        store = opened(str(tmp_path_factory.mktemp("any") / "events.sqlite"))
    out = tmp_path_factory.mktemp("out")
    kept: list[LiveEvent] = []
    rolled: list[LiveEvent] = []
    reached = 0  # how many of those kept have been rolled
    for step, told in steps:
        if step == "append":
            for number, user in told:
                new = all(e.id != f"e{number}" for e in kept)
                assert store.append([event(number, user)]) == [new]
                kept += [event(number, user)] if new else []
        elif step == "forget":
            assert store.forget(told) == sum(e.user == told for e in kept)
            forget(out, told)
            reached = sum(e.user != told for e in kept[:reached])
            kept, rolled = [e for e in kept if e.user != told], [e for e in rolled if e.user != told]
        else:
            roll(store, out, most=told)
            rolled, reached = rolled + kept[reached:], len(kept)
        assert [entry.event for entry in store.after("")] == kept
        assert rows(out) == [as_row(e) for e in rolled]
    assert store.of("abc") == {user: own for user in "abc" if (own := [e for e in kept if e.user == user])}
    store.close()
