"""Pictures of a dataset: popularity, activity, and events over time."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from recsys.data.summary import DatasetSummary

INK = "#1f5fa8"


def draw_dataset(summary: DatasetSummary, path: Path) -> None:
    """Write a PNG: train events by item and events by user, from the highest down, and events over time if there are times."""
    figure = Figure(figsize=(13 if summary.daily else 9, 4), layout="constrained")  # no pyplot: it would want a display
    figure.suptitle(f"{summary.users:,} users, {summary.items:,} items, {summary.events:,} events ({summary.split})")
    axes = figure.subplots(1, 3 if summary.daily else 2)
    _ranked(axes[0], summary.popularity, "popularity", "item, the most watched first", "train events")
    _ranked(axes[1], summary.activity, "activity", "user, the most active first", "events")
    if summary.daily:
        _over_time(axes[2], summary.daily)
    figure.savefig(path, dpi=110, format="png")


def _ranked(axes: Axes, curve: Sequence[tuple[int, int]], title: str, what: str, count: str) -> None:
    axes.plot([rank for rank, _ in curve], [value for _, value in curve], color=INK)
    if curve:
        axes.set_xscale("log")
        axes.set_yscale("log")
    axes.set(title=title, xlabel=what, ylabel=count)
    axes.grid(alpha=0.3)


def _over_time(axes: Axes, daily: Sequence[tuple[int, int]]) -> None:
    days = [datetime.fromtimestamp(second, UTC) for second, _ in daily]
    axes.fill_between(days, [events for _, events in daily], step="post", color=INK, alpha=0.6)  # type: ignore[arg-type]
    locator = AutoDateLocator()  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.set(title="events over time", ylim=(0, None))
    axes.grid(alpha=0.3)
