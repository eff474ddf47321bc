"""A new bundle takes the old one's place in one step, a bad one does not, and a canary answers the same users every time."""

import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from recsys.bundle import store
from recsys.bundle.ids import hash_id
from recsys.bundle.manifest import ITEM_VECTORS
from recsys.bundle.read import open_bundle
from recsys.config import IndexConfig
from recsys.errors import BundleError, ConfigError
from recsys.retrieval.recommender import Answer, Event, Recommender, Request
from recsys.retrieval.requests import Condition
from serve import schemas
from serve.args import ServeArgs
from serve.events.feed import Feed
from serve.events.sqlite import SqliteEvents
from serve.http import create_app
from serve.live import Live
from tests.asgi import AppClient
from tests.bundles import planted, rehash, write_planted
from tests.encoders import ENCODED

OLD, NEW = planted(), planted(seed=1)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    write_planted(tmp_path / "bundles", world=OLD, version="a")
    return tmp_path / "bundles"


def live_of(root: Path, **args: Any) -> Live:
    return Live(ServeArgs(bundles=str(root), **args))


def spoil(folder: Path) -> None:
    """Whole as far as hashes can say, but its golden queries are answered otherwise."""
    np.save(folder / ITEM_VECTORS, np.roll(np.load(folder / ITEM_VECTORS), 1, axis=0))
    rehash(folder, ITEM_VECTORS)


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def test_a_new_current_answers_from_the_next_request_on(root: Path, client_of: Callable[..., AppClient]) -> None:
    live = live_of(root)
    client = client_of(live=live)
    assert not live.look()
    before = client.recommend({"user": "u3"}).json()
    assert before["bundle"] == "a" and ids(before) == [f"i{item}" for item in OLD.wanted(3, 10)]
    write_planted(root, world=NEW, version="b")
    assert client.recommend({"user": "u3"}).json()["bundle"] == "a"  # until it looks
    assert live.look() and live.swaps == 1
    after = client.recommend({"user": "u3"}).json()
    assert after["bundle"] == "b" and ids(after) == [f"i{item}" for item in NEW.wanted(3, 10)]
    assert client.get("/v1/bundle").json()["version"] == "b" and client.get("/readyz").json()["bundle"] == "b"
    store.rollback(root / "films", check=Recommender)
    assert live.look() and client.recommend({"user": "u3"}).json() == before


def test_a_bad_one_is_refused_and_said_and_the_old_one_goes_on(root: Path, client_of: Callable[..., AppClient]) -> None:
    live = live_of(root)
    client = client_of(live=live)
    spoil(write_planted(root, world=NEW, version="b"))
    for _ in range(3):
        assert not live.look() and client.recommend({"user": "u3"}).json()["bundle"] == "a"
    told = schemas.BundleInfo.model_validate_json(client.get("/v1/bundle").content)
    assert told.version == "a" and told.rejected is not None
    assert told.rejected.version == "b" and "golden" in told.rejected.why
    write_planted(root, world=NEW, version="c")
    assert live.look() and client.get("/v1/bundle").json()["rejected"] is None


