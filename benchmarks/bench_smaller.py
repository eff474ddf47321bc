"""Smaller bundles of one run: bytes, milliseconds an answer and NDCG@10 of each against the full one.

python benchmarks/bench_smaller.py RUN [--student RUN ...] [--kind flat hnsw] [--users 500] [--runs 5]

RUN: a finished run of a model with or without an encoder. --student: smaller finished runs that learnt from it (`recsys train
--teacher RUN`), and such that did not, exported as they are.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from common import publish, table
from threadpoolctl import threadpool_limits

from cluster import runs
from cluster.evaluate import evaluate
from cluster.export import export
from recsys.bundle.manifest import ENCODER, INDEX
from recsys.bundle.read import open_bundle
from recsys.config import load_config
from recsys.evaluation import metrics
from recsys.evaluation.intervals import resample
from recsys.models import MODELS
from recsys.retrieval.recommender import Answer, Recommender, Request

FULL, K = "full", 10
STORAGES = ("fp16", "int8", "pq")
ENCODERS = {
    "encoder int8": ["encoder.storage=int8"],
    "encoder pruned 25%": ["encoder.pruned=0.25"],
    "encoder pruned 50%": ["encoder.pruned=0.5"],
    "encoder int8, pruned 25%": ["encoder.storage=int8", "encoder.pruned=0.25"],
}


@dataclass(frozen=True)
class Variant:
    """A run and the settings that it is exported by."""

    name: str
    run: Path
    settings: list[str]


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        bundles = {variant.name: exported(variant, Path(folder)) for variant in variants(options)}
        figures = measure(bundles, options)
    settings = vars(options) | {"run": options.run.name, "student": [run.name for run in options.student]}
    publish("smaller", "Smaller bundles", describe(figures, options), figures, settings)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--student", type=Path, nargs="*", default=[])
    parser.add_argument("--kind", nargs="+", default=["flat", "hnsw"], help="kinds of the index")
    parser.add_argument("--users", type=int, default=500, help="whose answers are timed, one after the other")
    parser.add_argument("--runs", type=int, default=5)
    return parser.parse_args()


def variants(options: argparse.Namespace) -> Iterator[Variant]:
    yield Variant(FULL, options.run, ["index.kind=flat"])
    for kind in options.kind:
        for storage in STORAGES if kind == "flat" else ("fp32", *STORAGES):
            yield Variant(f"index {kind} {storage}", options.run, [f"index.kind={kind}", f"index.storage={storage}"])
    if MODELS[settings_of(options.run)["model"]["name"]].fold_in == "onnx":
        yield from (
            Variant(name, options.run, ["index.kind=flat", *more]) for name, more in ENCODERS.items() if fits(options.run, more)
        )
    for student in options.student:
        model, teacher = settings_of(student)["model"], (runs.read_json(student / runs.RESULT) or {}).get("teacher")
        name = f"{student.name} ({'taught' if teacher else 'no teacher'}): {model['dim']} × {model['blocks']}"
        yield Variant(name, student, ["index.kind=flat"])


def fits(run: Path, settings: list[str]) -> bool:
    """Only a transformer's blocks can be pruned."""
    return settings_of(run)["model"].get("block") != "hstu" or not any("pruned" in setting for setting in settings)


def settings_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = (runs.read_json(run / runs.CONFIG) or {})["config"]
    return content


def exported(variant: Variant, folder: Path) -> Path:
    config = load_config(overrides=variant.settings, base=settings_of(variant.run))
    name = "".join(letter if letter.isalnum() else "-" for letter in variant.name)
    return export(variant.run, folder, name=name, index=config.index, encoder=config.encoder)


