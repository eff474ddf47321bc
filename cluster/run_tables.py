"""Runs as tables for people and as values for programs: a list of them, one in full, several side by side."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_core import to_json

from cluster.run_reading import Epoch, Metrics, Run

# Of a run's epochs this many are shown from the start, and as many from the end; and the best one.
SHOWN_EPOCHS = 5
SMALLER_IS_BETTER = ("rmse", "mae")

WHAT = {
    "best/": "weights of the best epoch",
    "config.json": "what was asked for",
    "curves.png": "curves",
    "environment.json": "hardware and versions",
    "metrics.jsonl": "a row an epoch",
    "progress.json": "how far the present epoch is",
    "result.json": "what came of it",
    "tensorboard/": "curves for TensorBoard",
}


class Table(NamedTuple):
    """What console.print_rows prints."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Any]]
    right: Sequence[str] = ()


def as_json(value: Any) -> str:
    """One line of JSON. A number that is none, such as the loss of a run that diverged, is null."""
    return to_json(value, inf_nan_mode="null").decode()


def in_short(run: Run) -> dict[str, Any]:
    """A run in one row, for programs."""
    return {
        "name": run.name,
        "folder": str(run.folder),
        "model": run.model,
        "dataset": run.dataset,
        "state": run.state,
        "finished": run.result is not None and not run.problems,
        "problems": run.problems,
        "epochs": run.trained,
        "best_epoch": run.best_epoch,
        "metric": run.metric,
        "validation": run.validation.get(run.metric),
        "popularity": run.popularity.get(run.metric),
        "test": run.test.get(run.metric),
        "events_per_second": run.events_per_second,
        "when": run.when,
    }


def in_full(run: Run) -> dict[str, Any]:
    """Everything about one run, for programs."""
    return {
        **in_short(run),
        "dataset_folder": run.asked.dataset if run.asked else None,
        "fingerprint": run.fingerprint,
        "settings": run.settings,
        "changed": {name: value for name, (value, _) in run.changed.items()},
        "environment": run.environment,
        "rows": [row.model_dump() for row in run.epochs],
        "result": run.result.model_dump() if run.result else None,
        "files": dict(run.files()),
    }


def listing(storage: Path, found: Sequence[Run]) -> Table:
    """A row a run. The metric is the one that chose its best epoch; speed is that of the median epoch."""
    names = {run.metric for run in found if run.metric}
    metric = names.pop() if len(names) == 1 else "validation"
    headers = ("name", "model", "dataset", "state", "epochs", "best", metric, "popular", "test", "events/s", "when")
    return Table(f"Runs in {storage}", headers, [_listed(run, metric) for run in found], right=headers[4:10])


def _listed(run: Run, metric: str) -> tuple[Any, ...]:
    told = in_short(run)
    valid, popularity, test = (_number(told[name]) for name in ("validation", "popularity", "test"))
    if valid and metric != run.metric:
        valid = f"{run.metric} {valid}"
    shown = [told[name] for name in ("name", "model", "dataset", "state", "epochs", "best_epoch")]
    return (*shown, valid, popularity, test, _count(run.events_per_second), _minute(run))


def about(run: Run) -> list[Table]:
    """Everything about one run but its result, which `result_columns` has."""
    tables = [_overview(run), _changed(run), _environment(run), _epochs(run), _files(run)]
    return [table for table in tables if table.rows]


def result_columns(run: Run) -> dict[str, Metrics]:
    """Columns of metrics: the model and popularity, on validation and on test; so far, if the run is unfinished."""
    so_far = "" if run.result else ", so far"
    columns = {
        f"{run.model} (validation{so_far})": run.validation,
        "popularity (validation)": run.popularity,
        f"{run.model} (test)": run.test,
        "popularity (test)": run.test_popularity,
    }
    return {name: metrics for name, metrics in columns.items() if metrics}


def compared(found: Sequence[Run]) -> dict[str, Any]:
    """Runs side by side, for programs: each list has one value a run, in the order they were given."""
    return {
        "runs": [in_short(run) for run in found],
        "same_dataset": same_dataset(found),
        "settings": differing(found),
        "validation": _aligned([run.validation for run in found]),
        "popularity": _aligned([run.popularity for run in found]),
        "test": _aligned([run.test for run in found]),
        "test_popularity": _aligned([run.test_popularity for run in found]),
    }


def comparison(found: Sequence[Run]) -> list[Table]:
    """What differs between runs, and what came of it. The best of a row is marked, if the runs may be compared at all."""
    names = labels(found)
    overview = [
        ("state", *(run.state for run in found)),
        ("epochs", *(run.trained for run in found)),
        ("best epoch", *(run.best_epoch for run in found)),
        ("events/s", *(_count(run.events_per_second) for run in found)),
    ]
    settings = [
        (name, *(_value(value) if run.asked else "" for run, value in zip(found, values, strict=True)))
        for name, values in differing(found).items()
    ]
    return [
        Table("Settings that differ" if settings else "Settings that differ: none", ("setting", *names), settings),
        Table("Runs", ("", *names), overview),
        Table("Metrics, the best marked *", ("metric", *names, "popularity"), _side_by_side(found), (*names, "popularity")),
    ]


def same_dataset(found: Sequence[Run]) -> bool:
    """Whether all runs learnt from the same data: if not, their metrics say nothing about each other."""
    return len({run.fingerprint for run in found}) == 1 and found[0].fingerprint is not None


