"""A page of training curves from the rows of metrics.jsonl: of one run, or of several over one another."""

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Row = Mapping[str, Any]
MODEL, POPULARITY = "#1f5fa8", "#9a9a9a"


def draw_training(rows: Sequence[Row], path: Path, *, title: str, metric: str) -> None:
    """Write a PNG: loss, validation metrics with popularity's as a line to beat, learning rate and speed, by epoch.

    rows: of metrics.jsonl, in order; `metric` is the one that chose the best epoch, which is marked.
    """
    figure = Figure(figsize=(11, 7), layout="constrained")  # no pyplot: it would keep state and want a display
    figure.suptitle(_literal(title))
    loss, chosen, others, speed = figure.subplots(2, 2).flat
    _curve(loss, "loss", rows, _values(rows, "loss"))
    _against_popularity(chosen, rows, metric)
    told = rows[-1]["metrics"] if rows else {}
    for name in sorted(name for name in told if name != metric and not name.startswith("coverage")):  # far larger than the rest
        others.plot(_epochs(rows), [row["metrics"].get(name) for row in rows], marker=".", label=name)
    _finish(others, "other metrics, validation")
    _speed(speed, rows)
    figure.savefig(path, dpi=110, format="png")


def draw_comparison(runs: Mapping[str, Sequence[Row]], path: Path, *, metric: str) -> None:
    """Write a PNG: loss, a validation metric with popularity's, learning rate and speed, by epoch, a colour for each run.

    runs: rows of metrics.jsonl, in order, by the name that the legend shows.
    """
    figure = Figure(figsize=(11, 7), layout="constrained")
    loss, chosen, rate, speed = figure.subplots(2, 2).flat
    for rows in runs.values():  # under the rest; of the same dataset, they lie on one another
        chosen.plot(_epochs(rows), [row["popularity"].get(metric) for row in rows], color=POPULARITY, linestyle="--")
    chosen.lines[0].set_label("popularity")
    for i, (name, rows) in enumerate(runs.items()):
        style: dict[str, Any] = {"label": _literal(name), "color": f"C{i}"}
        loss.plot(_epochs(rows), _values(rows, "loss"), marker=".", **style)
        chosen.plot(_epochs(rows), [row["metrics"].get(metric) for row in rows], marker=".", **style)
        rate.plot(_epochs(rows), _values(rows, "learning_rate"), drawstyle="steps-mid", **style)
        speed.plot(_epochs(rows), _values(rows, "events_per_second"), marker=".", **style)
    rate.set_ylim(bottom=0)
    for axes, title in ((loss, "loss"), (chosen, f"{metric}, validation"), (rate, "learning rate"), (speed, "events a second")):
        _finish(axes, title)
    figure.savefig(path, dpi=110, format="png")


def _curve(axes: Axes, title: str, rows: Sequence[Row], values: Sequence[float]) -> None:
    axes.plot(_epochs(rows), values, marker=".", color=MODEL)
    _finish(axes, title, legend=False)


def _against_popularity(axes: Axes, rows: Sequence[Row], metric: str) -> None:
    axes.plot(_epochs(rows), [row["metrics"].get(metric) for row in rows], marker=".", color=MODEL, label="model")
    axes.plot(_epochs(rows), [row["popularity"].get(metric) for row in rows], color=POPULARITY, label="popularity")
    best = [row for row in rows if row.get("best")]
    if best:
        axes.axvline(best[-1]["epoch"], color=MODEL, linestyle=":", label=f"best: epoch {best[-1]['epoch']}")
    _finish(axes, f"{metric}, validation")


def _speed(axes: Axes, rows: Sequence[Row]) -> None:
    axes.bar(_epochs(rows), [(row.get("events_per_second") or 0) / 1e6 for row in rows], color=MODEL)
    rate = axes.twinx()
    rate.plot(_epochs(rows), _values(rows, "learning_rate"), color=POPULARITY, drawstyle="steps-mid")
    rate.set_ylabel("learning rate", color=POPULARITY)
    rate.set_ylim(bottom=0)
    _finish(axes, "million events a second, and learning rate", legend=False)


def _literal(text: str) -> str:
    """A name that holds dollars is no formula."""
    return text.replace("$", r"\$")


def _epochs(rows: Sequence[Row]) -> list[int]:
    return [row["epoch"] for row in rows]


def _values(rows: Sequence[Row], name: str) -> list[float]:
    return [nan if row.get(name) is None else row[name] for row in rows]


def _finish(axes: Axes, title: str, *, legend: bool = True) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
