"""Who may ask what: every route with every kind of key, keys that change while serving, and what an admin may do."""

import hashlib
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from recsys.errors import ConfigError
from serve.args import ServeArgs
from serve.events.feed import Feed
from serve.events.sqlite import SqliteEvents
from serve.http import create_app
from serve.keys import LOOK_S, Keys
from serve.live import Live
from serve.problems import Problem
from tests.asgi import AppClient
from tests.bundles import planted, write_planted

WEB, OPS, OLD = "web-key-of-32-characters-or-so..", "ops-key-of-32-characters-or-so..", "an-old-key-that-is-gone"
BOTH = f"""
[web]
key = "{WEB}"
[ops]
sha256 = "{hashlib.sha256(OPS.encode()).hexdigest()}"
admin = true
"""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def files(tmp_path: Path) -> Callable[[str], Path]:
    def write(content: str) -> Path:
        draft = tmp_path / "keys.draft"
        draft.write_text(content)
        return draft.replace(tmp_path / "keys.toml")

    return write


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    write_planted(tmp_path / "bundles", version="a")
    write_planted(tmp_path / "bundles", version="b", world=planted(seed=1))
    return tmp_path / "bundles"


@pytest.fixture
def client_with(root: Path, files: Callable[[str], Path]) -> Iterator[Callable[[str], AppClient]]:
    made: list[AppClient] = []
    store = SqliteEvents(root / "events.sqlite")

    def make(keys: str) -> AppClient:
        args = ServeArgs(bundles=str(root), keys=str(files(keys)))
        live = Live(args)
        made.append(AppClient(create_app(lambda: live, args, Feed(store))))
        return made[-1]

    yield make
    store.close()
    for client in made:
        client.__exit__(None, None, None)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def routes(client: AppClient) -> list[tuple[str, str]]:
    """Every method and address that OpenAPI tells of."""
    api = client.get("/openapi.json").json()
    return [(method.upper(), re.sub(r"\{[^}]*\}", "u1", path)) for path, methods in api["paths"].items() for method in methods]


def ask(client: AppClient, method: str, path: str, headers: dict[str, str]) -> httpx.Response:
    body = {"content": b"{}"} if method in ("POST", "PUT") else {}
    return client.request(method, path, headers={"Content-Type": "application/json", **headers}, **body)


def test_every_route_with_every_kind_of_key(client_with: Callable[[str], AppClient]) -> None:
    client = client_with(BOTH)
    told = routes(client)
    assert {path for _, path in told} > {"/v1/recommend", "/v1/events", "/v1/admin/bundle", "/v1/admin/canary", "/healthz"}
    for method, path in told:
        free, admin = not path.startswith("/v1/"), path.startswith("/v1/admin/")
        for headers in ({}, bearer("wrong" * 8), bearer(""), {"Authorization": f"Basic {WEB}"}, {"X-API-Key": WEB[:-1]}):
            answer = ask(client, method, path, headers)
            assert (answer.status_code == 401) != free, (method, path, headers)
            if not free:
                assert answer.json()["code"] == "unauthorized" and answer.headers["www-authenticate"] == "Bearer"
        for headers in (bearer(WEB), {"X-API-Key": WEB}):
            assert (ask(client, method, path, headers).status_code == 403) == admin, (method, path)
        assert ask(client, method, path, bearer(OPS)).status_code not in (401, 403), (method, path)
    assert client.get("/", headers={}).status_code == 200


def test_without_an_admins_key_there_are_no_admins_addresses(client_with: Callable[[str], AppClient]) -> None:
    admins = [(method, path) for method, path in routes(client_with(BOTH)) if path.startswith("/v1/admin/")]
    client = client_with(f'[web]\nkey = "{WEB}"')
    assert len(admins) > 3 and not [path for _, path in routes(client) if path.startswith("/v1/admin/")]
    assert "Switch" not in client.get("/openapi.json").text
    for method, path in admins:
        for headers in ({}, bearer(WEB), bearer(OPS)):
            assert ask(client, method, path, headers).json()["code"] == "not_found"


