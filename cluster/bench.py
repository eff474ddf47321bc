"""`recsys bench serve`: what a service takes and what its index finds, as tables, bench.json and bench.png."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cluster import console
from cluster.pictures import INK
from cluster.runs import write_json
from recsys.errors import RecsysError
from recsys.retrieval.measure import Sweep
from recsys.retrieval.recommender import Recommender

SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 1.1)
"""Of the peak: the rates where none are given."""
SWEPT_USERS = 1_000
MOST_USERS = 100_000
FIT = 512
"""Users under way for each replica at the peak: half of what its queue holds."""
WARM_S = 3.0
RED = "#b3261e"


@dataclass(frozen=True)
class Load:
    """One rate, held. rate: requests a second that were due; None: as many as its callers could. Milliseconds of good answers
    alone."""

    rate: float | None
    asked: int
    per_second: float
    failed: dict[int, int]
    p50: float | None
    p90: float | None
    p99: float | None
    slowest: float | None

    @classmethod
    def of(cls, seen: Any, rate: float | None) -> "Load":
        """From `serve.load.Seen`."""
        shares = [None if ms is None else round(ms, 2) for ms in map(seen.milliseconds, (0.5, 0.9, 0.99, 1.0))]
        return cls(rate, seen.asked, round(seen.per_second, 1), seen.failed, *shares)


@dataclass(frozen=True)
class Measured:
    """All of it. index: None where there is nothing to sweep."""

    bundle: str
    settings: dict[str, Any]
    peak: Load
    rates: list[Load]
    index: Sweep | None


def called(recommender: Recommender) -> str:
    """The bundle's name for titles."""
    manifest = recommender.bundle.manifest
    return f"{manifest.name} {manifest.version}: {len(recommender.bundle.users):,} users, {len(recommender.items.ids):,} items"


def users_of(recommender: Recommender) -> list[str]:
    """Ids of users to ask for."""
    users = recommender.bundle.users
    return [users.id(row) for row in range(min(len(users), MOST_USERS))]


def measure_load(
    closed: Callable[[float], Any],
    opened: Callable[[float, float], Any],
    rates: Sequence[float] | None,
    seconds: float,
    progress: Callable[[str, int, int], None],
) -> tuple[Load, list[Load]]:
    """The peak, and the rates, or shares of the peak. closed: asks for so many seconds; opened: at a rate, for so many.

    Raises RecsysError where nothing is answered.
    """
    progress("peak", 0, 1)
    closed(min(seconds, WARM_S))
    peak = Load.of(closed(seconds), None)
    if not peak.per_second:
        why = f"but {failed(peak)}: see `recsys serve`'s log, and its keys" if peak.failed else f"within {seconds:g} s"
        raise RecsysError(f"Nothing was answered with 200, {why}.")
    progress("peak", 1, 1)
    steps = rates or [round(max(1.0, share * peak.per_second), 1) for share in SHARES]
    held: list[Load] = []
    for rate in steps:
        progress("rates", len(held), len(steps))
        held.append(Load.of(opened(rate, seconds), rate))
    progress("rates", len(held), len(steps))
    return peak, held


def write(measured: Measured, out: Path) -> None:
    """bench.json and bench.png."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "bench.json", as_json(measured))
    figure = Figure(figsize=(12 if measured.index else 7, 4.5), layout="constrained")
    figure.suptitle(measured.bundle)
    axes = figure.subplots(1, 2 if measured.index else 1, squeeze=False)[0]
    _draw_load(axes[0], measured)
    if measured.index:
        _draw_index(axes[1], measured.index)
    figure.savefig(out / "bench.png", dpi=110)


def as_json(measured: Measured) -> dict[str, Any]:
    """For programs."""
    index = measured.index
    swept = None if index is None else asdict(index) | {"reports": [report.model_dump() for report in index.reports]}
    return asdict(replace(measured, index=None)) | {"index": swept}


def print_tables(measured: Measured, out: Path) -> None:
    """Load, then the index, then where the files are."""
    loads = [measured.peak, *measured.rates]
    rows = [("as many as can be" if load.rate is None else f"{load.rate:,.1f}", *_cells(load)) for load in loads]
    headers = ("asked a second", "answered a second", "failed", "p50 ms", "p90 ms", "p99 ms", "slowest ms")
    console.print_rows(f"Load on {measured.bundle}", headers, rows, right=headers)
    if measured.index is None:
        console.say("Its index leaves nothing out, or has no setting of how far it looks: nothing to sweep.")
    else:
        _print_index(measured.index)
    console.say(f"{out / 'bench.json'}, {out / 'bench.png'}")


def failed(load: Load) -> str:
    """What did not come back well, in words."""
    return ", ".join(f"{count:,} × {status or 'no answer'}" for status, count in load.failed.items())


def _cells(load: Load) -> list[str]:
    times = ["" if ms is None else f"{ms:,.1f}" for ms in (load.p50, load.p90, load.p99, load.slowest)]
    return [f"{load.per_second:,.1f}", failed(load), *times]


def _print_index(index: Sweep) -> None:
    rows = []
    for report in index.reports:
        effort = report.parameters[index.setting]
        numbers = (f"{report.recall_at_10:.4f}", f"{report.recall_low:.4f}", f"{report.ann_ms:.3f}")
        rows.append((str(effort), *numbers, "as it is served" if effort == index.own else ""))
    first = index.reports[0]
    headers = (index.setting, "recall@10", "at least", "ms a user", "")
    console.print_rows(f"Index {first.kind}; exact search: {first.exact_ms:.3f} ms a user", headers, rows, right=headers[:4])


def _draw_load(axes: Axes, measured: Measured) -> None:
    loads = sorted((load for load in measured.rates if load.p50 is not None), key=lambda load: load.rate or 0)
    rates = [load.rate or 0 for load in loads]
    for name, style in (("p50", ":"), ("p90", "--"), ("p99", "-")):
        axes.plot(rates, [getattr(load, name) for load in loads], style, color=INK, marker="o", label=name)
    for load in loads:
        if load.failed:
            share = sum(load.failed.values()) / load.asked
            axes.annotate(f"{share:.0%} failed", (load.rate or 0, load.p99 or 0), color=RED, ha="right", va="bottom")
    axes.axvline(measured.peak.per_second, color=RED, lw=1, label=f"peak {measured.peak.per_second:,.0f}/s")
    axes.set(title="time to an answer", xlabel="requests a second", ylabel="ms", yscale="log", xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_index(axes: Axes, index: Sweep) -> None:
    axes.plot([r.ann_ms for r in index.reports], [r.recall_at_10 for r in index.reports], color=INK, marker="o")
    for report in index.reports:
        effort = report.parameters[index.setting]
        weight = "bold" if effort == index.own else "normal"
        axes.annotate(f" {effort}", (report.ann_ms, report.recall_at_10), va="top", weight=weight)
    axes.axvline(index.reports[0].exact_ms, color=RED, lw=1, label="exact search")
    axes.set(
        title=f"what the index finds, by {index.setting}", xlabel="ms a user, one thread", ylabel="recall@10", xscale="log"
    )
    axes.grid(alpha=0.3)
    axes.legend()
