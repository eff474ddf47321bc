"""The production profile as people start it: HAProxy at the door, keys, JSON logs."""

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from recsys.bundle import store
from recsys.bundle.read import open_bundle
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.requests import Request
from serve.client import Client, ServiceError
from tests.bundles import planted, write_planted
from tests.processes import command, free_ports, gone
from tests.service import Service

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

KEY = "a-key-that-nobody-guesses"
PATIENCE = 10  # ServeArgs.receive_timeout_s


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("door")
    write_planted(folder / "bundles", world=planted())
    (folder / "keys.toml").write_text(f'[web]\nkey = "{KEY}"\n')
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    status, metrics = map(str, free_ports(2))
    ports = {"RAY_SERVE_HAPROXY_STATS_PORT": status, "RAY_SERVE_HAPROXY_METRICS_PORT": metrics}
    options = ("--host", "0.0.0.0", "--keys", str(folder / "keys.toml"), "--profile", "production")
    service = Service(folder, *options, **ports)
    yield service
    service.close()


def doors(service: Service) -> list[psutil.Process]:
    return [process for process in service.named("haproxy") if Path(command(process).split(" ")[0]).name == "haproxy"]


def test_haproxy_answers_as_the_recommender_does_and_asks_for_a_key(folder: Path, service: Service) -> None:
    assert doors(service), "it is HAProxy that listens"
    recommender = Recommender(open_bundle(store.resolve(folder / "bundles")))
    (expected,) = recommender.recommend([Request(user="u1", k=5)])
    with Client(service.url, key=KEY) as client:
        answer = client.recommend(user="u1", k=5)
    assert [item["item_id"] for item in answer["items"]] == expected.item_ids  # type: ignore[union-attr]
    with Client(service.url) as stranger, pytest.raises(ServiceError) as refused:
        stranger.recommend(user="u1", k=5)
    assert refused.value.status == 401


def test_problems_and_request_ids_come_through_haproxy_once(service: Service) -> None:
    told = {"X-Request-Id": "mine", "Authorization": f"Bearer {KEY}"}
    response = httpx.get(f"{service.url}/v1/items/a%2Fb/similar", headers=told)
    assert response.status_code == 404 and response.json()["code"] == "unknown_item"
    assert response.headers.get_list("x-request-id") == ["mine"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_refused_through_haproxy(service: Service, chunked: bool) -> None:
    for _ in range(10):  # what was said could be lost with the connection
        chunks = (b" " * 100_000 for _ in range(30))
        response = httpx.post(
            f"{service.url}/v1/recommend",
            content=chunks if chunked else b"".join(chunks),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"},
        )
        assert response.status_code == 413 and response.json()["code"] == "too_large"


def test_who_never_finishes_his_request_is_closed_and_nobody_else_waits(service: Service) -> None:
    head = b"POST /v1/recommend HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: 99\r\n"
    with socket.create_connection(("127.0.0.1", service.port), timeout=3 * PATIENCE) as slow:
        slow.sendall(head + f"Authorization: Bearer {KEY}\r\n\r\n{{".encode())
        began = time.monotonic()
        with Client(service.url, key=KEY) as client:
            assert len(client.recommend(user="u2", k=3)["items"]) == 3
        assert time.monotonic() - began < PATIENCE / 2
        said = slow.recv(4096)
        assert said.split(b" ")[1] in (b"408", b"400"), said  # HAProxy's own word for it is 400
        assert PATIENCE / 2 < time.monotonic() - began < 2 * PATIENCE


def test_asked_to_stop_it_ends_and_takes_haproxy_with_it(folder: Path, service: Service) -> None:
    """The last: the service is gone afterwards."""
    (door, *_) = doors(service)
    service.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert service.process.wait(60) == 0
    assert time.monotonic() - began < 25, "half a minute is what Ray would wait for balancers elsewhere"
    assert gone(door)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{service.url}/readyz")
    assert KEY not in (folder / f"serve-{service.port}.log").read_text()