def test_without_keys_there_is_no_admin_at_all(client: AppClient) -> None:
    assert not [path for _, path in routes(client) if "admin" in path]
    assert client.post("/v1/admin/bundle", json={}).status_code == 404
    assert client.recommend({"user": "u1"}).status_code == 200


def test_keys_change_while_serving(files: Callable[[str], Path]) -> None:
    clock = Clock()
    keys = Keys(files(f'[web]\nkey = "{OLD}"'), clock=clock)
    assert keys.admit(OLD) == "web" and not keys.has_admin
    files(f'[web]\nkey = "{WEB}"\n[before]\nkey = "{OLD}"\n[ops]\nkey = "{OPS}"\nadmin = true')
    clock.now += LOOK_S
    assert [keys.admit(key) for key in (WEB, OLD)] == ["web", "before"] and keys.admit(OPS, admin=True) == "ops"
    files(BOTH)
    clock.now += LOOK_S
    with pytest.raises(Problem, match="none of those that may ask"):
        keys.admit(OLD)


@pytest.mark.parametrize("content", ["", "[web", f'[web]\nkey = "{OLD}"\nadmin = "yes"', None])
def test_a_file_that_is_broken_later_changes_nothing(
    files: Callable[[str], Path], content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    path = files(BOTH)
    keys = Keys(path, clock=clock)
    path.unlink() if content is None else files(content)
    clock.now += LOOK_S
    assert keys.admit(WEB) == "web" and keys.admit(OPS, admin=True) == "ops"
    assert "stay" in caplog.text and OLD not in caplog.text
    files(f'[new]\nkey = "{OLD}"')
    clock.now += LOOK_S
    assert keys.admit(OLD) == "new"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no key in it"),
        ("[web", "not a TOML file"),
        ("[web]", "give key"),
        ('[web]\nkey = "short"', "web.key"),
        (f'[web]\nkey = "{WEB}"\nsha256 = "{"0" * 64}"', "give key"),
        ('[web]\nsha256 = "x"', "web.sha256"),
        (f'[web]\nkey = "{WEB}"\nrate = 0', "web.rate"),
        (f'[web]\nkey = "{WEB}"\nadmin = 1', "web.admin"),
        (f'[web]\nkey = "{WEB}"\nadmins = true', "web.admins"),
        (f'key = "{WEB}"', "key"),
    ],
)
def test_a_file_that_is_none_of_keys_is_refused_without_repeating_one(
    files: Callable[[str], Path], content: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)) as error:
        Keys(files(content))
    assert WEB not in str(error.value)


def test_a_key_may_ask_so_often(files: Callable[[str], Path]) -> None:
    clock = Clock()
    keys = Keys(files(f'[web]\nkey = "{WEB}"\nrate = 8\n[ops]\nkey = "{OPS}"'), replicas=2, clock=clock)
    for _ in range(4):
        keys.admit(WEB)
    with pytest.raises(Problem, match="4 times a second") as refused:
        keys.admit(WEB)
    assert refused.value.status == 429 and refused.value.headers == {"Retry-After": "1"}
    for _ in range(100):
        keys.admit(OPS)
    admitted = 0
    for _ in range(10_000):
        clock.now += 0.001
        try:
            admitted += keys.admit(WEB) == "web"
        except Problem:
            continue
    assert admitted == pytest.approx(40, abs=1)


def test_a_rare_key_is_told_how_long_to_wait(files: Callable[[str], Path]) -> None:
    clock = Clock()
    keys = Keys(files(f'[web]\nkey = "{WEB}"\nrate = 0.1'), clock=clock)
    keys.admit(WEB)
    with pytest.raises(Problem) as refused:
        keys.admit(WEB)
    assert refused.value.headers == {"Retry-After": "10"}
    clock.now += 10
    keys.admit(WEB)


