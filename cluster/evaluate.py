"""`recsys evaluate`: what a run or a bundle is worth, by a protocol with a name, with popularity and intervals beside it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import torch

from cluster import runs
from cluster.evaluate_bundle import Lists
from cluster.finished import Finished, cutoffs, folded_in, open_finished
from cluster.reading import item_counts, stream_histories, trained_until
from recsys.bundle import store
from recsys.bundle.manifest import Manifest
from recsys.config import nearest
from recsys.data import schema
from recsys.data.dataset import DatasetManifest, read_manifest
from recsys.data.histories import Histories
from recsys.data.negatives import StoredNegatives, read_negatives
from recsys.errors import BundleError, ConfigError, DataError
from recsys.evaluation.candidates import candidates
from recsys.evaluation.ranking import evaluate as rank
from recsys.evaluation.recut import LEAST_EVENTS, by_user
from recsys.evaluation.sums import RankingSums
from recsys.models.base import listed_items

FULL, NEGATIVES, BY_USER = "full", "negatives", "by-user"
PROTOCOLS = (FULL, NEGATIVES, BY_USER)
BLOCK = 1024  # users of a bundle that are asked about at once
STAGE = "evaluate: users"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Protocol:
    """What is scored, and against what. segment: valid or test; negatives: of the protocol of that name."""

    name: str
    segment: Literal["valid", "test"]
    negatives: StoredNegatives | None = None

    @property
    def scored(self) -> str:
        """The segment of a cut history that is scored."""
        return schema.TEST if self.name == BY_USER else self.segment

    def split_of(self, split: str | None) -> str | None:
        """How the scored events were held out: by the dataset's split, unless the protocol has another cut or candidates."""
        return split if self.name == FULL else None

    def cut(self, histories: Histories, *, trains: bool) -> tuple[Histories, int, int]:
        """The users to score, with their events cut as they are scored; how many had too few events; how many of the events
        to score were trained on, if train segments of these users were (`trains`)."""
        first, last = histories.bounds(self.segment)
        asked = last > first
        if self.negatives is not None:
            asked &= self.negatives.has(histories.user)
        histories = histories.take(asked)
        if self.name != BY_USER:
            return histories, 0, 0
        return by_user(histories if self.segment == schema.TEST else histories.until(schema.TEST), trains=trains)


@dataclass(frozen=True)
class Evaluation:
    """What was counted, and of what.

    exact: the same lists by exact search, where the index made any. paths: lists by what made them, of a bundle.
    too_few: users left out for want of events; trained: scored events that the vectors have learnt from; ranked: which items
    lists are made of, by `Candidates.kind`.
    """

    what: Path
    kind: str
    model: str
    dataset: str
    split: str | None
    exclude_seen: bool
    protocol: Protocol
    sums: RankingSums
    seconds: float = 0.0
    exact: RankingSums | None = None
    paths: dict[str, int] | None = None
    index: str | None = None
    too_few: int = 0
    trained: int = 0
    ranked: str = "trained"


def evaluate(
    what: Path,
    dataset: Path | None = None,
    *,
    protocol: str = FULL,
    segment: str = schema.TEST,
    progress: Progress = lambda stage, done, total: None,
) -> Evaluation:
    """Evaluate a run folder or a bundle, without Ray.

    what: a run is measured from its best checkpoint, as at the end of training; a bundle through the Recommender, index and
    settings it is served with, and by exact search beside it. dataset: where a run's dataset lies now; for a bundle, which
    has its own histories, only the protocol `negatives` needs it. Raises ConfigError for a protocol or segment that there is
    not, DataError or BundleError where what is asked cannot be measured.
    """
    began = time.perf_counter()
    if protocol not in PROTOCOLS:
        raise ConfigError(f"--protocol {protocol}: no such protocol.{nearest(protocol, PROTOCOLS)}")
    if segment not in (schema.VALID, schema.TEST):
        raise ConfigError(f"--segment {segment}: there are {schema.VALID} and {schema.TEST}.")
    if protocol == NEGATIVES and segment != schema.TEST:
        raise ConfigError(f"--protocol {NEGATIVES} --segment {segment}: negatives are published for {schema.TEST} only.")
    what = Path(what)
    if not what.is_dir():
        raise DataError(f"{what}: neither a run folder nor a bundle. `recsys runs list` and `recsys bundle list` show them.")
    if (what / schema.DATASET_FILE).is_file():
        raise DataError(f"{what}: a dataset, which has no lists to measure. Give a run of it, by recsys train, or a bundle.")
    asked = Protocol(protocol, cast(Literal["valid", "test"], segment))
    of_run = any((what / name).is_file() for name in (runs.CONFIG, runs.RESULT))
    found = _of_run(what, dataset, asked, progress) if of_run else _of_bundle(what, dataset, asked, progress)
    if not (found.sums.known.users or found.sums.strangers.users):
        raise DataError(f"{what}: no user has what --protocol {protocol} --segment {segment} scores: {_lacking(asked)}.")
    return replace(found, seconds=time.perf_counter() - began)


def _lacking(asked: Protocol) -> str:
    if asked.name == BY_USER:
        return f"events in {asked.segment} and {LEAST_EVENTS} events in all"
    return f"events in {asked.segment}"


