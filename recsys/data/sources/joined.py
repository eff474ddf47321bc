"""Sources of different formats as one: a MovieLens folder and the events that came after it."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pyarrow as pa

from recsys.config import DataConfig
from recsys.data.sources.base import Source
from recsys.errors import ConfigError, DataError


def joined(parts: Sequence[Source], config: DataConfig) -> Source:
    """The events of all parts, in their order. Ids are strings: one that two parts know is the same user or item.

    Where two catalogues describe an item, the earlier part's row stands. Raises DataError where parts are not alike, and
    ConfigError where a published split leaves no place for the events of another part.
    """
    if len(parts) == 1:
        return parts[0]
    for part in parts[1:]:
        _alike(parts[0], part)
    _no_given_split(parts, config)
    numbered = [_numbered(part, number) for number, part in enumerate(parts)]
    return Source(
        format=" and ".join(dict.fromkeys(part.format for part in parts)),
        events=tuple(event_file for part in numbered for event_file in part.events),
        has_rating=parts[0].has_rating,
        has_time=parts[0].has_time,
        ordered=parts[0].ordered,
        catalogue_files=tuple(file for part in numbered for file in part.catalogue_files),
        catalogue=partial(_catalogues, numbered),
    )


def _alike(first: Source, other: Source) -> None:
    for part, has, too in (("rating", first.has_rating, other.has_rating), ("time", first.has_time, other.has_time)):
        if has != too:
            having, lacking = (first, other) if has else (other, first)
            raise DataError(
                f"{_name(lacking)}: no {part}s, which {_name(having)} has. Sources prepared together must be alike: "
                f"add a column of {part}s, or prepare it on its own."
            )
    sequences = [part for part in (first, other) if part.format == "sequence"]
    if sequences or (not first.has_time and first.ordered != other.ordered):
        told = sequences[0] if sequences else first
        raise DataError(
            f"{_name(told)}: its events have an order but no times, so none of another source has a place among them. "
            f"Give both a column of times, or write them into one file."
        )


def _no_given_split(parts: Sequence[Source], config: DataConfig) -> None:
    published = [part for part in parts if part.given]
    if published and config.split in ("auto", "given"):
        raise ConfigError(
            f"{_name(published[0])}: brings a split of its own, in which events of another source have no place. "
            f"Prepare it with another split first: --set data.split=leave_last_out"
        )


def _name(part: Source) -> str:
    return part.events[0].file.name


def _numbered(part: Source, number: int) -> Source:
    events = (replace(event_file, file=replace(event_file.file, part=number)) for event_file in part.events)
    catalogues = (replace(file, part=number) for file in part.catalogue_files)
    return replace(part, events=tuple(events), catalogue_files=tuple(catalogues), negatives_file=None)


def _catalogues(parts: Sequence[Source]) -> pa.Table | None:
    """The catalogues of all parts below one another; columns that one of them lacks are null there."""
    read = [(part, table) for part in parts if (table := part.catalogue()) is not None]
    try:
        return pa.concat_tables([table for _, table in read], promote_options="default") if read else None
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        named = " and ".join(part.catalogue_files[0].name for part, _ in read)
        raise DataError(f"{named}: a column of both has different types ({error}). Rename it in one of them.") from None
