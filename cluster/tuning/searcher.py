"""Between Ray Tune, which runs the trials, and the study: what is next, what came of it, and what is kept on disk."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from cluster import runs
from cluster.tuning import trials
from cluster.tuning.space import Settings, Space, trial_config
from cluster.tuning.study import Study
from cluster.tuning.trial import OUTCOME, ROW
from cluster.tuning.trials import FAILED, OVER, REFUSED, RUNNING, STOPPED, Trial
from recsys.config import Config, check_model
from recsys.errors import ConfigError

ENDED = "the trial's process ended; Ray's logs say why"
MOST_REFUSED = 50  # in all: then hardly anything in the space goes together


class Trials(Searcher):
    """Ray Tune's searcher. Not Ray's own round Optuna, which keeps its state as a pickle and knows no constraints.

    A trial that falls behind is asked to stop as any run is, and ends by itself with a checkpoint: Ray Tune would kill it,
    and leave a folder that cannot be gone on with. Every change is in `trials.jsonl` at once.
    """

    def __init__(
        self,
        folder: Path,
        dataset: Path,
        base: Config,
        space: Space,
        *,
        at_once: int = 1,
        on_epoch: Callable[[Trial, dict[str, Any]], None] = lambda trial, row: None,
        on_trial: Callable[[Trial], None] = lambda trial: None,
    ) -> None:
        """folder: of the tune, where trials that are known lie. on_trial: told when a trial begins and when it is over."""
        super().__init__()
        self.folder, self.dataset, self.base, self.space, self.at_once = folder, dataset, base, space, at_once
        self.on_epoch, self.on_trial = on_epoch, on_trial
        self.all = {trial.number: trial for trial in trials.read(folder)}
        over = [trial for trial in self.all.values() if trial.state in OVER]
        self.study = Study(space, [(trial, self._measured(trial)) for trial in over])
        self.unfinished = [trial for trial in self.all.values() if trial.state not in OVER]
        self.running: dict[str, int] = {}
        self.fallen_behind: set[int] = set()
        self.leaving = False
        self.fatal: str | None = None

    def running_trials(self) -> list[Trial]:
        """Those that Ray Tune runs now."""
        return [self.all[number] for number in list(self.running.values())]

    def leave(self) -> None:
        """Begin no more, and have those that run leave checkpoints. May be called again: a run that begins just now must hear
        it, too."""
        self.leaving = True
        for trial in self.running_trials():
            if (folder := self.folder / trial.name).is_dir():
                runs.ask_to_stop(folder)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # Ray's hint lacks FINISHED
        """For Ray Tune: what a trial is given; None while enough are running, FINISHED where no more are wanted."""
        if len(self.running) >= self.at_once:
            return None
        if self.leaving or self.fatal or (trial := self._next()) is None:
            return Searcher.FINISHED
        self.running[trial_id] = trial.number
        self._keep(trial)
        self.on_trial(trial)
        config = self.config_of(trial)
        return {
            "dataset": str(self.dataset),
            "run": trial.name,
            # What is not set stays so: some of it is settled by the dataset.
            "config": config.model_dump(mode="json", exclude_unset=True),
            "metric": self.space.goal.metric,
            "exports": self.space.exports,
            "latency_ms": self.space.goal.latency_ms,
        }

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """For Ray Tune: an epoch is over."""
        row, metric = json.loads(result.get(ROW, "null")), self.space.goal.metric
        if row is None or metric not in row["metrics"]:
            return
        number = self.running[trial_id]
        self.on_epoch(self.all[number], row)
        if self.study.should_stop(number, row["epoch"], row["metrics"][metric]) and number not in self.fallen_behind:
            self.fallen_behind.add(number)
            runs.ask_to_stop(self.folder / self.all[number].name)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """For Ray Tune: a trial has ended, in whatever way."""
        trial = self.all[self.running.pop(trial_id)]
        told = (result or {}).get(OUTCOME)
        outcome = json.loads(told) if told else {"state": FAILED, "reason": ENDED}
        if outcome.pop("fatal", False):
            self.fatal = outcome["reason"]
        if outcome["state"] == STOPPED:
            behind = trial.number in self.fallen_behind
            trial = trials.stopped(trial, self._measured(trial), self.space.goal) if behind else trial  # else: told to leave
        else:
            trial = replace(trial, **outcome)
        self.study.tell(trial)
        self._keep(trial)
        if trial.state != RUNNING:
            self.on_trial(trial)

    def config_of(self, trial: Trial) -> Config:
        """A trial's whole settings."""
        return trial_config(self.base, self.space, trial.settings, self.folder)

    def _next(self) -> Trial | None:
        """What was begun first; then new ones. Settings that do not go together are noted and passed over."""
        if self.unfinished:
            trial = replace(self.unfinished.pop(0), state=RUNNING, reason=None)
            self.study.go_on(trial, self._measured(trial))
            return trial
        while not self._enough():
            number = max(self.all, default=-1) + 1
            settings = self._settings(number)
            if settings is None:
                return None
            trial = Trial(number, settings)
            try:
                check_model(self.config_of(trial).model)
                return trial
            except ConfigError as error:
                refused = replace(trial, state=REFUSED, reason=str(error))
                self.study.tell(refused)
                self._keep(refused)
                self.on_trial(refused)
        return None

    def _settings(self, number: int) -> Settings | None:
        """Of a new trial. The first sets nothing but what is fixed, so that what nobody tuned is chosen from, too."""
        known = [trial.settings for trial in self.all.values()]
        return self.study.ask(number, known) if known or self.space.is_fixed else self.space.fixed

    def _enough(self) -> bool:
        refused = sum(trial.state == REFUSED for trial in self.all.values())
        return len(self.all) - refused >= self.space.search.trials or refused >= MOST_REFUSED

    def _measured(self, trial: Trial) -> dict[int, float]:
        return trials.values(self.folder / trial.name, self.space.goal)

    def _keep(self, trial: Trial) -> None:
        self.all[trial.number] = trial
        trials.write(self.folder, (self.all[number] for number in sorted(self.all)))

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """For Ray Tune: nothing comes from there."""
        return True

    def __reduce__(self) -> tuple[Any, ...]:
        """For Ray Tune, which writes down what it was called with and is never asked to read it: nothing of this."""
        return Searcher, ()

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """For Ray Tune: nothing, as all is in `trials.jsonl`."""

    def save(self, checkpoint_path: str) -> None:
        """As `save_to_dir`."""

    def restore(self, checkpoint_path: str) -> None:
        """As `save_to_dir`."""
