"""What a tune has come to, for people and for programs."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.tuning.space import Goal
from cluster.tuning.trials import Trial, ranked

if TYPE_CHECKING:
    from cluster.tune import Tuned

HEADERS = ("trial", "state", "epochs", "latency ms")
DEFAULT = "default"  # of what a trial does not set


def table(trials: Sequence[Trial], goal: Goal) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Headers and rows, the best first, with a column for each setting that was tried."""
    tried = list(dict.fromkeys(name for trial in trials for name in trial.settings))
    rows = [
        (
            trial.name,
            trial.state_beside(goal),
            "" if trial.goal is None else f"{trial.goal:.4f}",
            trial.epochs,
            "" if trial.latency_ms is None else f"{trial.latency_ms:.2f}",
            *(_shown(trial.settings[name]) if name in trial.settings else DEFAULT for name in tried),
        )
        for trial in ranked(trials, goal)
    ]
    return (*HEADERS[:2], goal.metric, *HEADERS[2:], *tried), rows


def as_json(found: "Tuned", goal: Goal) -> dict[str, Any]:
    """One object: where everything lies, and every trial, the best first."""
    return {
        "folder": str(found.folder),
        "metric": goal.metric,
        "segment": "valid",
        "latency_limit_ms": goal.latency_ms,
        "best": found.best and found.best.name,
        "settings": found.settings and str(found.settings),
        "trials": [{"run": trial.name, **asdict(trial)} for trial in ranked(found.trials, goal)],
    }


def next_step(found: "Tuned", goal: Goal, dataset: Path) -> str:
    """What to do with it, in words."""
    pictured = "" if found.picture is None else f"Picture: {found.picture}. "
    if found.best is None:
        why = next((trial.reason for trial in found.trials if trial.reason), None)
        slow = any(trial.state_beside(goal) == "too slow" for trial in found.trials)
        hint = (
            "all finished ones are too slow: raise goal.latency_ms, or try smaller models" if slow else why or "none finished"
        )
        return f"{pictured}No trial can be chosen; {hint}."
    return f"{pictured}Chosen on validation; test is measured by: recsys train {dataset} --config {found.settings}"


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