def _of_run(run: Path, dataset: Path | None, asked: Protocol, progress: Progress) -> Evaluation:
    found = open_finished(run, dataset)
    if found.border == schema.END:
        raise DataError(f"{run}: a refit has learnt from valid and test, so nothing is left to score. Evaluate the run before.")
    if found.border == schema.TEST and asked.segment == schema.VALID:
        raise DataError(f"{run}: a refit up to test has learnt from valid. Evaluate it with --segment test, or the run before.")
    manifest = found.manifest
    asked = _with_negatives(asked, found.dataset, manifest)
    evaluation = Evaluation(
        what=run,
        kind="run",
        model=found.config.model.name,
        dataset=manifest.fingerprint,
        split=manifest.split,
        exclude_seen=manifest.repeats != "keep",
        protocol=asked,
        sums=RankingSums.nothing(cutoffs(found.config), 0, manifest.items),
    )
    return _rank_users(evaluation, found, progress)


def _rank_users(evaluation: Evaluation, found: Finished, progress: Progress) -> Evaluation:
    manifest, asked = found.manifest, evaluation.protocol
    files = trained_until(found.dataset, manifest, found.border).user_files
    counts = item_counts(found.dataset, manifest, files, found.border)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = found.model(counts)
    ranked = candidates(listed_items(model, counts), counts, asked.split_of(manifest.split))
    trend = found.trend(files, found.border, counts)
    model = model.to(device) if isinstance(model, torch.nn.Module) else model
    vectors = folded_in(model, counts)
    sums = replace(evaluation.sums, eligible=int(ranked.eligible.sum()))
    done = too_few = trained = 0
    for file in files:
        folds = asked.name == BY_USER or file.role in (schema.VALID, schema.TEST)
        for histories in stream_histories(found.dataset, file, found.border):
            cut, few, known = asked.cut(histories, trains=file.role in (schema.ALL, schema.TRAIN))
            sums = sums + rank(
                model,
                cut,
                segment=asked.scored,
                item_counts=counts,
                ks=sums.ks,
                exclude_seen=evaluation.exclude_seen,
                device=device,
                user_vectors=vectors if folds else None,
                negatives=asked.negatives,
                keep_users=True,
                ranked=ranked,
                trend=trend,
            )
            done, too_few, trained = done + len(histories), too_few + few, trained + known
            progress(STAGE, done, manifest.users)
    return replace(evaluation, sums=sums, too_few=too_few, trained=trained, ranked=ranked.kind)


def _of_bundle(path: Path, dataset: Path | None, asked: Protocol, progress: Progress) -> Evaluation:
    folder = store.resolve(path)
    manifest = store.read_manifest(folder)
    border = _unseen_border(folder, manifest, asked.segment)
    if dataset is not None or asked.name == NEGATIVES:
        asked = _with_negatives(asked, *_dataset_of(folder, manifest, dataset))
    lists = Lists(folder, known_until=asked.segment, split=asked.split_of(manifest.split))
    sums, exact, paths = lists.nothing(), lists.nothing(), dict.fromkeys(("ann", "exact", "popular"), 0)
    users, too_few, trained = manifest.users, 0, 0
    for start in range(0, users, BLOCK):
        histories = lists.histories(range(start, min(start + BLOCK, users))).trained_until(border)
        cut, few, known = asked.cut(histories, trains=manifest.split != "users")
        too_few, trained = too_few + few, trained + known
        served, exactly, how = lists.judge(cut, asked.scored, negatives=asked.negatives, newcomers=asked.name == BY_USER)
        sums, exact = sums + served, exact + exactly
        paths = {name: count + how.get(name, 0) for name, count in paths.items()}
        progress(STAGE, start + len(histories), users)
    return Evaluation(
        what=folder,
        kind="bundle",
        model=manifest.model,
        dataset=manifest.dataset,
        split=manifest.split,
        exclude_seen=manifest.exclude_seen,
        protocol=asked,
        sums=sums,
        exact=exact if paths["ann"] else None,
        paths=paths,
        index=None if manifest.index is None else manifest.index.kind,
        too_few=too_few,
        trained=trained,
        ranked=lists.ranked.kind,
    )


def _unseen_border(folder: Path, manifest: Manifest, segment: str) -> str:
    """What the vectors were made from ends here. Raises BundleError where that is behind the beginning of what is scored."""
    border = schema.TEST if schema.VALID in manifest.vectors_from else schema.VALID
    if schema.TEST in manifest.vectors_from or (border == schema.TEST and segment == schema.VALID):
        raise BundleError(
            f"{folder}: its vectors were made from {', '.join(manifest.vectors_from)}, so nothing held out is left to score. "
            "Evaluate the run it was exported from, or a bundle exported without --refit."
        )
    return border


def _dataset_of(folder: Path, manifest: Manifest, dataset: Path | None) -> tuple[Path, DatasetManifest]:
    if dataset is None:
        raise ConfigError(
            f"{folder}: a bundle keeps no negatives. Name its dataset too: "
            f"recsys evaluate {folder} DATASET --protocol {NEGATIVES}"
        )
    found = read_manifest(dataset)
    if found.fingerprint != manifest.dataset:
        raise DataError(f"{dataset}: not the dataset that {folder} was made from. Give that one, or export again.")
    return dataset, found


def _with_negatives(asked: Protocol, dataset: Path, manifest: DatasetManifest) -> Protocol:
    if not manifest.segments[asked.segment]:
        have = [name for name in (schema.VALID, schema.TEST) if manifest.segments[name]]
        raise DataError(f"{dataset}: holds no events out for {asked.segment}; there are: {', '.join(have) or 'none'}.")
    if asked.name != NEGATIVES:
        return asked
    negatives = read_negatives(dataset, manifest)
    if negatives is None:
        raise DataError(f"{dataset}: no negatives are stored, as its source publishes none. There are: {FULL}, {BY_USER}.")
    return replace(asked, negatives=negatives)


__all__ = ["BY_USER", "FULL", "NEGATIVES", "PROTOCOLS", "Evaluation", "Protocol", "evaluate"]
