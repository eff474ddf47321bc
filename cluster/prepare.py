"""Raw files to a dataset folder, on Ray Data: scan, parse, number the items, gather by shard, split, write.

Each step maps a plain function of `recsys.data` over ranges of files or over shards of users; what is large goes through
files in a staging folder beside the result, so that memory stays flat however many rows there are.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cluster import prepare_steps as steps
from cluster.prepare_shards import Shards, gather_shards, plan_split
from cluster.prepare_steps import Job, Progress
from recsys.config import Config, DataConfig
from recsys.data import schema, staging
from recsys.data.dataset import DatasetManifest, SourceFile, file_sha256, read_manifest, verify
from recsys.data.folder import building, check_destination, check_rejects, collect_rejects, stage_rejects, write_manifest
from recsys.data.items import join_catalogue, write_items
from recsys.data.sources import recognise
from recsys.data.sources.base import EventFile, Source
from recsys.data.sources.parse import Range, parse_range
from recsys.data.sources.scan import Scan, fingerprint, scan
from recsys.data.userfiles import SplitPlan, Written, write_users
from recsys.errors import ConfigError, DataError, RecsysError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tally:
    """What became of all rows when they were parsed: kept = rows_in - rejects - dropped."""

    rows_in: int
    kept: int
    rejects: dict[str, int]
    dropped: dict[str, int]


def prepare(sources: Sequence[str], dataset: Path, config: Config, progress: Progress | None = None) -> DatasetManifest:
    """Make a dataset folder of raw files; Ray is connected already. See docs/architecture.md for its layout.

    An existing dataset of the same sources and settings is kept as it is; another one is replaced. `progress(stage, done,
    total)` is told after each range or shard. Raises DataError for sources that cannot be used, ConfigError for settings
    that do not fit them.
    """
    check_destination(dataset)
    dataset = dataset.absolute()
    source = recognise(sources, config.data)
    split = choose_split(source, config.data)
    if split != "given":
        source = replace(source, events=tuple(replace(file, role=0) for file in source.events))
    with building(dataset) as folder:
        job = Job(source, config.data, split, folder, progress)
        scans = steps.in_order(
            job, "scan", partial(_scan, job.staging, config.data.range_bytes), list(enumerate(source.events))
        )
        files = _source_files(source, scans)
        existing = _unchanged(dataset, files, config.data)
        if existing is None:
            write_manifest(folder, _build(job, dataset, scans, files))
    return existing or read_manifest(dataset)


def choose_split(source: Source, config: DataConfig) -> str:
    """The split to make. Raises ConfigError if the source cannot be split so."""
    if config.split == "auto":
        return "given" if source.given else "leave_last_out"
    if config.split == "given" and not source.given:
        raise ConfigError(f"data.split = given: {source.format} brings no split of its own. Choose another, or set data.fold.")
    if config.split == "time" and not source.has_time:
        raise ConfigError(
            f"data.split = time: {source.events[0].file.name} has no times. Choose leave_last_out, users or items."
        )
    if config.split in ("time", "users", "items") and config.valid_fraction + config.test_fraction >= 1:
        raise ConfigError("data.valid_fraction and data.test_fraction together must leave something to train on.")
    return config.split


def _build(job: Job, dataset: Path, scans: list[Scan], files: tuple[SourceFile, ...]) -> DatasetManifest:
    ranges = _ranges(job.source, scans)
    shards = staging.choose_shards(job.config, sum(found.rows for found in scans))
    tally = _parse(job, ranges, shards)
    check_rejects(dataset, job.staging, tally.rows_in, tally.rejects, job.config.max_bad_rows)
    if not tally.kept:
        raise DataError(_nothing_left(job.source, tally))
    items = _number_items(job, len(ranges))
    gathered = gather_shards(job, len(ranges), shards, len(items))
    if gathered.events != tally.kept:
        raise RecsysError(f"{tally.kept:,} events were staged but {gathered.events:,} read back. Check the disk and run again.")
    items = items.filter(pa.array(gathered.alive))
    written = _write(job, gathered, plan_split(job, items, gathered), items)
    collect_rejects(job.staging, job.folder / schema.REJECTS_FOLDER)
    return _manifest(job, written, len(items), tally, files)


def _nothing_left(source: Source, tally: Tally) -> str:
    gone = {f"dropped by {reason}": rows for reason, rows in tally.dropped.items()} | tally.rejects
    told = ", ".join(f"{rows:,} {reason}" for reason, rows in gone.items() if rows)
    where = source.events[0].file.name
    return f"{where}: no events are left of {tally.rows_in:,} rows ({told}). Look at data.min_rating and data.sample."


def _scan(folder: Path, range_bytes: int, numbered: tuple[int, EventFile]) -> Scan:
    number, event_file = numbered
    return scan(event_file, range_bytes, folder / f"raw-{number:05d}")


def _source_files(source: Source, scans: list[Scan]) -> tuple[SourceFile, ...]:
    found = [(event_file.file, scanned.size, scanned.sha256) for event_file, scanned in zip(source.events, scans, strict=True)]
    found += [(file, *fingerprint(file)) for file in source.catalogue_files]
    return tuple(SourceFile(path=file.name, size=size, sha256=sha256) for file, size, sha256 in found)


def _unchanged(dataset: Path, files: tuple[SourceFile, ...], config: DataConfig) -> DatasetManifest | None:
    """The dataset that is there, if it was made of the same and is whole."""
    try:
        manifest = read_manifest(dataset)
        verify(dataset, manifest)
    except DataError:
        return None
    return manifest if manifest.sources == files and manifest.config == _told(config) else None


def _told(config: DataConfig) -> dict[str, object]:
    return {"data": config.model_dump(mode="json")}


def _ranges(source: Source, scans: list[Scan]) -> list[Range]:
    parts = [(file, found.path, cut) for file, found in zip(source.events, scans, strict=True) for cut in found.cuts]
    return [Range(index, *part) for index, part in enumerate(parts)]


def _parse(job: Job, ranges: list[Range], shards: int) -> Tally:
    kept, rejects, dropped = 0, Counter[str](), Counter[str]()
    for _, (dealt, bad) in steps.stream(job, "parse", partial(_parse_range, job.staging, shards, job.config), ranges):
        rejects.update(bad)
        dropped.update(rating=dealt.dropped_rating, sample=dealt.dropped_sample)
        kept += dealt.events
    staging.drop_files(job.staging, "raw-*")
    return Tally(kept + dropped.total() + rejects.total(), kept, dict(sorted(rejects.items())), dict(dropped))


def _parse_range(folder: Path, shards: int, config: DataConfig, part: Range) -> tuple[staging.Dealt, dict[str, int]]:
    parsed = parse_range(part)
    bad = stage_rejects(folder, part.index, parsed.rejects)
    return staging.deal(parsed, config, shards, folder, part.index), bad


def _number_items(job: Job, ranges: int) -> pa.Table:
    """The catalogue of the dataset; leaves the numbers of each range's items in the staging folder."""
    seen = pa.array([], pa.string())
    for index in range(ranges):
        seen = pc.unique(pa.concat_arrays([seen, staging.range_items(job.staging, index)]))
    catalogue = job.source.catalogue()
    if catalogue is not None and not pc.any(pc.is_in(seen, catalogue.column(schema.ITEM_ID).combine_chunks())).as_py():
        told = job.source.catalogue_files[0].name
        log.warning("%s: describes none of the items of the events, so they have no titles. Are its ids the same ids?", told)
    items = join_catalogue(seen, catalogue)
    staging.write_codes(job.staging, ranges, items.column(schema.ITEM_ID).combine_chunks())
    return items