def labels(found: Sequence[Run]) -> list[str]:
    """Names of runs, or their paths where names are alike."""
    names = [run.name for run in found]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in found]


def differing(found: Sequence[Run]) -> dict[str, list[Any]]:
    """Settings whose values are not the same in all runs that tell theirs, and the dataset: one value a run, or None."""
    told = [
        {"dataset": run.asked and run.asked.dataset, "fingerprint": run.fingerprint}
        | {f"{section}.{key}": value for section, keys in run.settings.items() for key, value in keys.items()}
        for run in found
    ]
    known = [values for run, values in zip(found, told, strict=True) if run.asked]
    differ = {name: None for values in known for name in values if any(one.get(name) != values[name] for one in known)}
    return {name: [values.get(name) for values in told] for name in differ}


def _side_by_side(found: Sequence[Run]) -> list[tuple[str, ...]]:
    comparable = same_dataset(found)
    told = [(run.validation, run.popularity) for run in found], [(run.test, run.test_popularity) for run in found]
    rows = []
    for segment, pairs in zip(("validation", "test"), told, strict=True):
        popularity = {name: value for _, metrics in pairs for name, value in metrics.items()} if comparable else {}
        for name, values in _aligned([metrics for metrics, _ in pairs]).items():
            best = _best(name, values) if comparable else None
            cells = [f"{_number(value)} {'*' if value is not None and value == best else ' '}" for value in values]
            rows.append((f"{name}, {segment}", *cells, _number(popularity.get(name))))
    return rows


def _aligned(columns: Sequence[Metrics]) -> dict[str, list[float | None]]:
    names = {name: None for metrics in columns for name in metrics}  # a set that keeps their order
    return {name: [metrics.get(name) for metrics in columns] for name in names}


def _best(name: str, values: Sequence[float | None]) -> float | None:
    """The best of several; None where there is nothing to choose. How much of a catalogue is covered is no merit by itself."""
    known = [value for value in values if value is not None]
    if len(known) < 2 or name.startswith("coverage"):
        return None
    return min(known) if name.startswith(SMALLER_IS_BETTER) else max(known)


def _overview(run: Run) -> Table:
    rows: list[tuple[str, Any]] = [("state", run.state), *(("problem", problem) for problem in run.problems)]
    if run.asked:
        rows += [("model", run.model), ("dataset", run.asked.dataset), ("fingerprint", run.asked.fingerprint)]
    rows += [("epochs", run.trained), ("best epoch", run.best_epoch), ("chosen by", run.metric), ("when", _minute(run))]
    if run.result and run.result.parts:
        rows.append(("made of", ", ".join(f"{part.weight:.3g} × {Path(part.run).name}" for part in run.result.parts)))
    if run.result and (lean := run.result.trend):
        rows.append(("follows", f"what is watched now: half-life {lean.half_life_days:g} days, weight {lean.weight:.3g}"))
    for segment, people in (run.result.people if run.result else {}).items():
        rows.append((f"people of {segment}", ", ".join(f"{_value(number)} {what}" for what, number in people.items())))
    return Table(f"Run {run.folder}", ("what", "value"), rows)


def _changed(run: Run) -> Table:
    rows = [(name, _value(value), _value(default)) for name, (value, default) in run.changed.items()]
    return Table("Settings that are not the defaults", ("setting", "value", "default"), rows)


def _environment(run: Run) -> Table:
    hardware = run.environment.get("hardware")
    told = {name: value for name, value in run.environment.items() if name != "hardware"}
    told = {**(hardware if isinstance(hardware, Mapping) else {}), **told}
    return Table("Hardware and versions", ("what", "value"), [(name, _value(value)) for name, value in told.items()])


def _epochs(run: Run) -> Table:
    headers = ("epoch", "loss", run.metric, "popularity", "learning rate", "events/s", "waiting", "")
    rows: list[tuple[Any, ...]] = []
    before = 0
    for row in _shown(run):
        if row.epoch > before + 1:
            rows.append(("…", *[""] * (len(headers) - 1)))
        before = row.epoch
        waiting = "" if row.wait_share is None else f"{row.wait_share:.0%}"
        rate = "" if row.learning_rate is None else f"{row.learning_rate:g}"
        metrics = [_number(of.get(run.metric)) for of in (row.metrics, row.popularity)]
        best = "best" if row.epoch == run.best_epoch else ""
        rows.append((row.epoch, _number(row.loss), *metrics, rate, _count(row.events_per_second), waiting, best))
    return Table("Epochs", headers, rows, right=headers[:-1])


def _shown(run: Run) -> list[Epoch]:
    """The first epochs, the best one and the last ones."""
    last = len(run.epochs) - SHOWN_EPOCHS
    return [row for i, row in enumerate(run.epochs) if i < SHOWN_EPOCHS or i >= last or row.epoch == run.best_epoch]


def _files(run: Run) -> Table:
    rows = [
        (name, WHAT.get(name) or ("to resume from" if name.startswith("checkpoint_") else ""), size)
        for name, size in run.files()
    ]
    return Table("Files", ("name", "what", "bytes"), rows, right=("bytes",))


def _minute(run: Run) -> str:
    return f"{run.when:%Y-%m-%d %H:%M}" if run.when else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _value(value: Any) -> str:
    """A setting as a person would write it."""
    if value is None:
        return "unset"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
