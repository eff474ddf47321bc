"""Optuna's side: what to try next, and which trials to stop early, from nothing but the trials known so far.

A study is made anew at every start, from `trials.jsonl` and the runs' metrics.jsonl: no state of Optuna's is kept.
"""

from collections.abc import Collection, Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import MedianPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState

from cluster.tuning.space import Range, Settings, Space, Value
from cluster.tuning.trials import FINISHED, STOPPED, Trial, sign

LATENCY = "latency"
DRAWS = 100  # before the space counts as exhausted

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Study:
    """Asked for settings, told what came of them.

    The sampler is the tree-structured Parzen estimator (Bergstra et al. 2011), which takes a latency above the limit for a
    constraint that was broken. Trials are stopped by the median rule (Golovin et al. 2017, Vizier): it assumes nothing of how
    curves run and stops about half, where successive halving, with a few dozen trials and one or two at a time, would judge
    most by their first epochs, and so favour large learning rates.
    """

    def __init__(self, space: Space, known: Sequence[tuple[Trial, dict[int, float]]] = ()) -> None:
        """known: trials that are over, each with its metric by epoch."""
        self.space, self.goal = space, space.goal
        self.distributions = {name: _distribution(domain) for name, domain in space.settings.items()}
        search = space.search
        self._study = optuna.create_study(
            direction="maximize" if sign(self.goal) > 0 else "minimize",
            # Another seed at every start: the same would draw again what is known.
            sampler=TPESampler(n_startup_trials=search.startup_trials, seed=search.seed + len(known)),
            # Optuna's step at which it may stop is the epoch after the last one of grace.
            pruner=MedianPruner(n_startup_trials=search.startup_trials, n_warmup_steps=search.grace_epochs + 1),
        )
        self._blind = optuna.create_study(sampler=RandomSampler(seed=search.seed + len(known)))
        self._asked: dict[int, optuna.Trial] = {}
        for trial, measured in known:
            if trial.state in (FINISHED, STOPPED) and trial.goal is not None and self._drawn(trial):
                self._study.add_trial(self._frozen(trial, measured))

    def ask(self, number: int, known: Collection[Settings] = ()) -> Settings | None:
        """What trial `number` should set: nothing that is known, since the same settings come to the same. None where all
        there is seems known.

        The sampler returns to what was good; where it draws nothing else, chance does.
        """
        for attempt in range(DRAWS):
            if attempt >= DRAWS // 2:
                self._study.enqueue_trial(self._blind.ask(self.distributions).params)
            asked = self._study.ask(self.distributions)
            settings = {name: self._value(name, value) for name, value in asked.params.items()}
            if settings not in known:
                self._asked[number] = asked
                return settings
            self._study.tell(asked, state=TrialState.FAIL)  # passed over by the sampler
        return None

    def go_on(self, trial: Trial, measured: dict[int, float]) -> None:
        """A trial that an earlier start had begun, as far as it was."""
        if not self._drawn(trial):
            return
        self._study.enqueue_trial(dict(trial.settings))
        self._asked[trial.number] = asked = self._study.ask(self.distributions)
        for epoch, value in measured.items():
            asked.report(value, epoch)

    def should_stop(self, number: int, epoch: int, value: float) -> bool:
        """Note what an epoch measured; whether the trial has fallen behind. epoch: from 1."""
        if (asked := self._asked.get(number)) is None:  # the defaults
            return False
        asked.report(value, epoch)
        return asked.should_prune()

    def tell(self, trial: Trial) -> None:
        """A trial is over."""
        if (asked := self._asked.pop(trial.number, None)) is None:
            return
        if trial.state == FINISHED and trial.goal is not None:
            if (over := self._over(trial)) is not None:
                asked.set_constraint(LATENCY, over)
            self._study.tell(asked, trial.goal)
        else:
            self._study.tell(asked, state=TrialState.PRUNED if trial.state == STOPPED else TrialState.FAIL)

    def _drawn(self, trial: Trial) -> bool:
        """Whether it is of the space, as all are but the first, which is the defaults."""
        return set(trial.settings) == set(self.distributions)

    def _over(self, trial: Trial) -> float | None:
        """How far an answer's milliseconds are above the limit, which must not be above 0."""
        limit = self.goal.latency_ms
        return None if limit is None or trial.latency_ms is None else trial.latency_ms - limit

    def _frozen(self, trial: Trial, measured: dict[int, float]) -> optuna.trial.FrozenTrial:
        over = self._over(trial)
        return optuna.trial.create_trial(
            state=TrialState.COMPLETE if trial.state == FINISHED else TrialState.PRUNED,
            value=trial.goal,
            params=dict(trial.settings),
            distributions=self.distributions,
            intermediate_values=measured,
            constraints=None if over is None else {LATENCY: over},
        )

    def _value(self, name: str, value: Value) -> Value:
        domain = self.space.settings[name]
        return domain.rounded(value) if isinstance(domain, Range) and isinstance(value, int | float) else value


def _distribution(domain: tuple[Value, ...] | Range) -> BaseDistribution:
    if not isinstance(domain, Range):
        return CategoricalDistribution(domain)
    if domain.whole:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log, step=int(domain.step or 1))
    return FloatDistribution(domain.low, domain.high, log=domain.log, step=domain.step)
