"""What people and machines send that they should not: always 4xx with a problem document, never a traceback, and nobody
else suffers."""

import asyncio
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.errors import RequestError
from recsys.retrieval.recommender import Recommender
from serve import middleware
from serve.problems import PROBLEMS
from tests.asgi import AppClient

JSON = {"Content-Type": "application/json"}
fuzzed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)


def assert_problem(response: httpx.Response, code: str | None = None) -> dict[str, Any]:
    problem: dict[str, Any] = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "status", "code", "detail", "request_id"} <= set(problem)
    assert problem["status"] == response.status_code == PROBLEMS[problem["code"]][0]
    assert problem["request_id"] == response.headers["x-request-id"]
    assert problem["detail"] and "Traceback" not in response.text
    assert code is None or problem["code"] == code, response.text
    return problem


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"user": "u1"',
        b"[" * 100_000,
        b'{"history":' * 5_000 + b"1" + b"}" * 5_000,
        b'{"k": ' + b"9" * 5_000 + b"}",
        b'{"k": NaN}',
        b'{"history": [{"item": "i1", "rating": Infinity}]}',
        b'{"history": [{"item": "i1", "rating": 1e999}]}',
        b'{"user": "\\ud800"}',
        b'{"user": "\xed\xa0\x80"}',
        b'{"user": "\xff"}',
        b'{"user": "u1"} {"user": "u2"}',
        b"\x00",
    ],
)
def test_a_body_that_is_no_json_is_a_400(client: AppClient, body: bytes) -> None:
    assert_problem(client.post("/v1/recommend", content=body, headers=JSON), "bad_json")


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ([], "body"),
        (None, "body"),
        ("u1", "body"),
        (7, "body"),
        ({"k": 0}, "k"),
        ({"k": -1}, "k"),
        ({"k": 1001}, "k"),
        ({"k": 10**12}, "k"),
        ({"k": 18446744073709551616}, "k"),
        ({"k": 2.5}, "k"),
        ({"k": "10"}, "k"),
        ({"k": True}, "k"),
        ({"k": None}, "k"),
        ({"user": 1}, "user"),
        ({"user": ""}, "user"),
        ({"user": "u" * 513}, "user"),
        ({"user": ["u1"]}, "user"),
        ({"history": "i1"}, "history"),
        ({"history": ["i1"]}, "history[0]"),
        ({"history": [{}]}, "history[0].item"),
        ({"history": [{"item": 1}]}, "history[0].item"),
        ({"history": [{"item": "i" * 513}]}, "history[0].item"),
        ({"history": [{"item": "i1", "rating": "5"}]}, "history[0].rating"),
        ({"history": [{"item": "i1", "rating": 1e300}]}, "history[0].rating"),
        ({"history": [{"item": "i1", "time": 1.5}]}, "history[0].time"),
        ({"history": [{"item": "i1", "time": 2**63}]}, "history[0].time"),
        ({"history": [{"item": "i1"}] * 10_001}, "history"),
        ({"exclude": "i1"}, "exclude"),
        ({"exclude": [None]}, "exclude[0]"),
        ({"exclude": None}, "exclude"),
        ({"allow": {"i1": 1}}, "allow"),
        ({"allow": ["i"] * 10_001}, "allow"),
        ({"mode": "fast"}, "mode"),
        ({"exclude_seen": "yes"}, "exclude_seen"),
        ({"uzer": "u1"}, "uzer"),
        ({"requests": []}, "requests"),
        ({"requests": {}}, "requests"),
        ({"requests": [{}] * 257}, "requests"),
        ({"requests": [{}], "k": 3}, "requests"),
    ],
)
def test_a_field_that_cannot_be_is_a_422_that_names_it(client: AppClient, body: Any, where: str) -> None:
    problem = assert_problem(client.recommend(body), "invalid")
    assert where in [error["where"] for error in problem["errors"]]
    assert problem["detail"].startswith(problem["errors"][0]["where"])
    assert len(json.dumps(problem)) < 5_000  # what was sent is not sent back


def test_only_json_is_taken(client: AppClient) -> None:
    for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}):
        assert_problem(client.post("/v1/recommend", content=b'{"user": "u1"}', headers=headers), "not_json")
    accepted = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert client.post("/v1/recommend", content=b'{"user": "u1"}', headers=accepted).status_code == 200


