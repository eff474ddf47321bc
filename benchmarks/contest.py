"""Trainings in turn, an epoch each, A B A B …: how fast each is, and how good what it learns.

Each stops by the same rule, on validation. Test is scored once, of the epoch that validation chose.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pinned
from common import spread
from held_out import HeldOut, Vectors
from pinned import Peer, PeerError

from recsys.data import schema
from recsys.evaluation.sums import RankingSums

METRIC = "ndcg@10"


class Contender(Protocol):
    """Somebody who trains."""

    def epoch(self) -> dict[str, float]:
        """Train one more: `seconds` of it, and how much was gone through."""

    def validate(self) -> dict[str, float]:
        """What has been learnt so far, on validation events."""

    def keep(self) -> None:
        """This was the best epoch so far."""

    def test(self) -> RankingSums:
        """What was kept, on test events."""

    def close(self) -> None:
        """It is over."""


class OfVectors:
    """A peer that leaves users' and items' vectors after each epoch."""

    def __init__(self, peer: Peer, out: Path, data: HeldOut) -> None:
        self.peer, self.out, self.data = peer, out, data
        self.close = peer.close

    def epoch(self) -> dict[str, float]:
        told = self.peer.epoch()
        self.now = Vectors.saved(self.out)
        return told

    def validate(self) -> dict[str, float]:
        return self.data.rank(self.now, schema.VALID).metrics()

    def keep(self) -> None:
        self.kept = self.now

    def test(self) -> RankingSums:
        return self.data.rank(self.kept, schema.TEST)


@dataclass
class Training:
    """What is known of one contender's: a row an epoch, with its seconds, amounts and validation metric."""

    contender: Contender
    rows: list[dict[str, float]] = field(default_factory=list)
    best: int = -1
    failed: str | None = None

    def epoch(self) -> None:
        """One more."""
        row = self.contender.epoch()
        self.rows.append(row | {METRIC: self.contender.validate()[METRIC]})
        if self.best < 0 or self.rows[-1][METRIC] > self.rows[self.best][METRIC]:
            self.best = len(self.rows) - 1
            self.contender.keep()

    def goes_on(self, limits: argparse.Namespace) -> bool:
        """By the rule that `arguments` tells, the same for all."""
        done, seconds = len(self.rows), sum(row["seconds"] for row in self.rows)
        stuck = done - 1 - self.best >= limits.patience
        return self.failed is None and done < limits.epochs and not stuck and seconds < 60 * limits.minutes

    def seconds_until(self, level: float) -> float:
        """Of training, until validation first was as good as this; it must have been."""
        metrics = [row[METRIC] for row in self.rows]
        first = next(number for number, value in enumerate(metrics) if value >= level)
        return sum(row["seconds"] for row in self.rows[: first + 1])


def arguments(parser: argparse.ArgumentParser, *, epochs: int, minutes: float) -> None:
    """When a training ends, and what all have in common; for `run`."""
    parser.add_argument("--epochs", type=int, default=epochs, help="most, of each")
    parser.add_argument("--patience", type=int, default=10, help="epochs without a better validation metric, of each")
    parser.add_argument("--minutes", type=float, default=minutes, help="of training, after which no epoch is begun")
    parser.add_argument("--seed", type=int, default=0)
    pinned.options(parser)


def run(
    makers: Mapping[str, Callable[[], Contender]], limits: argparse.Namespace
) -> tuple[dict[str, Training], dict[str, str]]:
    """The trainings, and of those that could not be begun or broke, why. limits: options of `arguments`."""
    trainings, failed = {}, {}
    for name, make in makers.items():
        try:
            trainings[name] = Training(make())
        except PeerError as error:
            failed[name] = str(error)
    while running := {name: one for name, one in trainings.items() if one.goes_on(limits)}:
        for name, training in running.items():
            try:
                training.epoch()
                tell(name, training)
            except PeerError as error:
                training.failed = failed[name] = str(error)
    return {name: training for name, training in trainings.items() if training.failed is None}, failed


def tell(name: str, training: Training) -> None:
    row = training.rows[-1]
    text = f"{name}, epoch {len(training.rows)}: {row['seconds']:.1f} s, {METRIC} {row[METRIC]:.4f}"
    print(text, file=sys.stderr, flush=True)


def figures_of(trainings: Mapping[str, Training], amounts: Sequence[str]) -> dict[str, Any]:
    """Of each contender: rates of epochs in which all were still training but the first; epochs; metrics of the best."""
    together = min(len(training.rows) for training in trainings.values())
    figures = {}
    for name, training in trainings.items():
        timed = training.rows[1:together] or training.rows
        tested = training.contender.test().metrics()
        figures[name] = {
            "timed_epochs": len(timed),
            "seconds_an_epoch": spread([row["seconds"] for row in timed], 3),
            **{f"{of}_per_second": spread([row[of] / row["seconds"] for row in timed], 0) for of in amounts if of in timed[0]},
            "epochs": len(training.rows),
            "best_epoch": training.best + 1,
            "valid": round(training.rows[training.best][METRIC], 4),
            "test": {metric: round(tested[metric], 4) for metric in (METRIC, "hr@10")},
        }
    return figures


def against(trainings: Mapping[str, Training], ours: str) -> dict[str, dict[str, float]]:
    """For each peer: seconds of training until validation is as good as the worse of the two gets."""
    told = {}
    for name, training in trainings.items():
        if name == ours:
            continue
        both = training, trainings[ours]
        level = min(one.rows[one.best][METRIC] for one in both)
        theirs, own = (one.seconds_until(level) for one in both)
        told[name] = {
            "valid": round(level, 4),
            "theirs": round(theirs, 2),
            "ours": round(own, 2),
            "times": round(theirs / own, 2),
        }
    return told


def close(trainings: Mapping[str, Training]) -> None:
    for training in trainings.values():
        training.contender.close()
