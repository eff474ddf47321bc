"""The service on a real Ray Serve, on this machine's loopback and a free port."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import ray

from recsys.bundle import store
from recsys.bundle.manifest import ITEM_VECTORS
from recsys.bundle.read import open_bundle
from recsys.errors import BundleError, ConfigError
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.requests import Request
from serve.app import serving, url_of
from serve.args import ServeArgs
from serve.client import Client
from serve.ports import end_orphan, free_port, require_port
from tests.bundles import planted, rehash, write_planted
from tests.processes import below

pytestmark = pytest.mark.ray

USERS = 24


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    write_planted(folder, world=planted(users=USERS))
    return folder


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    before = os.environ.pop("RAY_ADDRESS", None)
    with serving(ServeArgs(bundles=str(root), port=0, replicas=2, watch_s=0.5)) as url:
        yield url
    if before:
        os.environ["RAY_ADDRESS"] = before


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::1", "http://[::1]:80"),
        ("::", "http://[::1]:80"),
    ],
)
def test_the_url_can_be_asked_from_here(host: str, url: str) -> None:
    assert url_of(ServeArgs(bundles="b", host=host, port=80, open=True)) == url


def test_a_port_in_use_is_refused_before_anything_starts(root: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port} .*--port"), serving(ServeArgs(bundles=str(root), port=port)):
            raise AssertionError("served")


def test_a_bundle_that_is_not_there_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle here"), serving(ServeArgs(bundles=str(tmp_path), port=0)):
        raise AssertionError("served")


def test_a_bundle_whose_parts_do_not_belong_together_is_refused_before_anything_starts(tmp_path: Path) -> None:
    folder = write_planted(tmp_path)
    vectors = np.load(folder / ITEM_VECTORS)
    np.save(folder / ITEM_VECTORS, np.roll(vectors, 1, axis=0))
    rehash(folder, ITEM_VECTORS)  # whole as far as hashes can say
    with pytest.raises(BundleError, match="golden"), serving(ServeArgs(bundles=str(tmp_path), port=0)):
        raise AssertionError("served")


def test_two_replicas_answer_as_the_recommender_does(root: Path, url: str) -> None:
    recommender = Recommender(open_bundle(next(path for path in (root / "films").iterdir() if path.is_dir())))
    users = [f"u{user}" for user in range(USERS)] * 4
    expected = recommender.recommend([Request(user=user, k=7) for user in users])
    with Client(url) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda user: client.recommend(user=user, k=7), users))
    for answer, wanted in zip(answers, expected, strict=True):
        assert [item["item_id"] for item in answer["items"]] == wanted.item_ids  # type: ignore[union-attr]
        assert [item["score"] for item in answer["items"]] == pytest.approx(wanted.scores.tolist(), rel=1e-6)  # type: ignore[union-attr]
        assert (answer["path"], answer["bundle"]) == (wanted.path, recommender.bundle.version)  # type: ignore[union-attr]


def test_problems_and_request_ids_come_through_the_proxy_once(url: str) -> None:
    response = httpx.get(f"{url}/v1/items/a%2Fb/similar", headers={"X-Request-Id": "mine"})
    assert response.status_code == 404 and response.json()["code"] == "unknown_item" and "'a/b'" in response.json()["detail"]
    assert response.headers.get_list("x-request-id") == ["mine"] and response.json()["request_id"] == "mine"
    made = httpx.get(f"{url}/nowhere")
    assert made.json()["request_id"] == made.headers["x-request-id"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_refused_through_the_proxy(url: str, chunked: bool) -> None:
    chunks = (b" " * 100_000 for _ in range(30))
    body = chunks if chunked else b"".join(chunks)
    response = httpx.post(f"{url}/v1/recommend", content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["code"]) == (413, "too_large")


def test_the_page_its_files_and_the_documentation_are_there(url: str) -> None:
    for path in ("/", "/web/app.js", "/web/style.css", "/docs", "/openapi.json", "/healthz", "/readyz"):
        response = httpx.get(url + path)
        assert response.status_code == 200 and "default-src 'self'" in response.headers["content-security-policy"], path


def test_a_second_service_on_the_same_ray_is_refused(root: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="already runs"), serving(ServeArgs(bundles=str(root), port=0)):
        raise AssertionError("served")
    assert httpx.get(f"{url}/healthz").status_code == 200


def test_prometheus_sees_what_is_served(url: str) -> None:
    """As it scrapes a node: requests by route, lists by what made them, the bundle, batches."""
    for _ in range(3):
        httpx.post(f"{url}/v1/recommend", json={"user": "u3"})
    httpx.get(f"{url}/v1/users/nobody")
    port = ray.nodes()[0]["MetricsExportPort"]

    def scraped() -> str:
        return httpx.get(f"http://127.0.0.1:{port}/metrics").text

    version = re.escape(httpx.get(f"{url}/v1/bundle").json()["version"])
    wanted = [
        r'ray_recsys_requests_total\{[^}]*route="users"[^}]*status="404"[^}]*\} 1\.0',
        rf'ray_recsys_answers_total\{{[^}}]*bundle="{version}"[^}}]*path="exact"',
        r'ray_recsys_request_seconds_count\{[^}]*route="recommend"',
        r"ray_recsys_batch_size_count\{",
        rf'ray_recsys_bundle\{{[^}}]*role="current"[^}}]*version="{version}"[^}}]*\}} 1\.0',
        r"ray_recsys_bundle_rejected\{[^}]*\} 0\.0",
    ]
    until(lambda: all(re.search(pattern, scraped()) for pattern in wanted))


def test_a_new_bundle_is_taken_under_load_and_a_bad_one_is_not(root: Path, url: str) -> None:
    """Two replicas, every answer a good one and from one bundle, while bundles come, bad ones among them."""
    first = httpx.get(f"{url}/v1/bundle").json()["version"]
    done, answered = threading.Event(), []

    def ask() -> None:
        with httpx.Client() as client:
            while not done.is_set():
                answered.append(client.post(f"{url}/v1/recommend", json={"user": "u3"}))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        bad = write_planted(root, world=planted(USERS, seed=1), version="z-bad")
        vectors = np.load(bad / ITEM_VECTORS)
        np.save(bad / ITEM_VECTORS, np.roll(vectors, 1, axis=0))
        rehash(bad, ITEM_VECTORS)
        until(lambda: (httpx.get(f"{url}/v1/bundle").json()["rejected"] or {}).get("version") == "z-bad")
        write_planted(root, world=planted(USERS, seed=2), version="z-good")
        until(lambda: all(httpx.get(f"{url}/v1/bundle").json()["version"] == "z-good" for _ in range(20)))
    finally:
        done.set()
        for thread in threads:
            thread.join()
        store.promote(root / "films", first)
    until(lambda: all(httpx.get(f"{url}/v1/bundle").json()["version"] == first for _ in range(20)))
    assert len(answered) > 50 and {answer.status_code for answer in answered} == {200}
    lists = {(answer.json()["bundle"], *(item["item_id"] for item in answer.json()["items"])) for answer in answered}
    assert {bundle for bundle, *_ in lists} == {first, "z-good"} and len(lists) == 2


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.2)


def test_serve_run_builds_the_application_from_strings(root: Path, tmp_path: Path) -> None:
    """`serve run` as anybody would type it; it has its own Ray, and listens where Serve's settings say."""
    port = free_port()
    code = (
        "import ray, sys; from ray.serve.scripts import cli;"
        f"ray.init(address='local', num_cpus=3, include_dashboard=False, object_store_memory=100 << 20, logging_level='ERROR');"
        f"from ray import serve; serve.start(http_options={{'host': '127.0.0.1', 'port': {port}}});"
        f"cli(['run', '--non-blocking', 'serve.app:build', 'bundles={root}', 'max_k=20', 'replicas=1'], standalone_mode=False);"
        "print('READY', flush=True); sys.stdin.read(); serve.shutdown()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        "RAY_USAGE_STATS_ENABLED": "0"
    }
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment
        ) as process,
    ):
        assert process.stdin and process.stdout
        try:
            told = b""
            while b"READY" not in told:
                line = process.stdout.readline()
                assert line, (tmp_path / "log").read_text()[-3000:]
                told += line
            with Client(f"http://127.0.0.1:{port}") as client:
                assert len(client.recommend(user="u1", k=5)["items"]) == 5
                assert client.bundle()["max_k"] == 20
        finally:
            process.stdin.close()
            process.wait(60)


