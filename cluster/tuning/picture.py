"""A page of a tune's trials: by number, against latency, against each setting."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cluster.tuning.space import Range, Space, Value
from cluster.tuning.trials import FINISHED, STOPPED, Trial, best, sign

CHOSEN, FAST, SLOW, EARLY = "#c2410c", "#1f5fa8", "#7c5cbf", "#b0b0b0"
COLUMNS, SMALL = 4, 2.6  # small panels a row, and their height in inches


def draw_trials(trials: Sequence[Trial], space: Space, path: Path, *, title: str) -> None:
    """Write a PNG: the goal by trial with the best so far, against latency with the limit where it was measured, and against
    each setting. Trials that were stopped early show the best they had."""
    shown = [trial for trial in trials if trial.goal is not None]
    settings = {name: domain for name, domain in space.settings.items() if isinstance(domain, Range) or len(domain) > 1}
    rows = math.ceil(len(settings) / COLUMNS)
    figure = Figure(figsize=(13, 4.2 + SMALL * rows), layout="constrained")  # no pyplot: it would want a display
    figure.suptitle(title.replace("$", r"\$"))
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(4.2, max(SMALL * rows, 0.1)))[:, 0]
    timed = any(trial.latency_ms is not None for trial in shown)
    panels = above.subplots(1, 2 if timed else 1, squeeze=False)[0]
    _by_number(panels[0], shown, space)
    if timed:
        _by_latency(panels[1], shown, space)
    if settings:
        grid = below.subplots(rows, COLUMNS, squeeze=False, sharey=True)
        for axes, (name, domain) in zip(grid.flat, settings.items(), strict=False):
            _by_setting(axes, shown, space, name, domain)
        for axes in grid.flat[len(settings) :]:
            axes.set_visible(False)
    figure.savefig(path, dpi=110, format="png")


def best_so_far(trials: Sequence[Trial], space: Space) -> tuple[list[int], list[float]]:
    """Numbers of the trials that may be chosen, and the best goal up to each of them."""
    numbers: list[int] = []
    goals: list[float] = []
    for trial in sorted(trials, key=lambda trial: trial.number):
        if trial.within(space.goal) and trial.goal is not None:
            better = trial.goal if not goals else max(goals[-1], trial.goal, key=lambda goal: sign(space.goal) * goal)
            numbers.append(trial.number)
            goals.append(better)
    return numbers, goals


def _by_number(axes: Axes, trials: Sequence[Trial], space: Space) -> None:
    axes.step(*best_so_far(trials, space), where="post", color=FAST, alpha=0.6, label="the best so far")
    _points(axes, trials, [trial.number for trial in trials], space, labelled=True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title=f"{space.goal.metric} on validation, by trial", xlabel="trial")
    axes.legend(fontsize=8)


def _by_latency(axes: Axes, trials: Sequence[Trial], space: Space) -> None:
    timed = [trial for trial in trials if trial.latency_ms is not None]
    _points(axes, timed, [trial.latency_ms or 0.0 for trial in timed], space)
    if (limit := space.goal.latency_ms) is not None:
        axes.axvline(limit, color=SLOW, linestyle="--", label=f"limit: {limit:g} ms")
        axes.legend(fontsize=8)
    axes.set_xlim(left=0)
    axes.set(title="against the time of an answer", xlabel="milliseconds, 95th percentile")


def _by_setting(axes: Axes, trials: Sequence[Trial], space: Space, name: str, domain: tuple[Value, ...] | Range) -> None:
    trials = [trial for trial in trials if name in trial.settings]
    if isinstance(domain, Range):
        _points(axes, trials, [float(trial.settings[name] or 0) for trial in trials], space)
        axes.set_xscale("log" if domain.log else "linear")
    else:
        _points(axes, trials, [domain.index(trial.settings[name]) for trial in trials], space)
        axes.set_xticks(range(len(domain)), ["none" if value is None else str(value) for value in domain])
        axes.set_xlim(-0.5, len(domain) - 0.5)
    axes.set_title(name, fontsize=10)


def _points(axes: Axes, trials: Sequence[Trial], places: Sequence[float], space: Space, *, labelled: bool = False) -> None:
    """A dot for each trial, in the colour of what became of it; the chosen one is drawn last, and larger."""
    chosen = best(trials, space.goal)
    kinds: tuple[tuple[str, str, int, Callable[[Trial], bool]], ...] = (
        ("stopped early", EARLY, 18, lambda trial: trial.state == STOPPED),
        ("too slow", SLOW, 26, lambda trial: trial.state == FINISHED and not trial.within(space.goal)),
        ("finished", FAST, 26, lambda trial: trial.within(space.goal) and trial != chosen),
        ("best", CHOSEN, 60, lambda trial: trial == chosen),
    )
    for label, colour, size, belongs in kinds:
        of_kind = [(place, trial.goal or 0.0) for place, trial in zip(places, trials, strict=True) if belongs(trial)]
        if of_kind:
            x, y = zip(*of_kind, strict=True)
            axes.scatter(x, y, color=colour, s=size, label=label if labelled else None, zorder=3)  # above the lines
    axes.grid(alpha=0.3)
