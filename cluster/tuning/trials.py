"""Trials as they stand in `trials.jsonl`, their order, and the best one's settings as TOML."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from cluster import runs
from cluster.tuning.space import SECTIONS, Goal, Settings, configured
from recsys.config import LOWER_IS_BETTER, Config

TRIALS, BEST = "trials.jsonl", "best.toml"
RUNNING, FINISHED, STOPPED, FAILED, REFUSED = "running", "finished", "stopped early", "failed", "refused"
OVER = (FINISHED, STOPPED, REFUSED)
"""States that stay; a trial in another is gone on with."""


@dataclass(frozen=True)
class Trial:
    """One trial: its number, what it set, and what came of it.

    goal: the best epoch's metric on validation, by the bundle's lists where one was exported; of a trial that was stopped
    early, the best so far. latency_ms: 95th percentile of milliseconds an answer. reason: why it failed or was refused.
    """

    number: int
    settings: Settings
    state: str = RUNNING
    goal: float | None = None
    latency_ms: float | None = None
    epochs: int = 0
    best_epoch: int | None = None
    reason: str | None = None

    @property
    def name(self) -> str:
        """Of its run folder."""
        return f"trial-{self.number:03d}"

    def within(self, goal: Goal) -> bool:
        """Whether it may be chosen: finished, and fast enough."""
        fast = goal.latency_ms is None or (self.latency_ms is not None and self.latency_ms <= goal.latency_ms)
        return self.state == FINISHED and self.goal is not None and fast

    def state_beside(self, goal: Goal) -> str:
        """Its state for people, who are to see why a good one was not chosen."""
        return "too slow" if self.state == FINISHED and not self.within(goal) else self.state


def sign(goal: Goal) -> int:
    """1 where more is better, -1 where less is."""
    return -1 if goal.metric in LOWER_IS_BETTER else 1


def ranked(trials: Iterable[Trial], goal: Goal) -> list[Trial]:
    """Those that may be chosen by goal, the better first; then those that were too slow; stopped early; the rest."""

    def place(trial: Trial) -> tuple[int, float, int]:
        group = 0 if trial.within(goal) else 1 if trial.state == FINISHED else 2 if trial.state == STOPPED else 3
        return group, -sign(goal) * (trial.goal or 0.0), trial.number

    return sorted(trials, key=place)


def best(trials: Iterable[Trial], goal: Goal) -> Trial | None:
    """The one to take; None while none has finished within the limit."""
    return next((trial for trial in ranked(trials, goal) if trial.within(goal)), None)


def read(folder: Path) -> list[Trial]:
    """All trials of a tune folder, by number; none where there is no such file. What a later release adds is passed over."""
    known = {field.name for field in fields(Trial)}
    lines = runs.read_lines(folder / TRIALS)
    return [Trial(**{name: value for name, value in line.items() if name in known}) for line in lines]


def write(folder: Path, trials: Iterable[Trial]) -> None:
    """Replace `trials.jsonl` in one go: a line a trial, by number."""
    staged = folder / f".{TRIALS}.{os.getpid()}"
    staged.write_text("".join(json.dumps({"run": t.name, **asdict(t)}) + "\n" for t in trials), "utf-8")
    staged.replace(folder / TRIALS)


def values(folder: Path, goal: Goal) -> dict[int, float]:
    """What a trial's run has measured on validation so far, by epoch, from 1."""
    rows = [row for row in runs.read_rows(folder) if goal.metric in row.get("metrics", {})]
    return {row["epoch"]: row["metrics"][goal.metric] for row in rows}


def stopped(trial: Trial, measured: dict[int, float], goal: Goal) -> Trial:
    """A trial that was stopped early, with the best of what it measured."""
    chosen = max(measured, key=lambda epoch: sign(goal) * measured[epoch], default=None)
    told = None if chosen is None else measured[chosen]
    return replace(trial, state=STOPPED, goal=told, best_epoch=chosen, epochs=max(measured, default=0))


def as_toml(trial: Trial, base: Config, goal: Goal, *, tune: str) -> str:
    """A file for `--config`: what the trial set and was chosen by, and what else is not what its model has anyway."""
    config = configured(base, {**trial.settings, "train.metric": goal.metric}).model_dump(mode="json")
    default = Config.model_validate({"model": {"name": config["model"]["name"]}}).model_dump(mode="json")
    # Models of ratings have a metric of their own where none is set.
    told_anyway = [*trial.settings, *(["train.metric"] if config["model"]["loss"] == "mse" else [])]
    speed = "" if trial.latency_ms is None else f", {trial.latency_ms:.2f} ms an answer (95th percentile)"
    lines = [f"# {tune}/{trial.name}: {goal.metric} {trial.goal:.4f} on validation{speed}."]
    for section in (*SECTIONS, "encoder"):
        told = {name.partition(".")[2] for name in told_anyway if name.startswith(f"{section}.")}
        changed = {key: value for key, value in config[section].items() if key in told or value != default[section][key]}
        if section == "model":
            changed = {"name": config["model"]["name"]} | changed
        if changed:
            lines += ["", f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in changed.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    return json.dumps("none" if value is None else value, ensure_ascii=False)
