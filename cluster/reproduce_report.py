"""What a recipe has come to, for programs and for people: figures over seeds beside popularity and the published rows."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster import runs
from cluster.recipe import POPULARITY, Recipe, changed
from cluster.reproduce_compare import compare

HOUR = 3600
LIBRARIES = ("python", *runs.LIBRARIES)


def summary(recipe: Recipe, trials: Sequence[dict[str, Any]], command: str) -> dict[str, Any]:
    """One object of the seeds that are done in all folds: `docs/benchmarks/<recipe>.json` once all of them are."""
    of_seed = len(recipe.trials) // len(recipe.seeds)
    seeds = [seed for seed in recipe.seeds if sum(trial["seed"] == seed for trial in trials) == of_seed]
    trials = [trial for trial in trials if trial["seed"] in seeds]
    single = bool(seeds) and not recipe.variants
    figures = {name: _figure(name, seeds, trials) for name in recipe.metrics} if single else {}
    return {
        "recipe": recipe.name,
        "title": recipe.title,
        "about": recipe.about,
        "command": command,
        "model": ", ".join(variant.name for variant in recipe.compared),
        "protocol": recipe.protocol,
        "metrics": list(recipe.metrics),
        "seeds": seeds,
        "missing_seeds": [seed for seed in recipe.seeds if seed not in seeds],
        "folds": list(recipe.folds),
        "figures": figures,
        "variants": _variants(recipe, seeds, trials) if seeds else {},
        "compared": compare(recipe, trials) if seeds and recipe.variants else None,
        "goal": _goal(recipe, figures),
        "published": [row.model_dump(mode="json") for row in recipe.published],
        "settings": _settings(recipe),
        "source": recipe.source.model_dump(mode="json", exclude_none=True),
        "hours": None if recipe.variants else _hours(trials),
        "machines": _distinct([_machine(trial) for trial in trials]),
        "commits": _distinct([(trial["environment"] or {}).get("commit") for trial in trials]),
        "packages": _distinct([{n: v for n, v in (t["environment"] or {}).items() if n in LIBRARIES} for t in trials]),
        "trials": [_short(trial, recipe) for trial in trials],
    }


def table(told: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headers and rows: ours, each seed or variant, popularity, published rows; a column for each metric, and where a row comes
    from."""
    names, figures = told["metrics"], told["figures"]
    headers = ("", *names, "source")
    if told["compared"]:
        return headers, [*_variant_rows(told), *(_row(row, names) for row in told["published"])]
    if not figures:
        return headers, [_row(row, names) for row in told["published"]]
    seeds = len(told["seeds"])
    rows = [(f"{told['model']}, {seeds} seed{'s' * (seeds != 1)}", *(_mean(figures[name]) for name in names), "this page")]
    rows += [(f"  seed {seed}", *(f"{figures[name]['seeds'][str(seed)]:.4f}" for name in names), "") for seed in told["seeds"]]
    interval = [f"{figures[name]['low']:.4f} … {figures[name]['high']:.4f}" for name in names]
    rows.append((f"  95% over users, {told['trials'][0]['which']}", *interval, "bootstrap"))
    popularity = [figures[name]["popularity"] for name in names]
    if any(value is not None for value in popularity):
        rows.append(("most popular", *("" if value is None else f"{value:.4f}" for value in popularity), "this page"))
    return headers, rows + [_row(row, names) for row in told["published"]]


