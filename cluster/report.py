"""What a run and a bundle say about themselves, as rows for a table."""

import json
from pathlib import Path
from typing import Any

from recsys.bundle.manifest import MANIFEST_FILE, EncoderReport, Manifest
from recsys.config import LOWER_IS_BETTER

PLAIN = {
    "popularity": "the list of the most watched",
    "lately": "the list of the most watched lately",
    "means": "the means of each item's and each user's ratings",
}


def run_columns(run: Path) -> dict[str, dict[str, float]]:
    """Columns of metrics of a finished run: the model and popularity, on validation and on test; where its lists follow a trend
    the popular list that does so, too, for cold items chance."""
    result = json.loads((run / "result.json").read_bytes())
    # The list of the most watched lately, and beside it that of the most watched ever.
    ours = "popular lately" if result["model"] == "popularity" and result.get("trend") else result["model"]
    columns = {
        f"{ours} (validation)": result["metrics"],
        "popularity (validation)": result["popularity"],
        "popular lately (validation)": result.get("lately") or {},
        "means (validation)": result.get("means") or {},
        "random (validation)": result.get("random") or {},
        f"{ours} (test)": result.get("test") or {},
        "popularity (test)": result.get("test_popularity") or {},
        "popular lately (test)": result.get("test_lately") or {},
        "means (test)": result.get("test_means") or {},
        "random (test)": result.get("test_random") or {},
    }
    return {name: values for name, values in columns.items() if values}


def begun_line(run: Path) -> str | None:
    """Of a run that began from another how much of it that one knew, by ids; None of others."""
    path = run / "environment.json"
    told = json.loads(path.read_bytes()) if path.is_file() else {}
    if "begun_from" not in told:
        return None
    known = ", ".join(f"{count:,} {name}s" for name, count in told["known_to_rank_0"].items())
    line = f"Began from {told['begun_from']}, which knows {known} (those of the first worker) of the same ids"
    return f"{line}: right where both datasets number alike."


def trend_line(run: Path) -> str | None:
    """What a run's lists lean to, and what that came to on validation; None where they do not."""
    result = json.loads((run / "result.json").read_bytes())
    trend = result.get("trend")
    if not trend:
        return None
    metric, tried, days = trend["metric"], trend["tried"], f"{trend['half_life_days']:g} days"
    parts = [("the popular list", tried.get("popularity"), tried.get(f"popularity, {days}"))]
    if trend["weight"]:
        parts.append((result["model"], tried.get(result["model"]), result["metrics"].get(metric)))
    told = [f"{what} {before:.4f}, so {after:.4f}" for what, before, after in parts if before is not None and after is not None]
    return f"Lists follow what is popular now: an event counts half after {days}" + (
        f" ({metric} on validation: {'; '.join(told)})." if told else "."
    )


def no_better_than(run: Path, metric: str) -> str | None:
    """What needs no model and is as good as a learnt one, by a metric on test if there is one, else on validation: the list of
    the most watched, or of those lately, or for errors of ratings their means. None where the model is better than all."""
    result = json.loads((run / "result.json").read_bytes())
    on = "test_" if result.get("test") else ""
    ours = result["test" if on else "metrics"]
    if result["model"] == "popularity" or metric not in ours:
        return None
    sign = -1 if metric in LOWER_IS_BETTER else 1
    for name, called in PLAIN.items():
        theirs = result.get(f"{on}{name}") or {}
        if metric in theirs and sign * ours[metric] <= sign * theirs[metric]:
            return called
    return None


def bundle_rows(folder: Path) -> list[tuple[str, Any]]:
    """What a published bundle holds, and how well its index finds what exact search finds."""
    manifest = Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    rows: list[tuple[str, Any]] = [
        ("model", manifest.model),
        ("users", manifest.users),
        ("items", manifest.items),
        ("vectors from", ", ".join(manifest.vectors_from)),
        *_quality(manifest),
        ("megabytes", round(sum(file.size for file in manifest.files.values()) / 1e6, 1)),
    ]
    if (index := manifest.index) is not None:
        rows += [
            ("index", f"{index.kind} of {index.storage}, {index.indexed:,} items"),
            ("recall@10 against exact", f"{index.recall_at_10:.4f} (at least {index.recall_low:.4f}, {index.users} users)"),
            ("milliseconds a query", f"{index.ann_ms:.3f} (exact {index.exact_ms:.3f})"),
        ]
    if (encoder := manifest.encoder) is not None:
        longest = f"{manifest.encoded_part.parameters['max_length']:.0f}"
        rows += [
            ("encoder against the model", f"{encoder.difference:.1e} apart at most ({encoder.histories} histories)"),
            *_smaller(encoder),
            ("milliseconds a history", f"{encoder.milliseconds:.2f} (of {longest} events)"),
        ]
    return rows


def _smaller(encoder: EncoderReport) -> list[tuple[str, str]]:
    if encoder.cosine is None:
        return []
    pruned = f", {encoder.pruned:.0%} of its feed-forward units left out" if encoder.pruned else ""
    told = f"{encoder.storage}{pruned}: cosine {encoder.cosine:.4f} with the whole model's vectors"
    return [("smaller encoder", told)]


def _quality(manifest: Manifest) -> list[tuple[str, str]]:
    name = next((name for name in manifest.metrics if name.startswith("ndcg@")), None)
    if name is None:
        return []
    popularity = f" (popularity {manifest.popularity[name]:.4f})" if name in manifest.popularity else ""
    return [(f"{name} on {manifest.metrics_on}{_of_what(manifest)}", f"{manifest.metrics[name]:.4f}{popularity}")]


def _of_what(manifest: Manifest) -> str:
    """Where what was measured is not what the bundle holds."""
    if manifest.metrics_on in manifest.vectors_from:
        return ", before the refit"
    is_smaller = manifest.encoder is not None and manifest.encoder.cosine is not None
    return ", by the whole encoder" if is_smaller else ""