def test_no_key_is_logged(client_with: Callable[[str], AppClient], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client = client_with(BOTH)
    client.get("/v1/bundle", headers=bearer(WEB))
    client.get("/v1/bundle", headers=bearer("some-wrong-key-or-other"))
    assert WEB not in caplog.text and "some-wrong-key" not in caplog.text


# An admin


def test_an_admin_switches_bundles(client_with: Callable[[str], AppClient]) -> None:
    client = client_with(BOTH)

    def post(body: Any) -> httpx.Response:
        return client.post("/v1/admin/bundle", json=body, headers=bearer(OPS))

    def served() -> str:
        version: str = client.get("/v1/bundle", headers=bearer(WEB)).json()["version"]
        return version

    assert served() == "b"
    assert post({}).json() == {"version": "a"} and served() == "a"
    assert post({"version": "b"}).json() == {"version": "b"} and served() == "b"
    for body in ({"version": "c"}, {"version": "../a"}, {"version": "/etc"}, {"version": 5}, {"folder": "a"}, []):
        answer = post(body)
        assert answer.status_code == 422 and served() == "b", answer.text
    post({"version": "a"})
    assert served() == "a"  # one that was taken before is taken again
    assert [post({}).json()["version"] for _ in range(2)] == ["b", "a"]  # back along what was served
    assert post({}).status_code == 422  # there is none before the first


def test_a_prefix_opens_no_door(client_with: Callable[[str], AppClient]) -> None:
    """Ray keeps the whole path and tells what of it is the prefix."""
    client = client_with(BOTH)
    inner = client.app

    async def prefixed(scope: Any, receive: Any, send: Any) -> None:
        await inner({**scope, "root_path": "/api"}, receive, send)

    with AppClient(prefixed) as outside:
        for method, path in routes(client):
            free = not path.startswith("/v1/")
            assert (ask(outside, method, f"/api{path}", {}).status_code == 401) != free, path
            assert ask(outside, method, f"/api{path}", bearer(OPS)).status_code not in (401, 403), path
        assert ask(outside, "POST", "/api/v1/admin/bundle", bearer(WEB)).status_code == 403


def test_one_versions_own_folder_is_not_switched(root: Path, files: Callable[[str], Path]) -> None:
    args = ServeArgs(bundles=str(root / "films" / "a"), keys=str(files(BOTH)))
    live = Live(args)
    with AppClient(create_app(lambda: live, args)) as client:
        for method, path, body in (("POST", "bundle", {"version": "b"}), ("PUT", "canary", {"version": "b", "share": 0.5})):
            answer = client.request(method, f"/v1/admin/{path}", json=body, headers=bearer(OPS))
            assert answer.status_code == 422 and "own folder" in answer.text


def test_an_admin_sets_a_canary(root: Path, client_with: Callable[[str], AppClient]) -> None:
    client = client_with(BOTH)
    told = client.request("PUT", "/v1/admin/canary", json={"version": "a", "share": 0.25}, headers=bearer(OPS))
    assert told.json() == {"version": "a", "share": 0.25}
    assert client.get("/v1/bundle", headers=bearer(WEB)).json()["canary"] == told.json()
    for body in ({"version": "a", "share": 1}, {"version": "a", "share": 0}, {"version": "nope", "share": 0.5}, {"share": 0.5}):
        assert client.request("PUT", "/v1/admin/canary", json=body, headers=bearer(OPS)).status_code == 422
    assert client.request("DELETE", "/v1/admin/canary", headers=bearer(OPS)).status_code == 204
    current = client.get("/v1/bundle", headers=bearer(WEB)).json()["version"]
    refused = client.request("PUT", "/v1/admin/canary", json={"version": current, "share": 0.5}, headers=bearer(OPS))
    assert refused.status_code == 422 and "another version" in refused.text and not list(root.rglob("CANARY"))
    assert client.get("/v1/bundle", headers=bearer(WEB)).json()["canary"] is None


def test_an_admin_makes_the_store_forget(client_with: Callable[[str], AppClient]) -> None:
    client = client_with(BOTH)
    client.post("/v1/events", json={"events": [{"user": "new/1", "item": "i1"}] * 2}, headers=bearer(WEB))
    assert client.get("/v1/users/new/1", headers=bearer(WEB)).json()["events"] == 2
    assert client.request("DELETE", "/v1/admin/users/new%2F1", headers=bearer(OPS)).json() == {"events": 2}
    assert client.get("/v1/users/new/1", headers=bearer(WEB)).status_code == 404
