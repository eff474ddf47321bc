"""Events through a real service of two replicas: seen at once by both, and learnt from by a new bundle."""

import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from serve.app import serving
from serve.args import ServeArgs

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]  # it learns three times, by the command

ROOT = Path(__file__).resolve().parents[2]
CHOSEN = ("model.name=spectral", "model.dim=4", "train.epochs=2", "model.trend_days=0", "cluster.num_workers=0")
SETTINGS = tuple(word for setting in CHOSEN for word in ("--set", setting))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of four tastes, a model of it and its bundle, by the command."""
    folder = tmp_path_factory.mktemp("feedback")
    with (folder / "base.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id", "rating", "time"])
        for user in range(80):
            items = [user % 4 + 4 * ((user // 4 + step * (1 + user % 3)) % 12) for step in range(9)]
            writer.writerows([f"u{user}", f"i{item}", 4, 1000 + place] for place, item in enumerate(dict.fromkeys(items)))
    for command in (
        ("prepare", "base.csv", "data"),
        ("train", "data", "--name", "first", *SETTINGS),
        ("export", "first", "bundles", "--name", "films"),
    ):
        recsys(folder, *command)
    return folder


def recsys(folder: Path, *command: str) -> None:
    run(folder, [str(Path(sys.executable).with_name("recsys")), *command])


def run(folder: Path, command: list[str]) -> None:
    found = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stdout + found.stderr


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**{k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}, "PATH": path, "UNRATED": "4"}


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    with serving(ServeArgs(bundles=str(root / "bundles"), port=0, replicas=2, watch_s=0.5)) as url:
        yield url


def listed(url: str, user: str, k: int = 12) -> list[str]:
    answer = httpx.post(f"{url}/v1/recommend", json={"user": user, "k": k}).json()
    return [item["item_id"] for item in answer["items"]]


def send(url: str, user: str, item: str, event: str) -> None:
    sent = {"user": user, "item": item, "time": int(time.time()), "id": event}
    assert httpx.post(f"{url}/v1/events", json=sent).json()["ids"] == [event]


def test_every_request_after_the_acknowledgement_knows(url: str) -> None:
    for number in range(20):
        item = listed(url, "u3")[0]
        send(url, "u3", item, f"first-{number}")
        assert all(item not in listed(url, "u3", 100) for _ in range(10))  # whichever replica answers


def test_events_become_a_bundle_that_the_service_takes_by_itself(root: Path, url: str) -> None:
    for number in (1, 5, 9):
        send(url, "new", f"i{number}", f"new-{number}")
    shown = httpx.get(f"{url}/v1/users/new").json()
    assert shown["events"] == 3
    before = httpx.get(f"{url}/v1/bundle").json()
    run(root, ["bash", str(ROOT / "examples" / "retrain.sh"), "bundles", "films", "data", "grown", *SETTINGS])
    until(lambda: all(httpx.get(f"{url}/v1/bundle").json()["version"] != before["version"] for _ in range(10)))
    after = httpx.get(f"{url}/v1/bundle").json()
    assert after["users"] == before["users"] + 1 and after["events"] > before["events"]
    send(url, "new", "i13", "new-13")
    run(root, ["bash", str(ROOT / "examples" / "retrain.sh"), "bundles", "films", "data", "grown", *SETTINGS])  # as by a clock
    until(lambda: all(httpx.get(f"{url}/v1/bundle").json()["version"] != after["version"] for _ in range(10)))
    again = httpx.get(f"{url}/v1/users/new").json()
    assert again["events"] == 4  # each once, though the store has them still
    assert [event["item_id"] for event in again["history"]] == ["i13", "i9", "i5", "i1"]
    assert [event["rating"] for event in again["history"]] == [4.0] * 4
    assert all(int(item[1:]) % 4 == 1 for item in listed(url, "new", 5))


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.2)
