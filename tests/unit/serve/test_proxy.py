"""What Ray's proxy tells while nobody stands behind it, as its middleware makes it."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest
from ray import serve as ray_serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from serve import proxy
from serve.problems import Problem, overloaded
from serve.proxy import CALLBACK, Throttle, middlewares
from tests.asgi import AppClient


async def found(request: object) -> PlainTextResponse:
    return PlainTextResponse("here")


async def ours(request: object) -> Response:
    return Problem("unknown_user", "nobody").response("r1")


async def lost(request: Request) -> PlainTextResponse:
    """As Ray says it."""
    return PlainTextResponse(f"Path '{request.url.path}' not found. Ping http://.../-/routes for available routes.", 404)


async def anothers(request: object) -> JSONResponse:
    return JSONResponse({"detail": "Not Found"}, 404)


@pytest.fixture
def client() -> Iterator[AppClient]:
    routes = [Route("/here", found), Route("/v1/users/x", ours), Route("/other", anothers), Route("/{any:path}", lost)]
    with AppClient(Starlette(routes=routes, middleware=middlewares())) as client:
        yield client


def test_an_address_that_the_proxy_does_not_know_is_a_503_to_try_again(client: AppClient) -> None:
    response = client.get("/v1/bundle")
    assert (response.status_code, response.json()["code"]) == (503, "not_ready")
    assert response.headers["retry-after"] == "1" and response.headers["connection"] == "close"
    assert response.headers["x-request-id"] == response.json()["request_id"]
    assert response.headers["x-content-type-options"] == "nosniff"


def test_all_else_goes_through_as_it_is(client: AppClient) -> None:
    assert client.get("/here").text == "here"
    assert client.get("/v1/users/x").json()["code"] == "unknown_user"
    assert (client.get("/other").status_code, client.get("/other").json()) == (404, {"detail": "Not Found"})


def test_ray_finds_it_by_the_name_that_it_is_told() -> None:
    from ray.serve._private.http_util import validate_http_proxy_callback_return
    from ray.serve._private.utils import call_function_from_import_path

    (path,) = CALLBACK.values()
    assert len(validate_http_proxy_callback_return(call_function_from_import_path(path))) == 2


class Replicas:
    """Take so many of what comes within a second of the clock, and refuse the rest."""

    def __init__(self, takes: int, clock: "Clock") -> None:
        self.takes, self.clock, self.reached = takes, clock, Counter[int]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/readyz":
            return await Response("{}")(scope, receive, send)
        second = int(self.clock())
        self.reached[second] += 1
        full = self.reached[second] > self.takes
        await (overloaded(1).response("r1") if full else Response("{}"))(scope, receive, send)


class Clock:
    """Moved by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def asked(app: ASGIApp, clock: Clock, rate: int, seconds: int, path: str = "/rec/v1/recommend") -> list[int]:
    """Statuses of so many requests a second."""
    with AppClient(app) as client:
        statuses = []
        for _ in range(rate * seconds):
            clock.now += 1 / rate
            statuses.append(client.get(path).status_code)
    return statuses


def test_in_a_flood_little_more_than_what_replicas_take_reaches_them_and_they_take_no_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random.seed(0)
    clock = Clock()
    monkeypatch.setattr(proxy, "monotonic", clock)
    replicas = Replicas(20, clock)
    told: list[None] = []
    throttled = Throttle(replicas, lambda: told.append(None))
    assert set(asked(throttled, clock, 15, 4)) == {200}  # what they can take is let through, all of it
    flood = asked(throttled, clock, 200, 8)
    assert flood.count(200) >= 7 * 20 and set(flood) == {200, 503}
    assert sum(replicas.reached[second] for second in range(6, 12)) <= 6 * 2.2 * 20, "of 200 a second"
    assert set(asked(throttled, clock, 20, 1, "/readyz")) == {200}, "health is asked of replicas in any flood"
    assert len(told) + sum(replicas.reached.values()) == 15 * 4 + 200 * 8, "counted here or there"
    after = asked(throttled, clock, 15, 8)
    assert after[5 * 15 :].count(200) >= 0.95 * 3 * 15  # within five seconds it is as it was


def test_many_at_once_are_let_through_while_nothing_is_known() -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.05)
        await Response("{}")(scope, receive, send)

    with AppClient(Throttle(slow, pytest.fail)) as client:
        assert {response.status_code for response in client.together([{}] * 64)} == {200}


def test_more_questions_than_the_proxy_can_pass_on_in_time_are_refused_at_once_and_health_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proxy, "MOST", 4)
    under_way, go_on = 0, asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal under_way
        under_way += 1
        await go_on.wait()
        await Response("{}")(scope, receive, send)

    told: list[None] = []
    throttled = Throttle(slow, lambda: told.append(None))

    async def flood() -> tuple[list[httpx.Response], list[httpx.Response]]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(throttled), base_url="http://service") as http:
            waiting = [asyncio.create_task(http.post("/v1/recommend")) for _ in range(4)]
            while under_way < 4:
                await asyncio.sleep(0)
            refused = [await http.post("/v1/recommend") for _ in range(3)]
            waiting += [asyncio.create_task(http.get("/readyz")), asyncio.create_task(http.post("/v1/events"))]
            while under_way < 6:
                await asyncio.sleep(0)
            waiting[0].cancel()  # who hangs up makes room
            await asyncio.sleep(0)
            waiting.append(asyncio.create_task(http.post("/v1/recommend")))
            await asyncio.sleep(0)
            go_on.set()
            return refused, await asyncio.gather(*waiting[1:])

    refused, answered = asyncio.run(flood())
    assert [(response.status_code, response.json()["code"]) for response in refused] == [(503, "overloaded")] * 3
    assert all(response.headers["retry-after"] == "1" for response in refused) and len(told) == 3
    assert [response.status_code for response in answered] == [200] * 6


def test_round_a_replica_that_callers_reach_by_themselves_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(middlewares()) == 2
    monkeypatch.setattr(ray_serve, "get_replica_context", lambda: object())
    assert middlewares() == []


def test_a_503_that_is_no_overload_throttles_nobody() -> None:
    async def away(scope: Scope, receive: Receive, send: Send) -> None:
        await Problem("no_events", "ask again").response("r1")(scope, receive, send)

    throttled = Throttle(away, pytest.fail)
    with AppClient(throttled) as client:
        assert {client.get("/v1/recommend").json()["code"] for _ in range(200)} == {"no_events"}