def test_a_bad_one_is_opened_once_until_it_is_another(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = live_of(root)
    folder = write_planted(root, world=NEW, version="b")
    vectors = np.load(folder / ITEM_VECTORS)
    spoil(folder)
    opened: list[Path] = []
    before = Live._opened
    monkeypatch.setattr(Live, "_opened", lambda self, folder: (opened.append(folder), before(self, folder))[1])
    for _ in range(3):
        live.look()
    assert len(opened) == 1
    np.save(folder / ITEM_VECTORS, vectors)
    rehash(folder, ITEM_VECTORS)
    assert live.look() and live.served.recommender.bundle.version == "b" and len(opened) == 2


@pytest.mark.parametrize("content", [None, "nowhere\n", "../a\n", ""])
def test_a_broken_current_is_refused_and_said(root: Path, content: str | None) -> None:
    live = live_of(root)
    current = root / "films" / "CURRENT"
    if content is None:
        current.unlink()
    else:
        current.write_text(content)
    assert not live.look() and live.rejected is not None and live.served.recommender.bundle.version == "a"
    with pytest.raises(BundleError):
        live_of(root)


def test_what_was_taken_before_is_taken_again(root: Path) -> None:
    live = live_of(root)
    write_planted(root, world=NEW, version="b")
    for version in ("b", "a", "b", "a", "b"):
        store.promote(root / "films", version)
        live.look()
        assert live.served.recommender.bundle.version == version and live.rejected is None
    assert live.swaps == 5


def test_going_back_ends_the_rejection(root: Path) -> None:
    """Also of a bad one: what is to be served is served."""
    live = live_of(root)
    spoil(write_planted(root, world=NEW, version="b"))
    live.look()
    assert live.rejected is not None
    store.point(root / "films", "a")
    live.look()
    assert live.rejected is None


def test_a_canary_says_nothing_of_a_bad_current(root: Path) -> None:
    live = live_of(root)
    write_planted(root, world=NEW, version="b", promote=False)
    spoil(write_planted(root, world=NEW, version="c"))
    store.set_canary(root / "films", "b", 0.5)
    for _ in range(2):
        live.look()
        assert live.served.canary is not None and live.rejected is not None and live.rejected.version == "c"


def test_a_canary_that_has_become_current_is_none(root: Path) -> None:
    live = live_of(root)
    write_planted(root, world=NEW, version="b", promote=False)
    store.set_canary(root / "films", "b", 0.5)
    live.look()
    store.promote(root / "films", "b")
    live.look()
    assert live.served.canary is None and live.served.recommender.bundle.version == "b"


def test_what_fails_for_another_reason_is_told_and_tried_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = live_of(root)
    write_planted(root, world=NEW, version="b")
    with monkeypatch.context() as short:
        short.setattr(Live, "_opened", no_memory)
        live.look()
    assert live.rejected is not None and "MemoryError" in live.rejected.why
    assert live.look() and live.rejected is None


def no_memory(*_: object) -> None:
    raise MemoryError


@pytest.mark.parametrize("allowed", [True, False], ids=["allowed", "not allowed"])
def test_it_looks_by_itself_whether_or_not_threads_may_be_less_urgent(
    root: Path, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def setpriority(which: int, who: int, niceness: int) -> None:
        asked.append(niceness)
        if not allowed:
            raise PermissionError

    monkeypatch.setattr(os, "getpriority", lambda which, who: 15)  # as Ray's workers are by default
    monkeypatch.setattr(os, "setpriority", setpriority)
    live = live_of(root, watch_s=0.01)
    live.watch()
    write_planted(root, world=NEW, version="b")
    came = threading.Event()
    for _ in range(1000):
        if live.served.recommender.bundle.version == "b":
            break
        came.wait(0.01)
    live.stop()
    assert live.served.recommender.bundle.version == "b"
    assert asked == ([19] if sys.platform == "linux" else [])


def test_nothing_is_kept_of_a_bundle_that_is_served_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the collector, which Ray's replicas switch off for what they begin with."""
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    worlds: tuple[dict[str, Any], ...] = ({}, ENCODED, {"index": IndexConfig(kind="hnsw"), "recall_floor": 0.1})
    for number, more in enumerate(worlds):
        recommender = Recommender(open_bundle(write_planted(tmp_path / str(number), **more)))
        filters = (Condition("year", min=2000.0),)
        asked = [Request(user="u1", filters=filters), Request(history=(Event("i1"),), diversity=0.5, explain=True)]
        assert all(isinstance(answer, Answer) for answer in recommender.recommend(asked))
        left = [weakref.ref(part) for part in (recommender, recommender.items, recommender._columns, recommender._tastes)]
        gc.disable()
        try:
            del recommender
            assert [ref() for ref in left] == [None] * 4, number
        finally:
            gc.enable()


# Canary


def test_a_canary_answers_its_share_of_the_users_and_always_the_same(root: Path, client_of: Callable[..., AppClient]) -> None:
    live = live_of(root)
    client = client_of(live=live)
    write_planted(root, world=NEW, version="b", promote=False)
    store.set_canary(root / "films", "b", 0.3, check=Recommender)
    assert live.look() and live.swaps == 0
    users = [f"u{user}" for user in range(24)]
    chosen = {user for user in users if hash_id(f"b {user}") < 0.3 * 2**64}
    assert 0 < len(chosen) < 24
    for _ in range(2):
        answers = client.recommend({"requests": [{"user": user} for user in users]}).json()["answers"]
        assert {user for user, answer in zip(users, answers, strict=True) if answer["bundle"] == "b"} == chosen
        for user, answer in zip(users, answers, strict=True):
            world = NEW if user in chosen else OLD
            assert ids(answer) == [f"i{item}" for item in world.wanted(int(user[1:]), 10)]
    assert client.recommend({"history": [{"item": "i1"}]}).json()["bundle"] == "a"
    assert client.get("/v1/bundle").json()["canary"] == {"version": "b", "share": 0.3}
    store.set_canary(root / "films", "b", 0.6, check=Recommender)
    live.look()
    wider = {user for user in users if live.served.of(user).bundle.version == "b"}
    assert wider > chosen  # whoever had it keeps it
    store.set_canary(root / "films", None, 0)
    assert live.look() and client.get("/v1/bundle").json()["canary"] is None
    assert client.recommend({"user": next(iter(chosen))}).json()["bundle"] == "a"


def test_an_event_may_be_of_an_item_that_only_the_canary_has(root: Path, tmp_path: Path) -> None:
    live = live_of(root)
    wider = planted(items=64)
    write_planted(root, world=wider, version="b", promote=False)
    store.set_canary(root / "films", "b", 0.5)
    assert live.look()
    kept_in = SqliteEvents(tmp_path / "events.sqlite")
    with AppClient(create_app(lambda: live, ServeArgs(bundles=str(root)), Feed(kept_in))) as client:
        assert client.post("/v1/events", json={"user": "u1", "item": "i62"}).status_code == 200
        assert client.post("/v1/events", json={"user": "u1", "item": "i64"}).status_code == 422
        both = client.recommend({"requests": [{"user": f"u{user}", "k": 5} for user in range(24)]}).json()["answers"]
    kept_in.close()
    assert {answer["bundle"] for answer in both} == {"a", "b"} and all(len(answer["items"]) == 5 for answer in both)


def test_a_bad_canary_is_refused(root: Path) -> None:
    live = live_of(root)
    folder = write_planted(root, world=NEW, version="b", promote=False)
    with pytest.raises(ConfigError, match="share"):
        store.set_canary(root / "films", "b", 1.5)
    with pytest.raises(BundleError, match="no version c"):
        store.set_canary(root / "films", "c", 0.5)
    store.set_canary(root / "films", "b", 0.5, check=Recommender)
    spoil(folder)
    live.look()
    assert live.served.canary is None and live.rejected is not None and live.rejected.version == "b"
    with pytest.raises(BundleError, match="golden"):
        store.set_canary(root / "films", "b", 0.5, check=Recommender)


def test_one_versions_own_folder_is_all_that_is_meant(root: Path) -> None:
    live = live_of(root / "films" / "a")
    write_planted(root, world=NEW, version="b")
    write_planted(root, version="c", promote=False)
    store.set_canary(root / "films", "c", 0.5)
    assert not live.look() and live.served.all[0].bundle.version == "a" and live.served.canary is None


def test_users_whose_ids_are_no_text_are_served(root: Path) -> None:
    live = live_of(root)
    write_planted(root, version="b", promote=False)
    store.set_canary(root / "films", "b", 0.5)
    live.look()
    assert live.served.of("\ud800").bundle.version in ("a", "b")


@pytest.mark.parametrize("root", ["/bundles", "/srv/models/bundles"])
def test_callers_are_not_told_where_bundles_lie(root: str) -> None:
    where = SimpleNamespace(_root=Path(root))
    told = Live.without_paths(where, f"{root}/films/v1/items.arrow: altered. See recsys bundle list {root}")  # type: ignore[arg-type]
    assert told == "…/bundles/films/v1/items.arrow: altered. See recsys bundle list …/bundles"
