"""What is counted, and that dashboard and alerts ask for nothing else."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from recsys.bundle.store import set_canary
from recsys.config import IndexConfig
from serve import metrics, proxy
from serve.args import ServeArgs
from serve.http import create_app
from serve.live import Live
from serve.metrics import GAUGES, INDEX_GAUGES, index_of, route_of, state_of
from tests.asgi import AppClient
from tests.bundles import write_planted

MONITORING = Path(__file__).resolve().parents[3] / "k8s" / "monitoring"


class Counted:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, int]] = []
        self.batches: list[int] = []

    def answered(self, path: str, status: int, seconds: float) -> None:
        assert 0 < seconds < 10
        self.requests.append((path, status))

    def batch(self, replies: Any, queued: int, seconds: float) -> None:
        assert 0 < seconds < 10 and queued == 0
        self.batches.append(len(replies))


def test_every_request_and_batch_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    write_planted(tmp_path / "bundles")
    args, counted = ServeArgs(bundles=str(tmp_path / "bundles")), Counted()
    live = Live(args)
    with AppClient(create_app(lambda: live, args, None, counted)) as client:
        client.recommend({"requests": [{"user": "u1"}, {"user": "u2"}, {"k": 0}]})
        client.recommend({"k": 0})
        client.get("/v1/users/nobody")
        client.get("/nowhere")
    assert counted.requests == [("/v1/recommend", 200), ("/v1/recommend", 422), ("/v1/users/nobody", 404), ("/nowhere", 404)]
    assert counted.batches == [2]
    state = state_of(live)
    assert state.keys() == GAUGES.keys() and state["bundle_rejected"] == 0.0


def test_the_canarys_index_is_told_beside_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    root, misses = tmp_path / "bundles", {"index": IndexConfig(kind="hnsw"), "recall_floor": 0.125}
    write_planted(root, version="a")
    live = Live(ServeArgs(bundles=str(root)))
    write_planted(root, version="b", promote=False, **misses)
    set_canary(root / "films", "b", 0.5)
    assert live.look()
    canary = index_of(live.served, "canary")
    assert canary.keys() == INDEX_GAUGES.keys() and canary["recall_floor"] == 0.125
    assert index_of(live.served, "current")["recall_floor"] == 0.0
    set_canary(root / "films", None, 0)
    assert live.look() and index_of(live.served, "canary") == index_of(live.served, "current")


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/recommend", "recommend"),
        ("/v1/items/a/b/similar", "items"),
        ("/v1/admin/bundle", "admin"),
        ("/v1/", "other"),
        ("/v1/anything-somebody-makes-up", "other"),
        ("/recommend", "other"),
        ("/", "other"),
    ],
)
def test_no_address_makes_a_series_of_its_own(path: str, route: str) -> None:
    assert route_of(path) == route


def names() -> set[str]:
    """As Prometheus shows them."""
    source = Path(metrics.__file__).read_text("utf-8") + Path(proxy.__file__).read_text("utf-8").replace("Counter(", "made(")
    made = re.findall(r"(made|Histogram|Gauge)\(\"(recsys_\w+)\"", source)
    counters = {f"ray_{name}_total" for kind, name in made if kind == "made"}
    histograms = {f"ray_{name}_{part}" for kind, name in made if kind == "Histogram" for part in ("bucket", "sum", "count")}
    gauges = {f"ray_{name}" for kind, name in made if kind == "Gauge"} | {f"ray_recsys_{name}" for name in GAUGES}
    gauges |= {f"ray_recsys_index_{name}" for name in INDEX_GAUGES}
    return counters | histograms | gauges


def test_dashboard_and_alerts_ask_for_what_there_is() -> None:
    panels = json.loads((MONITORING / "dashboard.json").read_text("utf-8"))["panels"]
    rules = yaml.safe_load((MONITORING / "rules.yaml").read_text("utf-8"))["groups"][0]["rules"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]] + [rule["expr"] for rule in rules]
    used = {name for expression in asked for name in re.findall(r"ray_recsys_\w+", expression)}
    assert len(names()) > 20 and used <= names(), used - names()
    assert all(rule["annotations"]["description"] for rule in rules)
