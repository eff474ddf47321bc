"""What the commands print at their end: a dataset, a run, runs side by side, a bundle."""

from pathlib import Path
from typing import Any

from cluster import console
from cluster.report import begun_line, bundle_rows, no_better_than, run_columns, trend_line
from recsys.bundle import store
from recsys.bundle.manifest import IndexReport
from recsys.errors import ConfigError

SIDE_BY_SIDE = 4  # columns of metrics on a screen of 80
NO_BETTER = "By {} this model is no better than {}: do not serve it in its place."
TOO_ROUGH = (
    "The index may find less than {} of exact lists (index.recall_floor), so lists are made exactly, which takes longer where "
    "items are many. A larger index.hnsw_ef_search, index.ivf_probes or index.rerank finds more{}."
)


def print_counts(dataset: Path, summary: Any) -> None:
    """A dataset's counts."""
    console.print_rows(f"Dataset {dataset}", ("what", "value"), summary.rows(), right=("value",))


def print_prepared(summary: Any, *, replaced: bool) -> None:
    """What a dataset's counts do not say. replaced: another one had its name."""
    if replaced:
        console.say("It replaces another dataset of this name, whose runs can now neither be measured nor exported.")
    if summary.first_time is None and summary.split == "leave_last_out":
        console.say(
            "Without times a user's last event is his last in the files. If they have any: --set data.time_column=NAME."
        )


def print_run(result: Any, metric: str) -> None:
    """What came of a run, and what to do next. metric: the one that chose its best epoch."""
    if result.already_finished:
        console.say("This run had finished before; here is what came of it. Another --name, seed or setting makes a new one.")
    if result.resumed_from:
        console.say(f"Resumed after epoch {result.resumed_from}.")
    if (line := begun_line(result.folder)) is not None:
        console.say(line)
    title = f"Run {result.folder}: best epoch {result.best_epoch} of {result.epochs}"
    for some in _that_fit(run_columns(result.folder)):
        console.print_metrics(title, some)
    if (line := trend_line(result.folder)) is not None:
        console.say(line)
    after = f"Next: recsys export {result.folder}"
    if (plain := no_better_than(result.folder, metric)) is not None:
        console.say(NO_BETTER.format(metric, plain))
        after = "Look there whether it still learns: then give it more train.epochs, else another train.learning_rate."
    console.say(f"Curves: {result.folder / 'curves.png'}. {after}")


def _that_fit(columns: dict[str, dict[str, float]]) -> list[dict[str, dict[str, float]]]:
    """All in one table, or where they are many those on validation and those on test in one each."""
    if len(columns) <= SIDE_BY_SIDE:
        return [columns]
    on = [{name: values for name, values in columns.items() if name.endswith(f"({which})")} for which in ("validation", "test")]
    return [some for some in on if some]


def print_blend(folder: Path) -> None:
    """What came of a blend, its runs beside it."""
    from cluster.runs import CONFIG, RESULT, read_json

    result, metric = read_json(folder / RESULT) or {}, (read_json(folder / CONFIG) or {})["config"]["train"]["metric"]
    runs = {Path(part["run"]).name: (read_json(Path(part["run"]) / RESULT) or {}) | part for part in result["parts"]}
    told = {"validation": ("metrics", "popularity", "lately"), "test": ("test", "test_popularity", "test_lately")}
    for on, (ours, popular, lately) in told.items():
        columns = {"blend": result[ours], **{name: run.get(ours) or {} for name, run in runs.items()}}
        columns |= {"popularity": result[popular], "popular lately": result.get(lately) or {}}
        if result[ours]:
            console.print_metrics(f"Run {folder}, on {on}", {name: values for name, values in columns.items() if values})
    if (line := trend_line(folder)) is not None:
        console.say(line)
    if (plain := no_better_than(folder, metric)) is not None:
        console.say(NO_BETTER.format(metric, plain))
    console.say(f"Next: recsys export {folder}")


def overlay_curves(found: Any, out: Path) -> Path | None:
    """The curves of those runs that have any, in one picture; None if there are none. Raises ConfigError where it cannot be
    written."""
    from cluster.curves import draw_comparison
    from cluster.run_tables import labels

    rows = {
        name: [row.model_dump() for row in run.epochs] for name, run in zip(labels(found), found, strict=True) if run.epochs
    }
    if not rows:
        return None
    try:
        draw_comparison(rows, out, metric=next((run.metric for run in found if run.metric), ""))
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror}). Choose another place with --out.") from None
    return out


def _other_graph(index: IndexReport) -> str:
    return "; or directions as index.hnsw_graph" if index.kind == "hnsw" and "directions" not in index.parameters else ""


def print_bundle(folder: Path) -> None:
    """What was published."""
    console.print_rows(f"Bundle {folder}", ("what", "value"), bundle_rows(folder))
    manifest = store.read_manifest(folder)
    if manifest.index is not None and manifest.index.recall_low < manifest.recall_floor:
        console.say(TOO_ROUGH.format(manifest.recall_floor, _other_graph(manifest.index)))
    if any(each.current and each.version == folder.name for each in store.listing(folder.parent)):
        return console.say(f"Next: recsys serve {folder.parent}")
    console.say(f"Next: recsys bundle promote {folder.parent} {folder.name}, or serve it alone: recsys serve {folder}")