URGENT = {"raylet/raylet", "gcs_server", "ServeController", "ServeReplica"}
REPORTERS = {"DashboardAgent", "/log_monitor.py"}


def read(url: str) -> str:
    """Nothing, as long as nobody answers."""
    try:
        return httpx.get(url).text
    except httpx.TransportError:
        return ""


@contextmanager
def served_by_command(root: Path, log: Path, more: str = "") -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A process of its own that serves, in a group of its own, once it answers; and its address."""
    code = (
        "import sys; from serve.app import run; from serve.args import ServeArgs;"
        f"run(ServeArgs(bundles={str(root)!r}, port=0, {more}), ready=lambda url: print(url, flush=True),"
        "tell=lambda text: print('TOLD', text, file=sys.stderr, flush=True)); print('ENDED')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=stderr, env=environment, start_new_session=True
        ) as process,
    ):
        assert process.stdout
        url = process.stdout.readline().decode().strip()
        assert url, log.read_text()[-3000:]
        assert httpx.get(f"{url}/readyz").status_code == 200
        yield process, url


def test_the_command_tells_what_happens_and_sigterm_ends_it_cleanly(tmp_path: Path) -> None:
    root, port = tmp_path / "bundles", free_port()
    world = planted(users=USERS)
    first = write_planted(root, world=world)
    with served_by_command(root, tmp_path / "log", f"watch_s=0.2, metrics_port={port}") as (process, url):
        until(lambda: "recsys_bundle_swaps" in read(f"http://127.0.0.1:{port}/metrics"))
        niceness = {name: [p.nice() for p in below(psutil.Process(process.pid), name)] for name in URGENT | REPORTERS}
        own = psutil.Process().nice()
        assert niceness == {name: [min(own + 10, 19) if name in REPORTERS else own] for name in URGENT | REPORTERS}
        second = write_planted(root, world=world)
        swapped = f"bundle {second.name} answers from now on, in place of {first.name}"
        until(lambda: swapped in (tmp_path / "log").read_text())
        process.terminate()
        rest = process.stdout.read()  # type: ignore[union-attr]
    assert process.returncode == 0 and b"ENDED" in rest
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz")


def refusal(root: Path, **settings: int) -> str:
    """What a process of its own says that may not serve with some settings."""
    script = (
        "from recsys.errors import ConfigError; from serve.app import serving; from serve.args import ServeArgs\n"
        "try:\n"
        f"    with serving(ServeArgs(bundles={str(root)!r}, port=0, **{settings!r})): pass\n"
        "except ConfigError as error: print(error)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert run.stdout, run.stderr[-3000:]
    return run.stdout


def test_gpus_that_are_not_there_are_not_waited_for(root: Path) -> None:
    assert "gpus: 99 for each replica (1), but Ray sees" in refusal(root, gpus=99)


def test_a_port_for_metrics_that_cannot_be_had_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        taken.listen()
        assert "choose another port: --metrics-port" in refusal(root, metrics_port=taken.getsockname()[1])
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with (
        pytest.raises(ConfigError, match="a Ray that runs already"),
        serving(ServeArgs(bundles=str(root), port=0, metrics_port=free_port())),
    ):
        raise AssertionError("served")


def test_sigterm_to_ray_as_well_ends_the_command_at_once_and_says_what_to_do(root: Path, tmp_path: Path) -> None:
    with served_by_command(root, tmp_path / "log") as (process, _):
        os.killpg(process.pid, signal.SIGTERM)
        began = time.monotonic()
        process.wait(60)
    assert process.returncode == 1 and time.monotonic() - began < 30
    assert "Send SIGTERM to this process alone" in (tmp_path / "log").read_text()


def test_what_a_killed_service_leaves_at_its_metrics_port_is_ended(root: Path, tmp_path: Path) -> None:
    """Else the agent of its Ray would keep it from being started again for a minute. One of a Ray that lives is left alone."""
    port = free_port()
    with served_by_command(root, tmp_path / "log", f"metrics_port={port}") as (process, _):
        (agent,) = below(psutil.Process(process.pid), "ray::DashboardAgent")
        end_orphan(port)
        assert agent.is_running()
        raylet = agent.ppid()
        process.kill()
    until(lambda: agent.ppid() != raylet)
    assert agent.is_running(), "nothing is in the way, and this test tries nothing"
    end_orphan(port)
    assert not agent.is_running() and require_port("0.0.0.0", port) == port
