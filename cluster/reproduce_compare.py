"""Variants of a recipe side by side: what each is worth to the same users, and how far two of them lie apart.

Worth is the mean over seeds of what a user's lists are worth, so that an interval is of the mean that is shown.
Shapes: C metrics, U users.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.recipe import POPULARITY, Recipe
from recsys.evaluation.intervals import resample

SEED = 0

Floats = NDArray[np.float64]
Figures = dict[str, dict[str, float]]


def compare(recipe: Recipe, trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """alone: value and interval of each metric, of every variant and of popularity. differences: the same of each variant less
    popularity, and less each that the recipe names, of the same users. trials: of the seeds that are done, with `worth`."""
    worth = {variant.name: _mean(recipe, trials, variant.name) for variant in recipe.variants}
    worth[POPULARITY] = _of_trial(recipe, trials[0], which=1)  # the same beside every variant and seed
    pairs = _pairs(recipe)
    rows = [*worth.values(), *(worth[one] - worth[other] for one, other in pairs)]
    figures = _figures(recipe.metrics, rows)
    alone = dict(zip(worth, figures[: len(worth)], strict=True))
    apart = zip(pairs, figures[len(worth) :], strict=True)
    return {"alone": alone, "differences": [{"variant": one, "less": other, "metrics": each} for (one, other), each in apart]}


def _pairs(recipe: Recipe) -> list[tuple[str, str]]:
    others = (POPULARITY, *recipe.against)
    return [(variant.name, other) for other in others for variant in recipe.variants if variant.name != other]


def _mean(recipe: Recipe, trials: Sequence[dict[str, Any]], variant: str) -> Floats:
    """[C, U] over seeds."""
    mean: Floats = np.mean([_of_trial(recipe, trial, which=0) for trial in trials if trial["variant"] == variant], axis=0)
    return mean


def _of_trial(recipe: Recipe, trial: dict[str, Any], which: int) -> Floats:
    """[C, U]. which: 0 the model's lists, 1 popularity's."""
    return np.stack([trial["worth"][name][which] for name in recipe.metrics])


def _figures(names: Sequence[str], rows_CU: Sequence[Floats]) -> list[Figures]:
    """Of each row the mean and interval of each metric. All are resampled together, so that they are of the same users."""
    means, (low, high) = resample(np.concatenate(rows_CU), seed=SEED).means()
    each = [{"value": float(v), "low": float(lo), "high": float(hi)} for v, lo, hi in zip(means, low, high, strict=True)]
    starts = range(0, len(each), len(names))
    return [dict(zip(names, each[start : start + len(names)], strict=True)) for start in starts]
