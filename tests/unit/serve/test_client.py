"""The client: what it asks, when it asks again, and what it raises. Answers come from the application or are scripted."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from serve import client as module
from serve.client import AsyncClient, Client, FailedError, NotFoundError, RefusedError
from tests.asgi import AppClient

Script = list[httpx.Response | Exception]


class Scripted:
    """Plays answers one after the other, and remembers what was asked and how long was waited."""

    def __init__(self, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
        self.script, self.asked, self.waits = script, [], []  # type: ignore[var-annotated]
        monkeypatch.setattr(module.time, "sleep", self.waits.append)
        monkeypatch.setattr(module.asyncio, "sleep", self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self.script.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def problem(status: int, code: str, **headers: str) -> httpx.Response:
    body = {"status": status, "code": code, "detail": "do this", "request_id": "r1"}
    return httpx.Response(status, content=json.dumps(body), headers={"Content-Type": "application/problem+json", **headers})


def played(script: Script, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Client, Scripted]:
    scripted = Scripted(script, monkeypatch)
    return Client(http=httpx.Client(transport=httpx.MockTransport(scripted), base_url="http://s"), **options), scripted


def test_overload_is_waited_out_as_long_as_asked_and_a_little_more(monkeypatch: pytest.MonkeyPatch) -> None:
    script: Script = [
        problem(503, "overloaded", **{"Retry-After": "3"}),
        problem(503, "overloaded"),
        httpx.Response(200, json={"ok": 1}),
    ]
    client, scripted = played(script, monkeypatch, backoff_s=0.5)
    assert client.bundle() == {"ok": 1}
    first, second = scripted.waits
    assert 3 <= first <= 3.5 and 0 <= second <= 1


def test_a_service_that_is_away_for_a_moment_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    script: Script = [
        httpx.ConnectError("refused"),
        httpx.RemoteProtocolError("cut"),
        httpx.Response(502),
        httpx.Response(200, json={}),
    ]
    client, scripted = played(script, monkeypatch)
    assert client.bundle() == {} and len(scripted.asked) == 4


def test_it_gives_up_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    client, scripted = played([problem(503, "overloaded")] * 3, monkeypatch, retries=2)
    with pytest.raises(FailedError, match="503 overloaded: do this"):
        client.bundle()
    assert len(scripted.asked) == 3
    client, _ = played([httpx.ConnectError("refused")], monkeypatch, retries=0)
    with pytest.raises(httpx.ConnectError):
        client.bundle()


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (422, "invalid", RefusedError),
        (404, "unknown_user", NotFoundError),
        (404, "events_off", RefusedError),
        (500, "internal", FailedError),
    ],
)
def test_what_asking_again_cannot_help_is_raised_at_once(
    monkeypatch: pytest.MonkeyPatch, status: int, code: str, error: type[Exception]
) -> None:
    client, scripted = played([problem(status, code)], monkeypatch)
    with pytest.raises(error) as raised:
        client.user("x")
    assert raised.type is error
    assert (raised.value.code, raised.value.request_id, len(scripted.asked)) == (code, "r1", 1)  # type: ignore[attr-defined]


def test_a_slow_answer_is_not_asked_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    client, scripted = played([httpx.ReadTimeout("slow")], monkeypatch)
    with pytest.raises(httpx.ReadTimeout):
        client.bundle()
    assert len(scripted.asked) == 1


def test_ids_travel_whole_through_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    client, scripted = played([httpx.Response(200, json={})] * 2, monkeypatch)
    client.similar("a/b?c#d%é", k=3)
    client.user("../x y")
    assert scripted.asked[0].url.raw_path == b"/v1/items/a%2Fb%3Fc%23d%25%C3%A9/similar?k=3"
    assert scripted.asked[1].url.raw_path == b"/v1/users/..%2Fx%20y?limit=100"


def test_both_clients_ask_the_service_alike(client_of: Callable[..., AppClient]) -> None:
    app = client_of().app

    async def scenario() -> list[Any]:
        async with AsyncClient(http=httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://s")) as client:
            return [
                await client.recommend(user="u1", k=3),
                await client.recommend(history=["i1", {"item": "i5", "rating": 4.0}], exclude=["i9"], mode="exact"),
                await client.recommend_many([{"user": "u1", "k": 3}]),
                await client.similar("i1", k=2),
                await client.search("film 1", limit=2),
                await client.user("u1"),
                await client.bundle(),
            ]

    known, folded, many, similar, found, user, bundle = asyncio.run(scenario())
    assert many["answers"] == [known] and len(known["items"]) == 3
    assert folded["path"] == "exact" and "i9" not in {item["item_id"] for item in folded["items"]}
    assert len(similar["items"]) == len(found["items"]) == 2
    assert user["events"] == 5 and bundle["name"] == "films"
