"""Events over HTTP: kept before they are acknowledged, known to the next request, and lists go on when the store is away."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recsys.bundle.read import open_bundle
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.requests import Event, Request
from serve import schemas
from serve.args import ServeArgs
from serve.events.event import LiveEvent, StoreError
from serve.events.feed import AWAY, Feed
from serve.events.sqlite import SqliteEvents
from serve.http import create_app
from tests.asgi import AppClient, Fixed
from tests.bundles import Planted, planted, write_planted

WORLD = planted()


@pytest.fixture(scope="module", params=["table", "history"])
def answers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    folder = write_planted(tmp_path_factory.mktemp(request.param), world=WORLD, known_user=request.param)
    return Recommender(open_bundle(folder))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteEvents]:
    made = SqliteEvents(tmp_path / "events.sqlite")
    yield made
    made.close()


@pytest.fixture
def client(answers: Recommender, store: SqliteEvents) -> Iterator[AppClient]:
    with client_of(answers, store) as made:
        yield made


def client_of(answers: Recommender, store: Any) -> AppClient:
    return AppClient(create_app(lambda: Fixed(answers), ServeArgs(bundles="planted"), Feed(store)))  # type: ignore[arg-type, return-value]


def send(client: AppClient, body: Any) -> Any:
    return client.post("/v1/events", json=body)


def ids(client: AppClient, **body: Any) -> list[str]:
    return [item["item_id"] for item in client.recommend(body).json()["items"]]


def test_the_next_request_leaves_the_item_out_and_the_taste_follows(client: AppClient, answers: Recommender) -> None:
    before = ids(client, user="u0", k=8)
    first = before[0]
    told = send(client, {"user": "u0", "item": first, "rating": 5, "kind": "view", "time": 1_700_000_000, "id": "a"})
    assert told.status_code == 200 and schemas.Kept.model_validate_json(told.content) == schemas.Kept(
        kept=1, repeated=0, ids=["a"]
    )
    after = ids(client, user="u0", k=8)
    assert first not in after
    others = [item for item in range(60) if item % 4 == 1][:12]
    send(client, {"events": [{"user": "u0", "item": f"i{item}"} for item in others]})
    moved = client.recommend({"user": "u0", "k": 8}).json()
    assert any(int(item["item_id"][1:]) % 4 == 1 for item in moved["items"]) and moved["reason"] is None
    history = (Event(first, 5, 1_700_000_000), *(Event(f"i{item}") for item in others))
    (expected,) = answers.recommend([Request(user="u0", history=history, k=8)])
    assert [item["item_id"] for item in moved["items"]] == expected.item_ids  # type: ignore[union-attr]


def test_who_did_nothing_that_the_bundle_has_not_is_answered_as_before(client: AppClient) -> None:
    before = client.recommend({"user": "u0", "k": 8}).json()
    known = client.get("/v1/users/u0").json()["history"]
    told = [{"user": "u0", "item": event["item_id"], "rating": event["rating"], "time": event["time"]} for event in known]
    assert len(known) > 2 and all(event["time"] is not None for event in known)
    assert send(client, {"events": told}).json()["kept"] == len(known)
    assert client.recommend({"user": "u0", "k": 8}).json() == before, "bit by bit: from the table, where there is one"


def test_somebody_nobody_knew_has_a_history_from_now_on(client: AppClient) -> None:
    assert client.recommend({"user": "new"}).json()["fallback"]
    assert client.get("/v1/users/new").status_code == 404
    send(client, {"events": [{"user": "new", "item": f"i{item}", "time": item} for item in (2, 6, 10)]})
    answer = client.recommend({"user": "new", "k": 5}).json()
    assert not answer["fallback"] and all(int(item["item_id"][1:]) % 4 == 2 for item in answer["items"])
    shown = client.get("/v1/users/new").json()
    assert shown["events"] == 3 and [e["item_id"] for e in shown["history"]] == ["i10", "i6", "i2"]


def test_a_known_users_latest_events_come_first_and_what_the_bundle_has_is_not_told_twice(client: AppClient) -> None:
    known = client.get("/v1/users/u1").json()
    latest = known["history"][0]
    send(client, {"user": "u1", "item": latest["item_id"], "rating": latest["rating"], "time": latest["time"]})
    assert client.get("/v1/users/u1").json() == known
    send(client, {"user": "u1", "item": "i3", "time": 7})
    shown = client.get("/v1/users/u1?limit=2").json()
    assert shown["events"] == known["events"] + 1
    assert [e["item_id"] for e in shown["history"]] == ["i3", latest["item_id"]]


def test_of_an_item_the_latest_event_counts(client: AppClient) -> None:
    """As the dataset keeps it: an older one that the store still has is not told behind the newer one of the bundle."""
    known = client.get("/v1/users/u1").json()
    latest = known["history"][0]
    send(client, {"user": "u1", "item": latest["item_id"], "rating": 1, "time": latest["time"] - 1})
    assert client.get("/v1/users/u1").json() == known
    send(client, {"user": "u1", "item": latest["item_id"], "rating": 1, "time": latest["time"] + 1})
    assert client.get("/v1/users/u1").json()["history"][0]["rating"] == 1


def test_what_a_bundle_does_not_have_is_passed_over(client: AppClient, store: SqliteEvents) -> None:
    """Of an earlier catalogue, or a canary's."""
    store.append([LiveEvent("a", "u1", "gone", None, None, 5)])
    answer = client.recommend({"user": "u1"}).json()
    assert answer["unknown_items"] == [] and not answer["fallback"]


