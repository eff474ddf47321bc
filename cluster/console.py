"""What people see in the terminal: progress, tables, one line an epoch. Nothing here computes."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

out = Console(highlight=False, soft_wrap=True, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

WIDEST = 10_000  # characters in a line that is not folded

SHOWN_METRICS = ("hr@", "recall@", "ndcg@", "mrr@", "coverage@", "rmse", "mae")


class ProgressView:
    """A bar for each stage of the work, and a line for each epoch. A pipeline.Watcher."""

    def __init__(self, epochs: int | None = None, metric: str = "ndcg@10") -> None:
        self.epochs, self.metric = epochs, metric
        self.bars = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=err,
        )
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "ProgressView":
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bars.stop()

    def stage(self, name: str, done: int, total: int) -> None:
        """So much of a stage is done. What was done before the first word of it took no time here; less than before is a new
        round, whose clock starts anew."""
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task(name, total=total, completed=done)
        task = next(task for task in self.bars.tasks if task.id == self.tasks[name])
        if done < task.completed:
            self.bars.reset(task.id, total=total, completed=done)
        else:
            self.bars.update(task.id, completed=done, total=total)

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Within an epoch; the bar of epochs stands above it from the start."""
        if self.epochs:
            self.stage("train: epochs, at most", epoch - 1, self.epochs)
        self.stage("train: steps of an epoch", step, steps)

    def epoch(self, row: dict[str, Any]) -> None:
        if self.epochs:
            self.stage("train: epochs, at most", int(row["epoch"]), self.epochs)
        if row.get("steps"):
            self.stage("train: steps of an epoch", row["steps"], row["steps"])
        self.bars.console.print(epoch_line(row, self.metric))

    def note(self, text: str) -> None:
        """Something in words, above the bars."""
        self.bars.console.print(printable(text))


def epoch_line(row: Mapping[str, Any], metric: str) -> str:
    """One epoch in one line, from a row of metrics.jsonl."""
    parts = [f"epoch {row['epoch']:>3}"]
    if row.get("loss") is not None:
        parts.append(f"loss {row['loss']:.4f}")
    if metric in row.get("metrics", {}):
        parts.append(f"{metric} {row['metrics'][metric]:.4f}")
    if metric in row.get("popularity", {}):
        parts.append(f"(popularity {row['popularity'][metric]:.4f})")
    if row.get("events_per_second"):
        parts.append(f"{row['events_per_second']:,.0f} events/s")
    if row.get("wait_share") is not None:
        parts.append(f"{100 * row['wait_share']:.0f}% waiting for data from {row.get('read_from', 'files')}")
    if row.get("utilisation") is not None:
        parts.append(f"{100 * row['utilisation']:.0f}% busy")
    if row.get("peak_bytes"):
        parts.append(f"{row['peak_bytes'] / 1e9:.1f} GB")
    return "  ".join(parts)


def print_metrics(title: str, columns: Mapping[str, Mapping[str, float | None]]) -> None:
    """A table of metrics, a column each for the model and what it is compared with."""
    table = Table(title=printable(title), title_justify="left")
    table.add_column("metric", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    names = [name for name in next(iter(columns.values())) if name.startswith(SHOWN_METRICS)]
    for name in names:
        table.add_row(name, *(_number(values.get(name)) for values in columns.values()))
    out.print(table)


def print_rows(
    title: str, headers: Sequence[str], rows: Iterable[Sequence[Any]], right: Sequence[str] = (), *, fold: bool = True
) -> None:
    """A plain table; columns named in `right` are right-aligned. Markup in the data is shown, not obeyed.

    fold: cells are folded where the screen is too narrow; otherwise frames are left out, and a row stays one line.
    """
    table = Table(title=printable(title), title_justify="left")
    for header in headers:
        table.add_column(header, justify="right" if header in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(printable(_text(cell)) for cell in row))
    if fold or out.measure(table, options=out.options.update(max_width=WIDEST)).maximum <= out.width:
        return out.print(table)
    table.box = None
    Console(highlight=False, soft_wrap=True, emoji=False, width=WIDEST).print(table)


def say(text: str) -> None:
    """A line for people, with no markup in it."""
    out.print(text, markup=False)


def say_serving(url: str, metrics: str | None = None, logs: Path | None = None) -> None:
    """Where to look, once the service answers. metrics, logs: where those of this host are."""
    told = f", metrics: {metrics}" if metrics else ""
    told += f", logs: {logs}" if logs else ""
    say(f"Serving on {url} (page: {url}/, API: {url}/docs{told}). Ctrl-C stops.")


def news(text: str) -> None:
    """A line of what happens meanwhile, on standard error. It may hold what came from anywhere."""
    err.print(printable(text))


def print_json(value: Any) -> None:
    """One line of JSON on standard output, for programs."""
    print(json.dumps(value, ensure_ascii=False))


def printable(text: str) -> Text:
    """Text from data made harmless for a terminal: no control characters, and no markup obeyed."""
    return Text("".join(c if c.isprintable() else "�" for c in text))


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    return f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
