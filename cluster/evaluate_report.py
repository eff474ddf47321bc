"""What an evaluation says, for programs and for people: every figure with its interval, popularity and exact search beside it.

Shapes: M metrics, K cut-offs, C = M · K measures of each of U users.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.evaluate import BY_USER, NEGATIVES, Evaluation
from recsys.evaluation import metrics
from recsys.evaluation.intervals import RESAMPLES, resample
from recsys.evaluation.recut import LEAST_EVENTS, SHOWN
from recsys.evaluation.sums import RankingSums, UserValues

SEED = 0
MAIN = "ndcg"
RANKED = {
    "trained": "all {} trained items",
    "listed": "all {} items with a vector",
    "cold": "the {} items with a vector that nobody trained on",
}


def as_json(found: Evaluation, seed: int = SEED) -> dict[str, Any]:
    """One object: every metric with value, 95% interval, popularity, their paired difference, and exact search's if asked."""
    sums = found.sums
    return {
        found.kind: str(found.what),
        "model": found.model,
        "dataset": found.dataset,
        "protocol": found.protocol.name,
        "segment": found.protocol.segment,
        "split": found.split,
        "told": protocol_line(found),
        "ranked": found.ranked,
        **sums.people(),
        "users_with_too_few_events": found.too_few,
        "scored_events_trained_on": found.trained,
        "metrics": _figures(found, seed) | _coverage(found),
        **({"random": by_chance} if (by_chance := sums.random_metrics()) else {}),
        "strangers_metrics": sums.stranger_metrics() if sums.strangers.users else {},
        "index": found.index,
        "lists_by": found.paths,
        "bootstrap": {"resamples": RESAMPLES, "seed": seed, "method": "poisson, percentile"},
        "seconds": round(found.seconds, 3),
    }


def protocol_line(found: Evaluation) -> str:
    """The protocol in one line."""
    name, segment, items = found.protocol.name, found.protocol.segment, RANKED[found.ranked].format(f"{found.sums.eligible:,}")
    seen = "seen ones left out" if found.exclude_seen else "seen ones too"
    if name == NEGATIVES:
        return f"{name}: each user's {segment} items ranked among the negatives stored with the dataset"
    if name != BY_USER:
        return f"{name}: {segment} of the split {found.split or 'of its dataset'}, {items} ranked, {seen}"
    line = (
        f"{name}: the first {SHOWN:.0%} of each history of {LEAST_EVENTS} events or more folded in, the rest scored, "
        f"{items} ranked, {seen}"
    )
    if found.trained:
        line += f"; {found.trained:,} of the {_events(found.sums):,} events scored were trained on, which flatters the model"
    return line


def rows(told: dict[str, Any]) -> list[tuple[str, ...]]:
    """metric, model, interval, popularity, difference, its interval; from `as_json`."""
    return [
        (
            name,
            f"{figure['value']:.4f}",
            _interval(figure),
            _number(figure.get("popularity")),
            _signed(figure.get("difference", {}).get("value")),
            _interval(figure.get("difference", {})),
        )
        for name, figure in told["metrics"].items()
    ]


def exact_row(told: dict[str, Any]) -> tuple[str, ...] | None:
    """metric, index, exact search, what the index loses, its interval, how many lists it made; None where it made none."""
    name = next((name for name, figure in told["metrics"].items() if name.startswith(MAIN) and "exact" in figure), None)
    if name is None:
        return None
    figure, by = told["metrics"][name], told["lists_by"]
    difference = figure["index_less_exact"]
    lists = f"{by['ann']:,} of {sum(by.values()):,}"
    return name, f"{figure['value']:.4f}", f"{figure['exact']:.4f}", _signed(difference["value"]), _interval(difference), lists


def people_line(told: dict[str, Any]) -> str:
    """Who was counted, who apart, and how long it took."""
    line = f"{told['users']:,} users, {told['events']:,} events"
    if told["cold_events"]:
        line += f", {told['cold_events']:,} of them on items nobody trained on (misses)"
    if "random" in told:
        name = next(name for name in told["random"] if name.startswith(MAIN))
        line += f"; an order by chance has {name} {told['random'][name]:.4f}"
    if told["users_with_too_few_events"]:
        line += f"; {told['users_with_too_few_events']:,} users with too few events left out"
    if told["strangers"]:
        name = next(name for name in told["strangers_metrics"] if name.startswith(MAIN))
        line += f"; apart from these {told['strangers']:,} strangers: {name} {told['strangers_metrics'][name]:.4f}"
    return f"{line}; {told['seconds']:.1f} s"


def _events(sums: RankingSums) -> int:
    return sums.people()["events"]


def _figures(found: Evaluation, seed: int) -> dict[str, dict[str, Any]]:
    users = found.sums.users()
    names = [f"{name}@{k}" for k in found.sums.ks for name in metrics.RANKING]
    columns = [_measures(users.model), _measures(users.popularity), _measures(users.model - users.popularity)]
    if found.exact is not None:
        exact = found.exact.users().model
        columns += [_measures(exact), _measures(users.model - exact)]
    means, spread = resample(np.concatenate(columns), seed=seed).means()
    figures = {}
    for place, name in enumerate(names):
        at = [column * len(names) + place for column in range(len(columns))]
        figures[name] = _figure(means, spread, at[0])
        figures[name] |= {"popularity": float(means[at[1]]), "difference": _figure(means, spread, at[2])}
        if found.exact is not None:
            figures[name] |= {"exact": float(means[at[3]]), "index_less_exact": _figure(means, spread, at[4])}
    return figures | _errors(users, seed)


def _measures(values_MKU: NDArray[np.float64]) -> NDArray[np.float64]:
    """[C, U], by k and then by metric."""
    return values_MKU.swapaxes(0, 1).reshape(-1, values_MKU.shape[2])


def _errors(users: UserValues, seed: int) -> dict[str, dict[str, Any]]:
    if not users.errors.shape[1]:
        return {}
    drawn = resample(users.errors, seed=seed)
    squared, absolute, events = drawn.true
    low, high = drawn.interval(lambda sums, _: sums[:, :2] / np.maximum(sums[:, 2:], 1))
    rmse = {"value": metrics.rmse(squared, events), "low": float(low[0] ** 0.5), "high": float(high[0] ** 0.5)}
    return {"rmse": rmse, "mae": {"value": metrics.mae(absolute, events), "low": float(low[1]), "high": float(high[1])}}


def _coverage(found: Evaluation) -> dict[str, dict[str, Any]]:
    """Of the catalogue, not of users, so without an interval; among negatives it says nothing."""
    if found.protocol.name == NEGATIVES:
        return {}
    ours, theirs = found.sums.metrics(), found.sums.popularity_metrics()
    return {name: {"value": ours[name], "popularity": theirs[name]} for name in ours if name.startswith("coverage@")}


def _figure(means: NDArray[np.float64], spread: NDArray[np.float64], place: int) -> dict[str, Any]:
    low, high = spread[:, place].tolist()
    return {"value": float(means[place]), "low": low, "high": high}


def _interval(figure: dict[str, Any]) -> str:
    return f"{figure['low']:.4f} … {figure['high']:.4f}" if "low" in figure else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.4f}"


HEADERS: Sequence[str] = ("metric", "", "95% interval", "popularity", "difference", "95% of it")
EXACT_HEADERS: Sequence[str] = ("metric", "index", "exact", "difference", "95% of it", "lists by the index")