def test_bodies_that_come_together_are_kept_each_as_a_whole(store: SqliteEvents) -> None:
    feed = Feed(store)
    bodies = [[LiveEvent(f"{n}-{m}", f"u{n}", "i1", None, None, m) for m in range(400)] for n in range(6)]
    calls: list[int] = []
    before = store.append
    store.append = lambda events: (calls.append(len(events)), before(events))[1]  # type: ignore[method-assign]

    async def all_of_them() -> list[list[bool]]:
        return await asyncio.gather(*(feed.append(body) for body in bodies))

    assert asyncio.run(all_of_them()) == [[True] * 400] * 6
    assert len(calls) < 6 and all(count % 400 == 0 for count in calls)


def test_sent_again_it_counts_once(client: AppClient, store: SqliteEvents) -> None:
    body = {"events": [{"user": "u0", "item": "i1", "id": "x"}, {"user": "u0", "item": "i2", "id": "y"}]}
    assert send(client, body).json() == {"kept": 2, "repeated": 0, "ids": ["x", "y"]}
    assert send(client, body).json() == {"kept": 0, "repeated": 2, "ids": ["x", "y"]}
    unnamed = [send(client, {"user": "u0", "item": "i1"}).json()["ids"][0] for _ in range(2)]
    assert len(set(unnamed)) == 2 and len(store.of(["u0"])["u0"]) == 4
    assert abs(store.of(["u0"])["u0"][-1].time - time.time()) < 60


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"user": "u0", "item": "nope"}, "item: is not in the catalogue; nothing was kept"),
        ({"events": [{"user": "u0", "item": "i1"}, {"user": "u0", "item": "nope"}]}, "events[1].item"),
        ({"user": "u0"}, "item"),
        ({"user": 5, "item": "i1"}, "user"),
        ({"user": "", "item": "i1"}, "user"),
        ({"user": "u0", "item": "i1", "rating": "5"}, "rating"),
        ({"user": "u0", "item": "i1", "time": 2**63}, "time"),
        ({"user": "u0", "item": "i1", "time": -1}, "time"),
        ({"user": "u0", "item": "i1", "time": 1_700_000_000_000}, "time: is more than a day ahead: send Unix seconds"),
        ({"events": [{"user": "u0", "item": "i1"}, {"user": "u0", "item": "i1", "time": 2**40}]}, "events[1].time"),
        ({"user": "u0", "item": "i1", "rating": -1}, "rating"),
        ({"user": "u0", "item": "i1", "when": 5}, "when"),
        ({"user": "u0", "item": "i1", "id": "x" * 600}, "id"),
        ({"events": []}, "events"),
        ({"events": [{"user": "u0", "item": "i1"}] * 1001}, "events"),
        ({"events": [{"user": "u0", "item": "i1"}], "user": "u0"}, "user"),
        ([], "should be a JSON object"),
        ({"events": ["i1"]}, 'events[0]: should be a JSON object, such as {\\"user\\": \\"1\\", \\"item\\": \\"1\\"}'),
    ],
)
def test_what_cannot_be_kept_is_told_and_nothing_is(client: AppClient, store: SqliteEvents, body: Any, words: str) -> None:
    response = send(client, body)
    assert response.status_code == 422 and words in response.text, response.text
    assert store.after("") == []