def measure(bundles: dict[str, Path], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    gains, figures = {}, {}
    for name, folder in bundles.items():
        found = evaluate(folder)
        users = found.sums.users().model
        gains[name] = users[list(metrics.RANKING).index("ndcg"), found.sums.ks.index(K)]
        paths = found.paths or {}
        by_index = paths.get("ann", 0) / max(sum(paths.values()), 1)
        figures[name] = sizes(folder) | quality(gains[name], gains[FULL]) | {"by_index": round(by_index, 3)}
    for name, taken in latencies(bundles, options).items():
        figures[name] |= {
            "p50_ms": round(float(np.quantile(taken, 0.5)), 3),
            "p95_ms": round(float(np.quantile(taken, 0.95)), 3),
        }
    return figures


def sizes(folder: Path) -> dict[str, Any]:
    manifest = open_bundle(folder).manifest
    of = {name: file.size for name, file in manifest.files.items()}
    recall = manifest.index.recall_at_10 if manifest.index else None
    cosine = manifest.encoder.cosine if manifest.encoder else None
    return {
        "index_bytes": of.get(INDEX, 0),
        "encoder_bytes": of.get(ENCODER, 0),
        "bundle_bytes": sum(of.values()),
        "recall_at_10": recall,
        "encoder_cosine": cosine,
    }


def quality(ours: np.ndarray, full: np.ndarray) -> dict[str, Any]:
    """NDCG@10 and what it is above the full one's, with a 95% interval over the same users."""
    means, spread = resample(np.stack([ours, ours - full]), seed=0).means()
    return {
        "ndcg@10": float(means[0]),
        "against_full": float(means[1]),
        "low": float(spread[0, 1]),
        "high": float(spread[1, 1]),
    }


def latencies(bundles: dict[str, Path], options: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds of single answers, one thread, bundles in turn; each time by a fresh Recommender, which remembers nobody."""
    faiss.omp_set_num_threads(1)
    taken: dict[str, list[float]] = {name: [] for name in bundles}
    with threadpool_limits(1):
        for run in range(options.runs + 1):
            for name, folder in bundles.items():
                found = answers(Recommender(open_bundle(folder)), options.users)
                taken[name] += found if run else []  # the first time files are read
    return taken


def answers(recommender: Recommender, wanted: int) -> list[float]:
    users = recommender.bundle.users
    rows = np.unique(np.linspace(0, len(users) - 1, min(wanted, len(users))).astype(int))
    taken = []
    for user in [users.id(int(row)) for row in rows]:
        began = time.perf_counter()
        (answer,) = recommender.recommend([Request(user=user, k=K)])
        taken.append(1000 * (time.perf_counter() - began))
        assert isinstance(answer, Answer)
    return taken


def describe(figures: dict[str, dict[str, Any]], options: argparse.Namespace) -> str:
    rows = [
        (
            name,
            *(f"{made[part] / 1e6:.3f}" for part in ("index_bytes", "encoder_bytes", "bundle_bytes")),
            f"{made['p50_ms']:.2f}",
            f"{made['p95_ms']:.2f}",
            f"{made['ndcg@10']:.4f}",
            f"{made['against_full']:+.4f} ({made['low']:+.4f} … {made['high']:+.4f})",
            f"{made['by_index']:.0%}",
            "" if made["encoder_cosine"] is None else f"{made['encoder_cosine']:.4f}",
        )
        for name, made in figures.items()
    ]
    headers = (
        "",
        "index MB",
        "encoder MB",
        "bundle MB",
        "p50 ms",
        "p95 ms",
        "NDCG@10",
        "against full (95%)",
        "by index",
        "cosine",
    )
    model = settings_of(options.run)["model"]
    return f"""
`python benchmarks/bench_smaller.py RUN`: bundles of one `{model["name"]}` run ({model["dim"]} dimensions), each exported by
`recsys export RUN --set …`, measured by `recsys evaluate BUNDLE` on test, and asked for lists of {K} by its Recommender: one
user after the other, one thread, {options.users} users {options.runs} times, all bundles in turn, nothing remembered.

{table(headers, rows)}

*by index*: lists that the index made; the others were exact, since a user's history was too long for it or it missed too much
at its audit. *cosine*: of the encoder's vectors with those of the whole model. A flat index of whole vectors is never
asked: exact search is. Bundles hold the whole vectors beside the index, to rescore the head of each list; the index is what is
searched. *taught*: a smaller model, dimensions × blocks, that learnt from the full one, too; *no teacher*: from events alone.
"""


if __name__ == "__main__":
    main()