def differences(told: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headers and rows: of each pair of variants, a difference and its interval in each metric."""
    names, pairs = told["metrics"], told["compared"]["differences"]
    rows = [
        (f"{pair['variant']} less {pair['less']}", *(_difference(pair["metrics"][name]) for name in names)) for pair in pairs
    ]
    return ("", *names), rows


def goal_line(told: dict[str, Any]) -> str | None:
    """What was to be reached, and whether it was; None where the recipe sets no goal, or no seed is done."""
    goal = told["goal"]
    if goal is None or goal.get("value") is None:
        return None
    line = f"{goal['metric']} {goal['value']:.4f}: must {goal['must']:.4f} {_met(goal['must_met'])}"
    return line if goal["stretch"] is None else f"{line}, stretch {goal['stretch']:.4f} {_met(goal['stretch_met'])}"


def listing(recipes: Sequence[Recipe], out: Path) -> list[tuple[str, ...]]:
    """name, data, model, what must be reached, and what a page in `out` says of it."""
    return [_listed(recipe, runs.read_json(out / f"{recipe.name}.json")) for recipe in recipes]


def _listed(recipe: Recipe, told: dict[str, Any] | None) -> tuple[str, ...]:
    metric = recipe.goal.metric if recipe.goal else recipe.metrics[0]
    must = f"{metric} {recipe.goal.must:.4f}" if recipe.goal else ""
    ours = _best(told, metric) if told and recipe.variants else ""
    if told and metric in told.get("figures", {}):
        ours = _mean(told["figures"][metric])
    return recipe.name, recipe.source.file, ", ".join(variant.name for variant in recipe.compared), must, ours


def _best(told: dict[str, Any], metric: str) -> str:
    found = {name: figures[metric] for name, figures in told.get("variants", {}).items() if metric in figures}
    best = max(found, key=lambda name: found[name]["mean"], default=None)
    return "" if best is None else f"{best} {_mean(found[best])}"


LISTED = ("recipe", "data", "model", "must", "ours")


def _variants(recipe: Recipe, seeds: Sequence[int], trials: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """variant → metric → figure; none of a recipe without variants."""
    of = {variant.name: [trial for trial in trials if trial["variant"] == variant.name] for variant in recipe.variants}
    return {name: {metric: _figure(metric, seeds, own) for metric in recipe.metrics} for name, own in of.items()}


def _hours(trials: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of one model. Variants are compared in what they are worth: seconds of different models want a benchmark's care."""
    return {part: round(sum(t["seconds"][part] for t in trials) / HOUR, 4) for part in ("choosing", "refit", "scoring")}


def _settings(recipe: Recipe) -> dict[str, Any]:
    """By section.key; where variants are compared, of each."""
    several = recipe.variants or recipe.parts
    return {variant.name: changed(variant.config) for variant in several} or changed(recipe.config)


def _figure(name: str, seeds: Sequence[int], trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """mean and standard deviation over seeds, each seed's mean over folds; the interval of the first trial."""
    of_seed = {seed: [t["test"]["metrics"][name] for t in trials if t["seed"] == seed] for seed in seeds}
    values = {seed: statistics.fmean(figure["value"] for figure in of_seed[seed]) for seed in seeds}
    popularity = [figure.get("popularity") for figure in of_seed[seeds[0]]]
    return {
        "mean": statistics.fmean(values.values()),
        "sd": statistics.stdev(values.values()) if len(values) > 1 else None,
        "seeds": {str(seed): value for seed, value in values.items()},
        "low": of_seed[seeds[0]][0]["low"],
        "high": of_seed[seeds[0]][0]["high"],
        "popularity": None if None in popularity else statistics.fmean(popularity),
    }


def _goal(recipe: Recipe, figures: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    if (goal := recipe.goal) is None:
        return None
    told = goal.model_dump(mode="json")
    if not figures:
        return told | {"value": None}
    value = figures[goal.metric]["mean"]
    stretch = None if goal.stretch is None else goal.reached(value, goal.stretch)
    return told | {"value": value, "must_met": goal.reached(value, goal.must), "stretch_met": stretch}


def _short(trial: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    fold = f", fold {trial['fold']}" if trial["fold"] else ""
    kept = ("seed", "fold", "fingerprint", "epochs", "best_epoch", "variant" if recipe.variants else "seconds")
    counted = ("told", "split", "users", "strangers", "events", "cold_events")
    metric = recipe.config.train.metric
    variant = f"{trial['variant']}, " if recipe.variants else ""
    return {
        "which": f"{variant}seed {trial['seed']}{fold}",
        **({"parts": trial["parts"]} if recipe.parts else {}),
        **{name: trial[name] for name in kept},
        "validation": {metric: trial["validation"].get(metric)},
        "test": {name: trial["test"][name] for name in counted}
        | {name: trial["test"]["metrics"][name]["value"] for name in recipe.metrics},
    }


def _machine(trial: dict[str, Any]) -> dict[str, Any]:
    hardware = (trial["environment"] or {}).get("hardware", {})
    return {
        **trial["machine"],
        **{name: hardware.get(name) for name in ("device", "workers", "precision", "threads_per_worker")},
    }


def _distinct(values: Sequence[Any]) -> list[Any]:
    return [value for place, value in enumerate(values) if value is not None and value not in values[:place]]


def _row(row: dict[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    shown = (f"{row['figures'][name]:.4f}" if name in row["figures"] else "" for name in names)
    return (row["model"], *shown, row["source"])


def _variant_rows(told: dict[str, Any]) -> list[tuple[str, ...]]:
    names, seeds, alone = told["metrics"], len(told["seeds"]), told["compared"]["alone"]
    rows: list[tuple[str, ...]] = []
    for variant, figures in told["variants"].items():
        shown = [_mean(figures[name]) for name in names]
        rows += [(f"{variant}, {seeds} seed{'s' * (seeds != 1)}", *shown, "this page"), _interval_row(alone[variant], names)]
    popularity = (f"{alone[POPULARITY][name]['value']:.4f}" for name in names)
    return [*rows, ("most popular", *popularity, "this page"), _interval_row(alone[POPULARITY], names)]


def _interval_row(figures: dict[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    return ("  95% over users", *(f"{figures[name]['low']:.4f} … {figures[name]['high']:.4f}" for name in names), "bootstrap")


def _difference(figure: dict[str, float]) -> str:
    return f"{figure['value']:+.4f} ({figure['low']:+.4f} … {figure['high']:+.4f})"


def _mean(figure: dict[str, Any]) -> str:
    return f"{figure['mean']:.4f}" + ("" if figure["sd"] is None else f" ± {figure['sd']:.4f}")


def _met(met: bool) -> str:
    return "reached" if met else "not reached"