def test_only_json_is_taken(client: AppClient) -> None:
    assert client.post("/v1/events", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert client.post("/v1/events", content=b"{", headers={"Content-Type": "application/json"}).status_code == 400


def test_ids_that_are_no_text_are_refused(client: AppClient) -> None:
    body = b'{"user": "\\ud800", "item": "i1"}'
    assert client.post("/v1/events", content=body, headers={"Content-Type": "application/json"}).status_code == 400


class Away:
    """A store that cannot be reached."""

    is_remote = False
    asked = 0

    def append(self, events: list[LiveEvent]) -> list[bool]:
        raise StoreError("redis://:secret@host is away")

    def of(self, users: list[str]) -> dict[str, list[LiveEvent]]:
        self.asked += 1
        raise StoreError("redis://:secret@host is away")


def test_lists_go_on_without_the_store_and_say_so(answers: Recommender) -> None:
    store = Away()
    with client_of(answers, store) as client:
        for _ in range(5):
            answer = client.recommend({"user": "u3", "k": 5}).json()
            assert [item["item_id"] for item in answer["items"]] == [f"i{item}" for item in WORLD.wanted(3, 5)]
            assert answer["reason"] == AWAY
        assert store.asked == 1  # it is left alone for a while
        assert client.recommend({"history": [{"item": "i1"}]}).json()["reason"] is None
        assert client.recommend({"requests": [{"user": "u3"}, {"k": 2}]}).json()["answers"][0]["reason"] == AWAY
        assert client.get("/v1/users/u3").status_code == 200
        assert client.get("/v1/users/nobody").json()["code"] == "no_events"  # he may have come since
        refused = send(client, {"user": "u3", "item": "i1"})
        assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (503, "no_events", "1")
        assert "secret" not in refused.text


def test_a_store_that_is_back_is_asked_again(
    answers: Recommender, store: SqliteEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = Feed(store)
    now = [100.0]
    monkeypatch.setattr("serve.events.feed.time.monotonic", lambda: now[0])
    store.append([LiveEvent("a", "u3", "i1", None, None, 5)])
    with monkeypatch.context() as broken:
        broken.setattr(SqliteEvents, "of", Away.of)
        broken.setattr(SqliteEvents, "asked", 0, raising=False)
        assert feed.of(["u3"]) is None
    assert feed.of(["u3"]) is None
    now[0] += 2
    assert feed.of(["u3"]) == {"u3": [Event("i1", None, 5)]}


def test_without_a_store_events_are_refused_and_the_bundle_says_so(answers: Recommender) -> None:
    with AppClient(create_app(lambda: Fixed(answers), ServeArgs(bundles="planted"))) as client:  # type: ignore[arg-type, return-value]
        refused = send(client, {"user": "u3", "item": "i1"})
        assert (refused.status_code, refused.json()["code"]) == (404, "events_off")
        assert client.get("/v1/bundle").json()["takes_events"] is False


def test_explanations_know_them(client: AppClient, world: Planted) -> None:
    send(client, {"events": [{"user": "new", "item": f"i{item}"} for item in (2, 6, 10)]})
    answer = client.recommend({"user": "new", "k": 3, "explain": True}).json()
    assert {cause["item_id"] for item in answer["items"] for cause in item["because"]} <= {"i2", "i6", "i10"}
    assert all(item["because"] for item in answer["items"])
