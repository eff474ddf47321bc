"""What `recsys tune` may try, and what for: a TOML file, checked whole before anything starts. Knows neither Ray nor Optuna."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recsys.config import Config, load_config, nearest, read_toml, setting_fields
from recsys.errors import ConfigError

SECTIONS = ("model", "train", "index")
CHOSEN_BY_GOAL = ("train.metric", "train.metric_ks")
DIGITS = 4
"""Significant digits of a fraction that is tried: more would say nothing, and a recipe is to be read."""
GRID_DIGITS = 12
"""Of one on a grid, whose places may need more."""

Value = str | int | float | bool | None
Settings = dict[str, Value]
"""Values by `section.key`."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Goal(_Part):
    """`[goal]`: the validation metric that is sought, and what an answer may cost.

    latency_ms: 95th percentile of the milliseconds in which the exported bundle answers a known user, one at a time.
    """

    metric: str = ""
    latency_ms: float | None = Field(None, gt=0)


class Search(_Part):
    """`[search]`: trials, in all; seed of what is drawn. A trial is stopped early where, after grace_epochs, its best is below
    the median of the finished ones at that epoch, once startup_trials have finished; those are drawn blindly, too."""

    trials: int = Field(20, ge=1)
    seed: int = Field(0, ge=0, lt=1 << 31)
    grace_epochs: int = Field(3, ge=1)
    startup_trials: int = Field(5, ge=1)


