"""A dataset in numbers: what `recsys inspect` prints and draws."""

from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys.data import schema
from recsys.data.dataset import DatasetManifest, read_items, read_manifest, read_user_file, verify
from recsys.data.histories import Histories

PERCENTILES = (1, 10, 25, 50, 75, 90, 99, 100)
DAY = 86_400
CURVE_POINTS = 2_000
TIME_BINS = 200


@dataclass(frozen=True)
class Watched:
    """An item and how often it is in the train events."""

    item_id: str
    title: str | None
    count: int


@dataclass(frozen=True)
class DatasetSummary:
    """Counts, and the curves of popularity and activity, thinned to what a picture shows.

    density: share of the user-item cells that hold an event. cold_held_out: held-out events on items without a train
    event. strangers: users who have held-out events and nothing before them. percentiles: percent → value, of events a user
    and of train events an item (items that have one). popularity, activity: [P] (rank, count) from the highest down.
    daily: [D] (Unix second, events) of equal spans; empty without times.
    """

    split: str
    repeats: str
    rows_in: int
    users: int
    items: int
    watched_items: int
    events: int
    segments: dict[str, int]
    dropped: dict[str, int]
    rejects: dict[str, int]
    density: float
    first_time: int | None
    last_time: int | None
    mean_rating: float | None
    cold_held_out: int
    strangers: int
    history_percentiles: dict[int, int]
    popularity_percentiles: dict[int, int]
    most_watched: list[Watched]
    popularity: list[tuple[int, int]]
    activity: list[tuple[int, int]]
    daily: list[tuple[int, int]]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def rows(self) -> list[tuple[str, str]]:
        """What a person is shown, line by line."""
        lines = [
            ("users", f"{self.users:,}"),
            ("items", f"{self.items:,}" + (f" ({self.watched_items:,} watched)" if self.watched_items < self.items else "")),
            ("events", f"{self.events:,}"),
            ("density", f"{self.density:.3%}"),
            ("time span", _span(self.first_time, self.last_time)),
            ("mean rating", "no ratings" if self.mean_rating is None else f"{self.mean_rating:.3f}"),
            ("split", self.split),
            *((f"events to {name}", f"{count:,}") for name, count in self.segments.items()),
            ("held out on items never trained on", f"{self.cold_held_out:,}"),
            ("users with nothing to train on", f"{self.strangers:,}"),
            ("events a user", _percentiles(self.history_percentiles)),
            ("train events an item", _percentiles(self.popularity_percentiles)),
            ("rows in", f"{self.rows_in:,}"),
            *((f"dropped: {name}", f"{count:,}") for name, count in self.dropped.items() if count),
            *((f"rejected: {reason}", f"{count:,}") for reason, count in self.rejects.items()),
        ]
        return [*lines, *([] if self.rejects else [("rejected", "0")])]


@dataclass
class _Tally:
    """What one pass over the user files adds up. lengths: [U]; times: Unix second of a span's start → events."""

    lengths: list[NDArray[np.int64]]
    held_counts: NDArray[np.int64]
    strangers: int
    times: Counter[int]


def summarise(folder: Path, top: int = 10) -> DatasetSummary:
    """Read a dataset folder file by file. Raises DataError if it is none, or a file is missing or altered."""
    manifest = read_manifest(folder)
    verify(folder, manifest)
    items = read_items(folder)
    counts = items.column(schema.COUNT).to_numpy()
    tally = _tally(folder, manifest)
    lengths = np.sort(np.concatenate(tally.lengths))[::-1]
    popularity = np.sort(counts[counts > 0])[::-1]
    return DatasetSummary(
        split=manifest.split,
        repeats=manifest.repeats,
        rows_in=manifest.rows_in,
        users=manifest.users,
        items=manifest.items,
        watched_items=int(((counts + tally.held_counts) > 0).sum()),
        events=manifest.events,
        segments=manifest.segments,
        dropped=manifest.dropped,
        rejects=manifest.rejects,
        density=manifest.events / max(manifest.users * manifest.items, 1),
        first_time=manifest.first_time,
        last_time=manifest.last_time,
        mean_rating=manifest.mean_rating if manifest.has_rating else None,
        cold_held_out=int(tally.held_counts[counts == 0].sum()),
        strangers=tally.strangers,
        history_percentiles=percentiles(lengths),
        popularity_percentiles=percentiles(popularity),
        most_watched=_most_watched(items, top),
        popularity=_thinned(popularity),
        activity=_thinned(lengths),
        daily=sorted(tally.times.items()),
    )


def percentiles(values: NDArray[np.int64]) -> dict[int, int]:
    """Percent → the least value that this share of the values does not pass; empty for none."""
    if not len(values):
        return {}
    found = np.percentile(values, PERCENTILES, method="inverted_cdf")
    return {percent: int(value) for percent, value in zip(PERCENTILES, found, strict=True)}


def _tally(folder: Path, manifest: DatasetManifest) -> _Tally:
    tally = _Tally([np.zeros(0, np.int64)], np.zeros(manifest.items, np.int64), 0, Counter())
    first, last = manifest.first_time or 0, manifest.last_time or 0
    span = DAY * max(1, -(-(last - first) // (DAY * TIME_BINS)))
    for file in manifest.user_files:
        _add(tally, Histories.from_arrow(read_user_file(folder, file)), span if manifest.has_time else 0)
    return tally


def _add(tally: _Tally, histories: Histories, span: int) -> None:
    shown = histories.segment(schema.TRAIN).lengths
    held = [histories.segment(segment) for segment in (schema.VALID, schema.TEST)]
    tally.lengths.append(histories.lengths)
    for part in held:
        tally.held_counts += np.bincount(part.item, minlength=len(tally.held_counts))
    tally.strangers += int(((shown == 0) & (histories.lengths > 0)).sum())
    if span:
        starts, counts = np.unique(histories.time // span * span, return_counts=True)
        tally.times.update(dict(zip(starts.tolist(), counts.tolist(), strict=True)))


def _most_watched(items: pa.Table, top: int) -> list[Watched]:
    keys = [(schema.COUNT, "descending"), (schema.ITEM, "ascending")]
    rows = items.take(pc.select_k_unstable(items, min(top, len(items)), keys)).to_pylist()
    return [Watched(row[schema.ITEM_ID], row[schema.TITLE], row[schema.COUNT]) for row in rows if row[schema.COUNT]]


def _thinned(values: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(rank from 1, value) at ranks spread evenly on a logarithmic scale."""
    if not len(values):
        return []
    ranks = np.unique(np.geomspace(1, len(values), CURVE_POINTS).astype(np.int64))
    return [(int(rank), int(values[rank - 1])) for rank in ranks]


def _span(first: int | None, last: int | None) -> str:
    if first is None or last is None:
        return "no times"
    return f"{_day(first)} to {_day(last)}"


def _day(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%d")


def _percentiles(values: dict[int, int]) -> str:
    wanted = {"median": 50, "90%": 90, "99%": 99, "most": 100}
    return ", ".join(f"{name} {values[percent]:,}" for name, percent in wanted.items()) if values else "none"
