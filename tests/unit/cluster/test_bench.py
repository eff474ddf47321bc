"""`recsys bench serve`: what is made of what callers saw."""

import json
from pathlib import Path

import numpy as np
import pytest

from cluster import bench
from recsys.bundle.manifest import IndexReport
from recsys.retrieval.measure import Sweep
from serve.load import Seen


def seen(per_second: int, seconds: float, failed: int = 0) -> Seen:
    count = round(per_second * seconds)
    status = np.array([200] * count + [503] * failed)
    return Seen(np.linspace(0, seconds / 2, count + failed), np.full(count + failed, 0.004), status, seconds)


def report(probes: int, recall: float) -> IndexReport:
    numbers = {"recall_at_10": recall, "recall_low": recall, "users": 9, "ann_ms": probes / 10, "exact_ms": 2.5}
    return IndexReport.model_validate({"kind": "ivf", "parameters": {"probes": probes}, "indexed": 100} | numbers)


def measured(index: Sweep | None) -> bench.Measured:
    rates = [bench.Load.of(seen(50, 2), 50), bench.Load.of(seen(180, 2, failed=40), 200)]
    return bench.Measured("films 1", {"k": 10}, bench.Load.of(seen(200, 2), None), rates, index)


SWEEP = Sweep("probes", 4, [report(2, 0.9), report(4, 0.99)])


def test_rates_are_shares_of_the_peak_unless_given() -> None:
    asked: list[tuple[float, float]] = []
    told: list[tuple[str, int, int]] = []

    def opened(rate: float, seconds: float) -> Seen:
        asked.append((rate, seconds))
        return seen(round(rate), seconds)

    peak, held = bench.measure_load(lambda seconds: seen(400, seconds), opened, None, 2, lambda *word: told.append(word))
    assert peak.per_second == 400 and peak.rate is None
    assert asked == [(40, 2), (100, 2), (200, 2), (300, 2), (360, 2), (440, 2)] and [load.rate for load in held] == [
        rate for rate, _ in asked
    ]
    assert told[0] == ("peak", 0, 1) and told[-1] == ("rates", 6, 6)
    asked.clear()
    bench.measure_load(lambda seconds: seen(400, seconds), opened, [7.0], 2, lambda *word: None)
    assert asked == [(7, 2)]


@pytest.mark.parametrize("index", [SWEEP, None])
def test_all_is_written_and_drawn(tmp_path: Path, index: Sweep | None, capsys: pytest.CaptureFixture[str]) -> None:
    bench.write(measured(index), tmp_path / "a")
    assert (tmp_path / "a" / "bench.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((tmp_path / "a" / "bench.json").read_text())
    assert written["peak"] == {
        "rate": None,
        "asked": 400,
        "per_second": 200.0,
        "failed": {},
        "p50": 4.0,
        "p90": 4.0,
        "p99": 4.0,
        "slowest": 4.0,
    }
    assert written["rates"][1]["failed"] == {"503": 40}
    assert (written["index"] or {}).get("own") == (4 if index else None)
    bench.print_tables(measured(index), tmp_path / "a")
    printed = capsys.readouterr().out
    assert "40 × 503" in printed and ("as it is served" in printed) == (index is not None)
    assert index is not None or "nothing to sweep" in printed
