"""What people are told while trials run."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from cluster import runs
from cluster.console import epoch_line
from cluster.tuning import trials
from cluster.tuning.space import Space
from cluster.tuning.trials import OVER, RUNNING, Trial

STAGE = "tune: trials"


class Watcher(Protocol):
    """Who is told; `console.ProgressView` draws it."""

    def stage(self, name: str, done: int, total: int) -> None: ...

    def note(self, text: str) -> None: ...


class Watch:
    """A bar of all trials, one of each running one's epoch, and a line for whatever is over."""

    def __init__(self, folder: Path, space: Space, watcher: Watcher | None) -> None:
        self.folder, self.space, self.watcher = folder, space, watcher

    def note(self, text: str) -> None:
        """Tell something in words."""
        if self.watcher:
            self.watcher.note(text)

    def trial(self, trial: Trial) -> None:
        """A trial begins, or has ended."""
        known = trials.read(self.folder)
        if self.watcher:
            self.watcher.stage(STAGE, sum(each.state in OVER for each in known), max(self.space.search.trials, len(known)))
        if trial.state == RUNNING:
            return self.note(f"{trial.name}: {described(trial)}")
        self.note(f"{trial.name}: {self._outcome(trial, trials.best(known, self.space.goal))}")

    def epoch(self, trial: Trial, row: dict[str, Any]) -> None:
        """An epoch of a trial is over."""
        self.note(f"{trial.name}  {epoch_line(row, self.space.goal.metric)}")

    def look(self, running: Iterable[Trial]) -> None:
        """How far the running trials' epochs are, by what their workers write down."""
        for place, trial in enumerate(running):
            if self.watcher and (progress := runs.read_json(self.folder / trial.name / runs.PROGRESS)):
                bar = "train: steps of an epoch" + (f" ({place + 1})" if place else "")
                self.watcher.stage(bar, progress["step"], progress["steps"])

    def _outcome(self, trial: Trial, best: Trial | None) -> str:
        if trial.goal is None:
            return f"{trial.state}. {trial.reason or ''}".strip()
        speed = "" if trial.latency_ms is None else f", {trial.latency_ms:.2f} ms an answer"
        first = " The best so far." if best is not None and best.number == trial.number else ""
        state = trial.state_beside(self.space.goal)
        return f"{state} after {trial.epochs} epochs: {self.space.goal.metric} {trial.goal:.4f}{speed}.{first}"


def described(trial: Trial) -> str:
    """What a trial sets, in a line."""
    return ", ".join(f"{name} = {'none' if value is None else value}" for name, value in trial.settings.items())
