"""Ranges of the sources to staged events: parsed, or read back where an earlier dataset kept them."""

import logging
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cluster import prepare_steps as steps
from cluster.prepare_steps import Job
from recsys.config import DataConfig
from recsys.data import parsed as kept
from recsys.data import staging
from recsys.data.folder import stage_rejects
from recsys.data.forget import Forgotten, LeftOut, leave_out, met_nobody
from recsys.data.sources.base import Source
from recsys.data.sources.parse import Range, parse_range
from recsys.data.sources.scan import Scan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tally:
    """What became of all rows when they were parsed: kept = rows_in - rejects - dropped."""

    rows_in: int
    kept: int
    rejects: dict[str, int]
    dropped: dict[str, int]


@dataclass(frozen=True)
class Work:
    """What every range's task is told. keep, read_back: folders of kept ranges to write and to read, if any."""

    staging: Path
    config: DataConfig
    shards: int
    forgotten: Forgotten | None
    keep: Path | None
    read_back: Path | None


class Entry(NamedTuple):
    """A range, and the folder of its file among what is kept."""

    part: Range
    key: str


class Outcome(NamedTuple):
    """What became of a range. met: hashes of forgotten users who had rows in it."""

    dealt: staging.Dealt
    rejects: dict[str, int]
    forgotten: int
    met: frozenset[str]


def parse(job: Job, scans: list[Scan], shards: int) -> tuple[int, Tally]:
    """Stage the events of every range, in shards. Returns the number of ranges, and the tally."""
    entries, total = _entries(job.source, scans), Counter[str]()
    keep = job.folder / kept.FOLDER if job.keep_parsed else None
    work = Work(job.staging, job.config, shards, job.forgotten, keep, job.read_back)
    back = {entry: job.read_back is not None and kept.has(job.read_back / entry.key, entry.part) for entry in entries}
    rejects, met = Counter[str](), set[str]()
    for stage, known in (("read back", True), ("parse", False)):
        wanted = [entry for entry in entries if back[entry] == known]
        for _, outcome in steps.stream(job, stage, partial(_deal, work), wanted) if wanted else ():
            rejects.update(outcome.rejects)
            met |= outcome.met
            dealt = outcome.dealt
            total.update(
                kept=dealt.events, rating=dealt.dropped_rating, sample=dealt.dropped_sample, forgotten=outcome.forgotten
            )
    staging.drop_files(job.staging, "raw-*")
    _tell_unmet(job, met)
    dropped = {name: total[name] for name in ("rating", "sample", *(["forgotten"] if job.forgotten else []))}
    rows_in = total["kept"] + sum(dropped.values()) + rejects.total()
    return len(entries), Tally(rows_in, total["kept"], dict(sorted(rejects.items())), dropped)


def _entries(source: Source, scans: list[Scan]) -> list[Entry]:
    files = list(zip(source.events, scans, strict=True))
    parts = [(file, found.path, cut, kept.key(file, found)) for file, found in files for cut in found.cuts]
    return [Entry(Range(index, file, path, cut), key) for index, (file, path, cut, key) in enumerate(parts)]


def _tell_unmet(job: Job, met: set[str]) -> None:
    unmet = met_nobody(job.forget, job.forgotten, met)
    if unmet:
        log.warning(
            "%d of %d users to forget have no row in the sources. Are their ids written as they are there?",
            unmet,
            len(set(job.forget)),
        )


def _deal(work: Work, entry: Entry) -> Outcome:
    part, _ = entry
    left, before = _left(work, entry)
    rows = left.rows + before
    if work.keep is not None:
        kept.write(work.keep / entry.key, part, left.parsed, rows)
    rejects = stage_rejects(work.staging, part.index, left.parsed.rejects)
    return Outcome(staging.deal(left.parsed, work.config, work.shards, work.staging, part.index), rejects, rows, left.met)


def _left(work: Work, entry: Entry) -> tuple[LeftOut, int]:
    """What forgetting leaves of a range, and how many rows an earlier dataset left out of it already."""
    found = kept.read(work.read_back / entry.key, entry.part) if work.read_back is not None else None
    parsed, before = found if found is not None else (parse_range(entry.part), 0)
    return leave_out(parsed, work.forgotten), before
