"""`recsys blend`: finished runs of one dataset as one, weighed by what their lists together are worth on validation.

A blend is a run folder, too: config.json and result.json, with the runs it is made of in place of weights.

Shapes: U validation users that are asked, N items, D dimensions of a part.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster import reading, runs, trends
from cluster.finished import PARTS, Finished, helping, open_finished
from cluster.measuring import LATELY, Here, every_nth, measured, popular_lately
from recsys.config import BLENDED, LOWER_IS_BETTER, OF_HISTORIES, Config, ModelConfig
from recsys.data import schema
from recsys.data.histories import Histories
from recsys.errors import ConfigError, DataError
from recsys.evaluation.sums import RankingSums
from recsys.models.blend import Blend

# Validation users by whom weights are chosen: what a weight is worth changes slowly.
ASKED = 5_000

# Of a part's scores, whose spread is made that of the best part's; 0 leaves it out. Then once more about what was best, and on
# upwards while the largest is.
TIMES, FINER = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5), (0.6, 0.8, 1.25, 1.6)

OnNote = Callable[[str], None]
Progress = Callable[[str, int, int], None]
STAGE = "blend: weights tried"


def blend(
    parts: Sequence[Path],
    storage: Path,
    *,
    name: str | None = None,
    measure_test: bool = True,
    note: OnNote = lambda text: None,
    progress: Progress = lambda stage, done, total: None,
) -> Path:
    """Weigh runs, best first, and leave a run folder `<storage>/<name>`. Returns it; the same call again finds it done.

    note, progress: told what was tried. Raises ConfigError for runs that cannot be blended, or a name taken by something
    else, DataError for runs that are not finished or of different datasets.
    """
    opened = [open_finished(part) for part in parts]
    _check(opened)
    name = name or "blend-" + "-".join(found.folder.name for found in opened)
    config = _config(opened[0].config)
    told: dict[str, Any] = {"dataset": str(opened[0].dataset), "fingerprint": opened[0].manifest.fingerprint}
    told |= {"refit_epochs": None, PARTS: [str(found.folder) for found in opened]}
    folder = storage.resolve() / runs.plain_name(name)
    if _is_done(folder, told, opened):
        return folder
    here = Here(replace(opened[0], config=config))
    models = [found.model(here.item_counts) for found in opened]
    began = time.monotonic()
    weights = _Search(here, models, [found.folder.name for found in opened], note, progress).weights()
    taken = time.monotonic() - began
    return _write(folder, told, here, opened, models, weights, measure_test=measure_test, taken=taken)


def blend_of_refits(folder: Path, refits: Sequence[Path], name: str) -> Path:
    """The same blend of refits of its `helping` runs, in order, beside it. Returns its run folder; nothing is measured."""
    result = runs.read_json(folder / runs.RESULT) or {}
    opened = [open_finished(refit) for refit in refits]
    parts = [part | {"run": str(found.folder)} for part, found in zip(helping(result), opened, strict=True)]
    made = folder.parent / name
    made.mkdir(exist_ok=True)
    kept = {name: value for name, value in result.items() if name not in ("random", "test_random", *LATELY.values())}
    told = {**kept, **measured(None, None), PARTS: parts, "refit": True, "trained_until": opened[0].result["trained_until"]}
    asked = runs.read_json(folder / runs.CONFIG) or {}
    epochs = opened[0].result["epochs"]
    runs.write_json(made / runs.CONFIG, {**asked, PARTS: [part["run"] for part in parts], "refit_epochs": epochs})
    runs.write_json(made / runs.RESULT, told)
    return made


def _check(opened: Sequence[Finished]) -> None:
    if len({found.folder for found in opened}) < max(len(opened), 2):
        raise ConfigError("A blend is made of two runs or more, each once.")
    first = opened[0]
    for found in opened:
        config = found.config
        if found.manifest.fingerprint != first.manifest.fingerprint:
            raise DataError(f"{found.folder}: learnt from another dataset than {first.folder}. Blend runs of one.")
        if found.result["refit"]:
            raise DataError(f"{found.folder}: a refit has learnt from validation. Blend the runs before, and refit the blend.")
        if config.model.name not in BLENDED or config.model.loss == "mse":
            able = f"There are: {', '.join(BLENDED)}, of losses that rank."
            raise ConfigError(f"{found.folder}: {config.model.name} ({config.model.loss}) can be no part of a blend. {able}")
        if config.train.metric in LOWER_IS_BETTER or config.train.metric != first.config.train.metric:
            raise ConfigError(
                f"{found.folder}: chosen by {config.train.metric}, {first.folder} by {first.config.train.metric}. "
                "Train both with the same train.metric, one that ranks."
            )
    if len(encoders := [found for found in opened if found.config.model.name in OF_HISTORIES]) > 1:
        names = ", ".join(found.folder.name for found in encoders)
        raise ConfigError(f"{names}: each has an encoder, and a bundle holds one. Leave all but one of them out.")
    if not first.manifest.segments[schema.VALID]:
        raise DataError(f"{first.dataset}: holds nothing out for validation, so that weights cannot be chosen.")


def _config(first: Config) -> Config:
    """What a blend needs to know: how it is measured, indexed and exported."""
    kept = first.model.model_fields_set & {"trend_days", "trend_weight"}
    return first.model_copy(update={"model": ModelConfig(name="blend", **first.model.model_dump(include=kept))})


def _is_done(folder: Path, told: dict[str, Any], opened: Sequence[Finished]) -> bool:
    """Not where a run was trained anew since, under its old name."""
    asked, result = runs.read_json(folder / runs.CONFIG), runs.read_json(folder / runs.RESULT)
    if asked is not None and any(asked.get(key) != value for key, value in told.items()):
        raise ConfigError(f"{folder}: is another run. Give another --name.")
    found = [part.result["metrics"] for part in opened]
    return result is not None and [part["metrics"] for part in result.get(PARTS, ())] == found


def _write(
    folder: Path,
    told: dict[str, Any],
    here: Here,
    opened: Sequence[Finished],
    models: Sequence[Any],
    weights: Sequence[float],
    *,
    measure_test: bool,
    taken: float,
) -> Path:
    blended = Blend(models, weights, here.item_counts)
    trend, chosen = trends.choose(here, blended)
    valid = here.evaluate(blended, schema.VALID, trend=trend)
    tests = measure_test and here.manifest.segments[schema.TEST] > 0
    test = here.evaluate(blended, schema.TEST, trend=trend) if tests else None
    lately = popular_lately(here, blended, trend, schema.VALID, *([schema.TEST] if tests else []))
    folder.mkdir(parents=True, exist_ok=True)
    runs.write_json(folder / runs.CONFIG, {**told, "config": here.config.model_dump(mode="json")})
    parts = [
        {"run": str(found.folder), "model": found.config.model.name, "weight": weight, "metrics": found.result["metrics"]}
        for found, weight in zip(opened, weights, strict=True)
    ]
    runs.write_json(
        folder / runs.RESULT,
        _result(here, valid, test) | lately | {"trend": chosen, PARTS: parts, "weighing_seconds": taken},
    )
    return folder


def _result(here: Here, valid: RankingSums, test: RankingSums | None) -> dict[str, Any]:
    return {
        "dataset": str(here.dataset),
        "fingerprint": here.manifest.fingerprint,
        "model": here.config.model.name,
        "config": here.config.model_dump(mode="json"),
        "refit": False,
        "trained_until": schema.VALID,
        "teacher": None,
        "epochs": 0,
        "best_epoch": 0,
        **measured(valid, test),
    }


class _Search:
    """Weights of parts by coordinates: each part's in turn, against the best of those before it."""

    def __init__(self, here: Here, models: Sequence[Any], names: Sequence[str], note: OnNote, progress: Progress) -> None:
        self.here, self.names, self.note = here, names, note
        self.progress, self.most, self.tried = progress, 1 + (len(models) - 1) * (len(TIMES) - 1 + len(FINER)), 0
        self.metric = here.config.train.metric
        self.histories = _asked(here)
        self.items = [model.item_vectors().float() for model in models]
        self.users = [[model.user_vectors(part.until(schema.VALID)).float() for part in self.histories] for model in models]
        self.spreads = [trends.spread(here, model) for model in models]

    def weights(self) -> list[float]:
        """Of each part. Raises ConfigError where one alone is best."""
        times = [1.0] + [0.0] * (len(self.items) - 1)
        best = self._worth(times)
        self.note(f"{self.names[0]} alone: {self.metric} {best:.4f}")
        for part in range(1, len(times)):
            best = self._improved(times, part, TIMES, best)
            self.note(f"with {self.names[part]} times {times[part]:g}: {self.metric} {best:.4f}")
        for part in range(1, len(times)):
            best = self._improved(times, part, [times[part] * finer for finer in FINER], best)
            best = self._upwards(times, part, best)
        self.progress(STAGE, self.most, self.most)
        self.note(f"of {', '.join(f'{n} {t:.3g}' for n, t in zip(self.names, times, strict=True))}: {self.metric} {best:.4f}")
        if not any(times[1:]):
            raise ConfigError(
                f"No blend is better on validation than {self.names[0]} alone. Use that run, or blend it with another model."
            )
        return self._by_spread(times)

    def _improved(self, times: list[float], part: int, candidates: Sequence[float], best: float) -> float:
        """Leave the best candidate in `times`. Returns what it is worth."""
        for candidate in candidates:
            tried = [*times[:part], candidate, *times[part + 1 :]]
            if candidate != times[part] and (worth := self._worth(tried)) > best:
                best, times[part] = worth, candidate
        return best

    def _upwards(self, times: list[float], part: int, best: float) -> float:
        """Where the largest that was tried is best, larger ones, as long as they are better yet, and those near the last."""
        largest, goes_on = TIMES[-1] * FINER[-1], False
        while times[part] >= largest:
            largest, goes_on = times[part] * FINER[-1], True
            best = self._improved(times, part, [largest], best)
        return self._improved(times, part, [times[part] * finer for finer in FINER[:-1]], best) if goes_on else best

    def _by_spread(self, times: Sequence[float]) -> list[float]:
        return [time / max(spread, 1e-12) for time, spread in zip(times, self.spreads, strict=True)]

    def _worth(self, times: Sequence[float]) -> float:
        weights = self._by_spread(times)
        items = torch.cat([vectors for vectors, weight in zip(self.items, weights, strict=True) if weight], dim=1)
        users = [
            torch.cat([self.users[part][block] * weight for part, weight in enumerate(weights) if weight], dim=1)
            for block in range(len(self.histories))
        ]
        told = [
            self.here.rank(_Given(histories.user, vectors, items), histories, schema.VALID)
            for histories, vectors in zip(self.histories, users, strict=True)
        ]
        self.tried += 1
        self.progress(STAGE, min(self.tried, self.most - 1), self.most)
        return sum(told[1:], start=told[0]).metrics()[self.metric]


class _Given:
    """A model of some users, whose vectors are there already. user: [U], ascending."""

    def __init__(self, user: NDArray[np.int32], users_UD: Tensor, items_ND: Tensor) -> None:
        self.user, self.users_UD, self.items_ND = user, users_UD, items_ND

    def item_vectors(self) -> Tensor:
        return self.items_ND

    def user_vectors(self, histories: Histories) -> Tensor:
        return self.users_UD[torch.from_numpy(np.searchsorted(self.user, histories.user))]


def _asked(here: Here) -> list[Histories]:
    """Users with train and validation events, spread over all of them."""
    every = every_nth(here.manifest, ASKED)
    found = []
    for file in here.files:
        for histories in reading.stream_histories(here.dataset, file) if file.train_events else ():
            asked = histories.having(schema.TRAIN).having(schema.VALID, every)
            found += [asked] if len(asked) else []
    if not found:
        raise DataError(f"{here.dataset}: no user who is trained on has validation events, so that weights cannot be chosen.")
    return found