@pytest.mark.parametrize(
    "path", ["/v2/recommend", "/v1", "/v1/items/i1", "/web/", "/web/../serve/app.py", "/docs/x", "/docs/", "/%00"]
)
def test_an_address_that_is_not_there_is_a_404(client: AppClient, path: str) -> None:
    assert_problem(client.get(path), "not_found")


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/recommend"), ("POST", "/v1/items"), ("DELETE", "/healthz"), ("PUT", "/")]
)
def test_a_wrong_method_is_a_405_that_says_what_is_allowed(client: AppClient, method: str, path: str) -> None:
    response = client.request(method, path)
    assert_problem(response, "method_not_allowed")
    assert response.headers["allow"] in response.json()["detail"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/items?limit=5",
        "/v1/items?query=film&limit=0",
        "/v1/items?query=film&limit=101",
        "/v1/items?query=film&limit=" + "9" * 5_000,
        "/v1/items?query=" + "x" * 201,
        "/v1/items/i1/similar?k=0",
        "/v1/items/i1/similar?k=x",
        "/v1/items/" + "i" * 513 + "/similar",
        "/v1/users/" + "u" * 513,
        "/v1/users/",
        "/v1/users/u1?limit=-1",
        "/v1/items?query=film&k=5",
        "/v1/items/i1/similar?limit=5",
        "/v1/users/u1?k=5",
    ],
)
def test_a_parameter_that_cannot_be_is_a_422(client: AppClient, path: str) -> None:
    assert_problem(client.get(path), "invalid")


@pytest.mark.parametrize("path", ["/v1/recommend?k=3", "/v1/events?k=3"])
def test_parameters_after_a_body_are_not_passed_over(client: AppClient, path: str) -> None:
    problem = assert_problem(client.post(path, content=b"{}", headers=JSON), "invalid")
    assert "put them into the body" in problem["detail"]


@pytest.mark.parametrize(
    "name", ["nobody", "a/b", "a%2Fb", "%00", "%F0%9F%8E%AC", "%FF", "%25", "..", "a?b", "similar/similar"]
)
def test_ids_are_taken_as_they_are_and_unknown_ones_are_404(client: AppClient, name: str) -> None:
    for response, code in (
        (client.get(f"/v1/items/{name.replace('?', '%3F')}/similar"), {"unknown_item", "not_found"}),
        (client.get(f"/v1/users/{name.replace('?', '%3F')}"), {"unknown_user", "not_found"}),
    ):
        assert assert_problem(response)["code"] in code


def test_a_declared_body_over_the_limit_is_refused_unread(client_of: Callable[..., AppClient]) -> None:
    client = client_of(max_body_bytes=2_000)
    response = client.post("/v1/recommend", content=b" " * 2_001, headers=JSON)
    assert_problem(response, "too_large")
    assert response.headers["connection"] == "close"
    assert client.post("/v1/recommend", content=b'{"user": "u1"}'.ljust(2_000), headers=JSON).status_code == 200


