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
from cluster.prepare_parse import Tally, parse
from cluster.prepare_shards import Shards, gather_shards, plan_split
from cluster.prepare_steps import Job, Progress
from recsys.config import Config, DataConfig
from recsys.data import parsed, schema, staging
from recsys.data.dataset import DatasetManifest, SourceFile, file_sha256, read_manifest, verify
from recsys.data.folder import building, check_destination, check_rejects, collect_rejects, write_manifest
from recsys.data.forget import Forgotten, nobody
from recsys.data.items import join_catalogue, write_items
from recsys.data.negatives import parse_ncf, write_negatives
from recsys.data.sources import recognise
from recsys.data.sources.base import EventFile, Source
from recsys.data.sources.scan import Scan, fingerprint, scan
from recsys.data.userfiles import SplitPlan, Written, write_users
from recsys.errors import ConfigError, DataError, RecsysError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Earlier:
    """A dataset that another one is made of."""

    folder: Path
    manifest: DatasetManifest


def prepare(
    sources: Sequence[str],
    dataset: Path,
    config: Config,
    progress: Progress | None = None,
    *,
    forget: Sequence[str] = (),
    keep_parsed: bool = False,
) -> DatasetManifest:
    """Make a dataset folder of raw files; Ray is connected already. See docs/architecture.md for its layout.

    An existing dataset of the same sources and settings is kept as it is; another one is replaced. `progress(stage, done,
    total)` is told after each range or shard. forget: ids of users to leave out. keep_parsed: keep what was parsed in the
    folder, for datasets made of this one. Raises DataError for sources that cannot be used, ConfigError for settings that
    do not fit them.
    """
    source = recognised(sources, dataset, config.data)
    return make(source, dataset, config.data, progress, forget=forget, keep_parsed=keep_parsed)


def recognised(sources: Sequence[str], dataset: Path, config: DataConfig) -> Source:
    """What the raw files are, without Ray. Raises what `prepare` raises before it reads them whole."""
    check_destination(dataset)
    return recognise(sources, config)


def make(
    source: Source,
    dataset: Path,
    config: DataConfig,
    progress: Progress | None,
    *,
    forget: Sequence[str],
    keep_parsed: bool,
    earlier: Earlier | None = None,
) -> DatasetManifest:
    """A dataset folder of a source that is recognised; of the files of an `earlier` dataset too, if they are as they were."""
    dataset = dataset.absolute()
    split = choose_split(source, config)
    if split != "given":
        # negatives are published for a test that is not made then
        source = replace(source, events=tuple(replace(file, role=0) for file in source.events), negatives_file=None)
    before = earlier.manifest.forgotten if earlier else None
    forget = [user_id for user_id in forget if before is None or before.hash(user_id) not in before.known]
    forgotten = _forgotten(forget, before, dataset)
    read_back = earlier.folder.absolute() / parsed.FOLDER if earlier else None
    with building(dataset) as folder:
        job = Job(source, config, split, folder, progress, forgotten, forget, keep_parsed, read_back)
        scans = steps.in_order(job, "scan", partial(_scan, job.staging, config.range_bytes), list(enumerate(source.events)))
        files = _source_files(source, scans)
        if earlier is not None:
            check_recorded(earlier, files)
        existing = _unchanged(dataset, files, job)
        if existing is None:
            write_manifest(folder, _build(job, dataset, scans, files))
    return existing or read_manifest(dataset)


def check_recorded(earlier: Earlier, files: Sequence[SourceFile]) -> None:
    """Raises DataError unless every file the earlier dataset was made of is among these, as it was then."""
    found = {file.path: file for file in files}
    for recorded in earlier.manifest.sources:
        now = found.get(recorded.path)
        if now is None:
            raise DataError(
                f"{recorded.path}: {earlier.folder} was made of it, but it is not recognised as it was then. "
                f"Prepare all sources anew: recsys prepare SOURCE... DATASET"
            )
        if (now.size, now.sha256) != (recorded.size, recorded.sha256):
            how = f"{now.size:,} bytes, then {recorded.size:,}" if now.size != recorded.size else "SHA-256 differs"
            raise DataError(
                f"{recorded.path}: changed since {earlier.folder} was made of it ({how}). Restore it and give what is new "
                f"in a file of its own, or prepare all sources anew: recsys prepare SOURCE... DATASET"
            )


def _forgotten(forget: Sequence[str], before: Forgotten | None, dataset: Path) -> Forgotten | None:
    """Everybody to leave out, hashed with the salt that is there already, so that the same users give the same bytes."""
    if not forget:
        return before
    if before is None:
        there = _manifest_there(dataset)
        before = Forgotten(salt=there.forgotten.salt, hashes=()) if there is not None and there.forgotten else nobody()
    return before.also(forget)


def _manifest_there(dataset: Path) -> DatasetManifest | None:
    try:
        return read_manifest(dataset)
    except DataError:
        return None


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
    shards = staging.choose_shards(job.config, sum(found.rows for found in scans))
    ranges, tally = parse(job, scans, shards)
    check_rejects(dataset, job.staging, tally.rows_in, tally.rejects, job.config.max_bad_rows)
    if not tally.kept:
        raise DataError(_nothing_left(job.source, tally))
    items = _number_items(job, ranges)
    gathered = gather_shards(job, ranges, shards, len(items))
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
    found += [(file, *fingerprint(file)) for file in source.other_files]
    return tuple(SourceFile(path=file.name, size=size, sha256=sha256, part=file.part) for file, size, sha256 in found)


def _unchanged(dataset: Path, files: tuple[SourceFile, ...], job: Job) -> DatasetManifest | None:
    """The dataset that is there, if it was made of the same and is whole."""
    manifest = _manifest_there(dataset)
    if manifest is None or (job.keep_parsed and not (dataset / parsed.FOLDER).is_dir()):
        return None
    if (manifest.sources, manifest.config, manifest.forgotten) != (files, _told(job.config), job.forgotten):
        return None
    try:
        verify(dataset, manifest)
    except DataError:
        return None
    return manifest


def _told(config: DataConfig) -> dict[str, object]:
    return {"data": config.model_dump(mode="json")}


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
    negatives = job.source.negatives_file
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
        forgotten=job.forgotten,
        negatives=None if negatives is None else write_negatives(job.folder, parse_ncf(negatives), user_files),
    )


def _summed(parts: Iterable[dict[str, int]]) -> dict[str, int]:
    total = Counter[str]()
    for part in parts:
        total.update(part)
    return dict(total)