def _write(job: Job, shards: Shards, plan: SplitPlan, items: pa.Table) -> list[Written]:
    """Write users/ and items.parquet."""
    users = job.folder / schema.USERS_FOLDER
    users.mkdir()
    first_users = np.concatenate([[0], np.cumsum(shards.users)])
    work = partial(_write_shard, shards, plan, len(items), first_users, users)
    counts, written = np.zeros(len(items), np.int64), {}
    for shard, result in steps.stream(job, "write", work, shards.numbers):
        counts += result.train_counts
        written[shard] = replace(result, train_counts=counts[:0])  # summed; as large as the catalogue
    write_items(items, counts, job.folder / schema.ITEMS_FILE)
    return [written[shard] for shard in shards.numbers]


def _write_shard(shards: Shards, plan: SplitPlan, items: int, first: NDArray[np.int64], folder: Path, shard: int) -> Written:
    return write_users(shards.read(shard), shard, plan, items, int(first[shard]), folder)


def _manifest(job: Job, written: list[Written], items: int, tally: Tally, files: tuple[SourceFile, ...]) -> DatasetManifest:
    user_files = sorted((file for part in written for file in part.files), key=lambda file: file.name)
    events = sum(file.events for file in user_files)
    segments = _summed(part.segments for part in written)
    repeats = sum(part.dropped_repeats for part in written)
    core = tally.kept - events - repeats
    if core and job.config.core <= 1:
        raise RecsysError(f"{core:,} events were lost between gathering and writing. Check the disk and run again.")
    filled, timed = [part for part in written if part.files], job.source.has_time
    path = job.folder / schema.ITEMS_FILE
    return DatasetManifest(
        sources=files,
        config=_told(job.config),
        split=job.split,
        repeats=job.config.repeats,
        has_rating=job.source.has_rating,
        has_time=timed,
        rows_in=tally.rows_in,
        users=sum(file.rows for file in user_files),
        items=items,
        events=events,
        segments=segments,
        dropped={**tally.dropped, "core": core, "repeats": repeats},
        rejects=tally.rejects,
        first_time=min(part.first_time for part in filled) if timed else None,
        last_time=max(part.last_time for part in filled) if timed else None,
        mean_rating=sum(part.rating_sum for part in written) / max(segments[schema.TRAIN], 1),
        items_sha256=file_sha256(path),
        items_size=path.stat().st_size,
        user_files=tuple(user_files),
    )


def _summed(parts: Iterable[dict[str, int]]) -> dict[str, int]:
    total = Counter[str]()
    for part in parts:
        total.update(part)
    return dict(total)