def test_a_chunked_body_is_read_no_further_than_the_limit_and_what_lingers(
    client_of: Callable[..., AppClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "LINGER_BYTES", 5_000)
    client = client_of(max_body_bytes=10_000)
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1_000
            yield b" " * 1_000

    assert_problem(client.post("/v1/recommend", content=endless(), headers=JSON), "too_large")
    assert 15_000 <= sent <= 17_000


def test_a_refused_body_that_stops_on_its_way_is_waited_for_shortly(
    client_of: Callable[..., AppClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "LINGER_S", 0.1)
    client = client_of(max_body_bytes=1_500)

    async def halting() -> AsyncIterator[bytes]:
        yield b" " * 2_000
        await asyncio.sleep(60)

    began = time.monotonic()
    assert_problem(client.post("/v1/recommend", content=halting(), headers=JSON), "too_large")
    assert time.monotonic() - began < 30


def test_a_body_that_trickles_is_not_waited_for(client_of: Callable[..., AppClient]) -> None:
    """However lively it is: the time is that of the whole."""
    client = client_of(receive_timeout_s=0.3)
    sent = 0

    async def trickle() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b" "
            await asyncio.sleep(0.05)

    response = client.post("/v1/recommend", content=trickle(), headers=JSON)
    assert_problem(response, "too_slow")
    assert response.headers["connection"] == "close" and 3 <= sent <= 8
    assert client.recommend({"user": "u1"}).status_code == 200


def test_a_length_that_is_no_number_is_not_believed(client: AppClient) -> None:
    for length in ("-1", "x", "9" * 400):
        response = client.post("/v1/recommend", content=b"{}", headers={**JSON, "Content-Length": length})
        assert response.status_code in (200, 413)


@pytest.mark.parametrize(("sent", "kept"), [("abc-1.2:x/y=", True), ("a" * 129, False), ("two words", False), ("é", False)])
def test_a_request_id_is_taken_over_or_made(client: AppClient, sent: str, kept: bool) -> None:
    response = client.get("/nowhere", headers={"X-Request-Id": sent.encode()})
    identifier = response.headers["x-request-id"]
    assert response.headers.get_list("x-request-id") == [identifier]
    assert (identifier == sent) is kept and assert_problem(response)["request_id"] == identifier
    assert kept or re.fullmatch("[0-9a-f]{32}", identifier)


class Failing:
    """A recommender with a defect that one user meets."""

    def __init__(self, recommender: Recommender, defect: Exception) -> None:
        self.recommender, self.defect = recommender, defect

    def __getattr__(self, name: str) -> Any:
        return getattr(self.recommender, name)

    def recommend(self, requests: Any) -> Any:
        if any(request.user == "poison" for request in requests):
            raise self.defect
        return self.recommender.recommend(requests)

    def check(self, request: Any) -> None:
        if request.user == "refused":
            raise RequestError("bad_user", "Not him.")


class Slow:
    """A recommender that goes through its catalogue until it is told to go on."""

    go_on = threading.Event()

    def __init__(self, recommender: Recommender) -> None:
        self.recommender = recommender
        Slow.go_on.clear()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.recommender, name)

    def similar(self, item_id: str, k: int) -> Any:
        assert self.go_on.wait(30)
        return self.recommender.similar(item_id, k)

    def search(self, text: str, limit: int) -> Any:
        assert self.go_on.wait(30)
        return self.recommender.search(text, limit)


def test_a_defect_is_a_500_without_its_traceback_and_neighbours_are_answered(
    client_of: Callable[..., AppClient], recommender: Recommender, caplog: pytest.LogCaptureFixture
) -> None:
    client = client_of(recommender=Failing(recommender, RuntimeError("secret /etc/path")))
    names = ["u1", "poison", "u2", "refused", "u3"]
    responses = client.together([{"user": name, "k": 3} for name in names])
    assert [response.status_code for response in responses] == [200, 500, 200, 422, 200]
    problem = assert_problem(responses[1], "internal")
    assert "secret" not in responses[1].text
    assert problem["request_id"] in caplog.text and "secret" in caplog.text  # the log has what the answer has not
    assert responses[2].json() == client.recommend({"user": "u2", "k": 3}).json()
    assert assert_problem(responses[3], "invalid")["detail"] == "Not him."
    assert "content-security-policy" in responses[1].headers


def test_while_the_queue_is_full_bodies_are_not_even_read(client_of: Callable[..., AppClient]) -> None:
    client = client_of(max_queued=4, max_requests=4, max_batch=2)
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        read += 1
        yield b'{"requests": [' + b", ".join([b'{"user": "u1"}'] * 4) + b"]}"

    async def flood() -> list[httpx.Response]:
        http = httpx.AsyncClient(transport=httpx.ASGITransport(client.app), base_url="http://service")
        async with http:
            first = [asyncio.create_task(http.post("/v1/recommend", content=body(), headers=JSON)) for _ in range(2)]
            while not any(task.done() for task in first):  # until one of the two did not fit
                await asyncio.sleep(0)
            return await asyncio.gather(*first, *[http.post("/v1/recommend", content=body(), headers=JSON) for _ in range(9)])

    statuses = [response.status_code for response in client._runner.run(flood())]
    assert statuses[:2] in ([200, 503], [503, 200]) and statuses.count(200) + statuses.count(503) == 11
    assert read < 11


def test_a_full_queue_is_a_503_with_retry_after(client_of: Callable[..., AppClient]) -> None:
    client = client_of(max_queued=4, max_requests=4, max_batch=2)
    responses = client.together([{"requests": [{"user": "u1"}] * 4} for _ in range(5)])
    statuses = [response.status_code for response in responses]
    assert sorted(statuses) == [200, 503, 503, 503, 503]
    refused = responses[statuses.index(503)]
    assert_problem(refused, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    assert client.recommend({"user": "u1"}).status_code == 200  # and it goes on


def test_what_goes_through_the_whole_catalogue_holds_up_no_list(
    client_of: Callable[..., AppClient], recommender: Recommender
) -> None:
    client = client_of(recommender=Slow(recommender), max_requests=2)

    async def flood() -> tuple[httpx.Response, list[httpx.Response]]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(client.app), base_url="http://service") as http:
            slow = [asyncio.create_task(http.get(path)) for path in ("/v1/items/i1/similar", "/v1/items?query=film") * 3]
            while client.app.state.service.aside.queued < 2:
                await asyncio.sleep(0)
            list_ = await http.post("/v1/recommend", json={"user": "u1"})
            Slow.go_on.set()
            return list_, await asyncio.gather(*slow)

    list_, slow = client._runner.run(flood())
    assert list_.status_code == 200
    statuses = [response.status_code for response in slow]
    assert set(statuses) == {200, 503} and statuses.count(200) >= 2
    assert_problem(next(response for response in slow if response.status_code == 503), "overloaded")


def test_who_hangs_up_is_not_computed_for(client_of: Callable[..., AppClient]) -> None:
    client = client_of()
    service = client.app.state.service

    async def scenario() -> None:
        task = asyncio.create_task(service.recommend(b'{"user": "u1"}', "id"))
        await asyncio.sleep(0)
        assert service.batcher.queued == 1
        task.cancel()
        other = await service.recommend(b'{"user": "u2"}', "id")
        assert other["path"] == "exact" and task.cancelled()
        assert list(service.batcher.sizes) == [1]

    asyncio.run(scenario())


def test_who_hangs_up_while_sending_is_no_failure(client: AppClient, caplog: pytest.LogCaptureFixture) -> None:
    messages = [{"type": "http.request", "body": b'{"user"', "more_body": True}, {"type": "http.disconnect"}]
    headers = [(b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/recommend",
        "headers": headers,
        "query_string": b"",
        "raw_path": b"",
    }
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(client.app(scope, receive, send))
    assert sent == [] and not [record for record in caplog.records if record.levelname == "ERROR"]


# Deferred, not st.recursive: that one reads the source of its argument, and warns where it cannot.
anything = st.deferred(
    lambda: (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text()
        | st.lists(anything, max_size=4)
        | st.dictionaries(st.text(), anything, max_size=4)
    )
)
fields = ["user", "history", "k", "exclude_seen", "exclude", "allow", "mode", "requests", "item", "rating", "time"]
words = ["i1", "u1", "ann", "", "\x00", "🎬"]
requestlike = st.deferred(
    lambda: (
        st.none()
        | st.booleans()
        | st.integers(-3, 2000)
        | st.floats()
        | st.sampled_from(words)
        | st.lists(requestlike, max_size=3)
        | st.dictionaries(st.sampled_from(fields), requestlike, max_size=5)
    )
)


@fuzzed
@given(body=anything | requestlike)
def test_whatever_json_comes_the_answer_is_an_answer_or_a_problem(client: AppClient, body: Any) -> None:
    response = client.post("/v1/recommend", content=json.dumps(body).encode(), headers=JSON)
    if response.status_code == 200:
        assert {"items", "answers"} & set(response.json())
    else:
        assert_problem(response)
        assert 400 <= response.status_code < 500


@fuzzed
@given(body=st.binary(max_size=300))
def test_whatever_bytes_come_the_answer_is_a_problem(client: AppClient, body: bytes) -> None:
    response = client.post("/v1/recommend", content=body, headers=JSON)
    assert 400 <= response.status_code < 500
    assert_problem(response)


@fuzzed
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60), limit=st.integers(1, 100))
def test_whatever_title_is_searched_is_searched(client: AppClient, text: str, limit: int) -> None:
    response = client.get("/v1/items", params={"query": text, "limit": limit})
    assert response.status_code == 200 and len(response.json()["items"]) <= limit


@fuzzed
@given(k=st.integers(1, 1000), hidden=st.sets(st.integers(0, 56)), allowed=st.none() | st.sets(st.integers(0, 59)))
def test_exactly_k_come_or_all_there_are(
    client: AppClient, world: Any, k: int, hidden: set[int], allowed: set[int] | None
) -> None:
    body = {"user": "u1", "k": k, "exclude": [f"i{item}" for item in hidden]}
    if allowed is not None:
        body["allow"] = [f"i{item}" for item in allowed]
    wanted = [i for i in world.wanted(1, 1000) if i not in hidden and (allowed is None or i in allowed)][:k]
    assert [item["item_id"] for item in client.recommend(body).json()["items"]] == [f"i{item}" for item in wanted]
