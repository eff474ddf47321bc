"""The page of a recipe, `docs/benchmarks/<recipe>.md`: protocol, figures beside the published rows, and what made them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster import reproduce_report as report


def write(told: dict[str, Any], out: Path) -> Path:
    """Write `<out>/<recipe>.json` and the page beside it. Returns the page."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{told['recipe']}.json").write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", "utf-8")
    path = out / f"{told['recipe']}.md"
    path.write_text(page(told), "utf-8")
    return path


def page(told: dict[str, Any]) -> str:
    """Markdown, from `reproduce_report.summary`."""
    headers, rows = report.table(told)
    parts = [
        f"# {told['title']}",
        f"`{told['command']}` makes this page.",
        _protocol(told),
        _markdown(headers, rows),
        "± is the standard deviation over seeds." + (" A figure is the mean over the folds." if told["folds"] else ""),
        *(_differences(told) if told["compared"] else ()),
        report.goal_line(told) or "",
        "## How each seed was trained",
        _markdown(*_trials(told)),
        _hours(told) if told["hours"] else "",
        "## Settings",
        f"What differs from the defaults of {'each' if told['compared'] else 'the'} model:",
        _json(told["settings"]),
        "## Data",
        _data(told),
        "## Made by",
        _made_by(told),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _protocol(told: dict[str, Any]) -> str:
    test = told["trials"][0]["test"]
    folds = f" Folds {', '.join(told['folds'])} are prepared and trained apart." if told["folds"] else ""
    return (
        f"Protocol: split `{test['split']}`; {test['told']}. "
        f"{_of_fold(told)}{test['users']:,} users and {test['events']:,} events are scored, {test['cold_events']:,} of them "
        f"on items nobody trained on (misses);{_otherwise(told)} {test['strangers']:,} users without a train event "
        f"are counted apart.{folds} "
        "A run chooses the epoch on validation and never measures test. A second one begins anew and trains as many epochs on "
        "train and validation, at the same learning rates, and is scored on test once. "
        f"{_blended(told)}{told['about']}"
    ).strip()


def _of_fold(told: dict[str, Any]) -> str:
    return f"Of fold {told['folds'][0]} " if told["folds"] else ""


def _blended(told: dict[str, Any]) -> str:
    """Of a blend how its weights came about, and what they are."""
    if not (first := told["trials"][0].get("parts")):
        return ""
    weights = ", ".join(f"{part['model']} {part['weight']:.3g}" for part in first)
    return (
        "The parts are trained so one by one; the weights of their scores are chosen on validation, between the two trainings "
        f"({told['trials'][0]['which']}: {weights}). The sum is one dot product. "
    )


def _otherwise(told: dict[str, Any]) -> str:
    """Of variants that rank other items: those, too, of which only attributes are known."""
    usual = told["trials"][0]["test"]["told"]
    tests = {each["variant"]: each["test"] for each in told["trials"] if each["test"]["told"] != usual}
    return "".join(
        f" of {name} {test['told'].partition(': ')[2]}, {test['cold_events']:,} misses;" for name, test in tests.items()
    )


def _differences(told: dict[str, Any]) -> tuple[str, ...]:
    return (
        "## Differences",
        "Of the same users, each by the mean over seeds of what his lists were worth; 95% intervals by bootstrap over users.",
        _markdown(*report.differences(told)),
    )


def _trials(told: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    metric = next(iter(told["trials"][0]["validation"]))
    headers = ("", "epochs", "best epoch", f"validation {metric}", *(f"test {name}" for name in told["metrics"]))
    rows = [
        (
            trial["which"],
            _epochs(trial["epochs"]),
            _epochs(trial["best_epoch"]),
            f"{trial['validation'][metric]:.4f}",
            *(f"{trial['test'][name]:.4f}" for name in told["metrics"]),
        )
        for trial in told["trials"]
    ]
    return headers, rows


def _epochs(told: int | list[int]) -> str:
    """Of a blend those of each part."""
    return str(told) if isinstance(told, int) else ", ".join(map(str, told))


def _hours(told: dict[str, Any]) -> str:
    hours = told["hours"]
    return (
        f"Hours of all seeds together: {hours['choosing']:.2f} to choose, validation included, {hours['refit']:.2f} to refit, "
        f"{hours['scoring']:.2f} to score. The starts of Ray and the preparing of data are not in them."
    )


def _data(told: dict[str, Any]) -> str:
    source = told["source"]
    hashes = _markdown(("file", "SHA-256"), [(name, f"`{sha256}`") for name, sha256 in source["files"].items()])
    prints = ", ".join(dict.fromkeys(f"`{trial['fingerprint']}`" for trial in told["trials"]))
    return f"{source['citation']} Published at {source['published']}. {source['licence']}\n\n{hashes}\n\nDataset {prints}."


def _made_by(told: dict[str, Any]) -> str:
    machines = [
        f"workers: {on['workers']} on {on['name']}, threads of each: {on['threads_per_worker']}, {on['precision']}; host: "
        f"{on['processor']['usable_cores']:g} cores of {on['processor']['name']}, {on['memory'] / 1e9:.0f} GB of memory"
        for on in told["machines"]
    ]
    packages = [", ".join(f"{name} {version}" for name, version in each.items()) for each in told["packages"]]
    lines = [*machines, *packages, f"commit {', '.join(told['commits']) or 'unknown'}"]
    return "\n".join(f"- {line}" for line in lines)


def _markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.strip().replace("|", "\\|")


def _json(values: dict[str, Any]) -> str:
    return f"```json\n{json.dumps(values, indent=2)}\n```"