class Range(_Part):
    """Numbers from low to high, both included: whole ones if both are. log: as many below the middle of the powers as above."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = Field(None, gt=0)

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int) and isinstance(self.step, int | None)

    def rounded(self, value: float) -> int | float:
        """A drawn number as it is tried. On a grid it stays: Optuna takes no other back."""
        digits = DIGITS if self.step is None else GRID_DIGITS
        return int(value) if self.whole else min(max(float(f"{value:.{digits}g}"), self.low), self.high)

    def examples(self) -> Iterator[int | float]:
        """Some of the numbers, the ends included."""
        yield from (self.low, self.high)
        if not self.whole:
            yield self.rounded(self.low + 0.37 * (self.high - self.low))


@dataclass(frozen=True)
class Space:
    """What a trial may set, by `section.key`: choices, or a range; what is sought; how."""

    settings: dict[str, tuple[Value, ...] | Range]
    goal: Goal
    search: Search

    @property
    def exports(self) -> bool:
        """Whether a trial is worth what its bundle is: where answers have a limit, or settings of the index are tried."""
        return self.goal.latency_ms is not None or any(name.startswith("index.") for name in self.settings)

    @property
    def fixed(self) -> Settings:
        """What is set in every trial: the values of settings that have one."""
        return {name: domain[0] for name, domain in self.settings.items() if not isinstance(domain, Range) and len(domain) == 1}

    @property
    def is_fixed(self) -> bool:
        """Whether there is nothing to choose."""
        return len(self.fixed) == len(self.settings)

    def with_trials(self, trials: int | None) -> "Space":
        """The same with another number of trials, if one is given."""
        return self if trials is None else replace(self, search=self.search.model_copy(update={"trials": trials}))

    def as_json(self) -> dict[str, Any]:
        """What decides the trials. How many there are and where chance begins does not: those may change on resuming."""
        settings = {
            name: domain.model_dump() if isinstance(domain, Range) else list(domain) for name, domain in self.settings.items()
        }
        return {"space": settings, "goal": self.goal.model_dump()}


def read_space(path: Path, base: Config) -> Space:
    """Read a space and check every value of it on top of `base`.

    Raises ConfigError for a file that cannot be read, an unknown name with the nearest one, or a value no setting can have.
    """
    told = read_toml(path, "Give a TOML file with a [space].")
    for name in told:
        _known(name, ("space", "goal", "search"), f"{path}: no table [{name}].")
    goal = _part(Goal, told, "goal", path)
    space = Space(_settings(told.get("space"), path), goal, _part(Search, told, "search", path))
    if not goal.metric:
        space = replace(space, goal=goal.model_copy(update={"metric": base.train.metric}))
    _check(space, base, path)
    return space


def configured(base: Config, settings: Mapping[str, Value]) -> Config:
    """`base` with other values of some settings; what neither sets is what suits the model.

    Raises ConfigError for a value that its setting cannot have.
    """
    values = {
        name: getattr(base, name).model_dump(include=getattr(base, name).model_fields_set) for name in Config.model_fields
    }
    for name, value in settings.items():
        section, _, key = name.partition(".")
        values[section][key] = value
    return load_config(base=values)


def trial_config(base: Config, space: Space, settings: Mapping[str, Value], storage: Path) -> Config:
    """A trial's whole settings: `base`, its own, the goal's metric, and the folder its run lies in. Raises ConfigError."""
    config = configured(base, settings)
    train = config.train.model_copy(update={"metric": space.goal.metric})
    # Ray Train's local mode does not work in a trial, which is a process of its own anyway.
    workers = config.cluster.num_workers or 1
    cluster = config.cluster.model_copy(update={"storage": str(storage), "num_workers": workers})
    return config.model_copy(update={"train": train, "cluster": cluster})


def samples(space: Space, count: int, seed: int = 0) -> Iterator[Settings]:
    """Settings put together by chance."""
    rng = random.Random(seed)
    for _ in range(count):
        yield {name: rng.choice(list(_examples(domain))) for name, domain in space.settings.items()}


def _part(kind: Any, told: Mapping[str, Any], name: str, path: Path) -> Any:
    values = told.get(name, {})
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: {name} is a table; write [{name}] and its settings below.")
    for key in values:
        _known(key, tuple(kind.model_fields), f"{path}: no setting {name}.{key}.")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, (name, *first["loc"])))
        raise ConfigError(f"{path}: {where} = {first['input']!r}: {first['msg'].lower()}.") from None


def _settings(told: Any, path: Path) -> dict[str, tuple[Value, ...] | Range]:
    if not isinstance(told, dict) or not told:
        raise ConfigError(f"{path}: nothing to try. Write [space], and below it such as model.dim = [32, 64].")
    found = {name: _domain(name, value, path) for name, value in _flat(told, path)}
    if all(isinstance(domain, tuple) and len(domain) == 1 for domain in found.values()):
        raise ConfigError(f"{path}: every setting of [space] has one value only. Give one of them a list or a range.")
    return found


def _flat(told: Mapping[str, Any], path: Path) -> Iterator[tuple[str, Any]]:
    """(section.key, what is told of it), whether written `model.dim`, `"model.dim"` or in a table [space.model]."""
    for name, value in told.items():
        section, dot, key = name.partition(".")
        keys = {key: value} if dot else value
        if not isinstance(keys, dict):
            raise ConfigError(f"{path}: {name}: write section.key, such as model.{name} = [...].")
        fields = setting_fields(section, str(path))
        if section not in SECTIONS:
            raise ConfigError(f"{path}: {section} is no part of a trial; try settings of {', '.join(SECTIONS)}.")
        for each, what in keys.items():
            _known(each, tuple(fields), f"{path}: no setting {section}.{each}.")
            if f"{section}.{each}" in CHOSEN_BY_GOAL:
                raise ConfigError(f"{path}: {section}.{each} would make trials incomparable. Set the metric in [goal].")
            yield f"{section}.{each}", what


def _domain(name: str, told: Any, path: Path) -> tuple[Value, ...] | Range:
    if isinstance(told, dict):
        return _range(name, told, path)
    choices = tuple(None if choice == "none" else choice for choice in (told if isinstance(told, list) else [told]))
    if not choices:
        raise ConfigError(f"{path}: {name} = []: no value at all. List some, or leave it out.")
    if bad := [choice for choice in choices if not isinstance(choice, Value)]:
        raise ConfigError(f'{path}: {name}: {bad[0]!r} is no single value. List numbers, words, true, false or "none".')
    if len(set(map(repr, choices))) < len(choices):
        raise ConfigError(f"{path}: {name} = {told}: a value stands there twice. Take one out.")
    return choices


def _range(name: str, told: dict[str, Any], path: Path) -> Range:
    found: Range = _part(Range, {name: told}, name, path)
    if not found.low < found.high:
        raise ConfigError(f"{path}: {name}: low = {found.low} is not below high = {found.high}.")
    if found.log and found.low <= 0:
        raise ConfigError(f"{path}: {name}: low = {found.low} has no logarithm. Take a low above 0, or log = false.")
    if found.log and found.step is not None:
        raise ConfigError(f"{path}: {name}: log and step do not go together. Take one of them out, or list the values.")
    return found


def _check(space: Space, base: Config, path: Path) -> None:
    """Every value on its own, beside the first of each other setting."""
    first = {name: next(iter(_examples(domain))) for name, domain in space.settings.items()}
    for name, domain in space.settings.items():
        for value in _examples(domain):
            try:
                config = configured(base, first | {name: value})
            except ConfigError as error:
                raise ConfigError(f"{path}: {error}") from None
            section, _, key = name.partition(".")
            if (taken := getattr(getattr(config, section), key)) != value:
                raise ConfigError(f"{path}: {name} = {value!r} would be taken as {taken!r}. Write it so.")


def _examples(domain: tuple[Value, ...] | Range) -> Iterator[Value]:
    yield from domain.examples() if isinstance(domain, Range) else domain


def _known(name: str, known: tuple[str, ...], told: str) -> None:
    if name not in known:
        raise ConfigError(told + nearest(name, known))
