"""What a source is: its event files with their layouts, and its catalogue."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa

from recsys.data.sources.files import File


class Columns(NamedTuple):
    """Which column plays which part; an absent one is None."""

    user: str
    item: str
    rating: str | None = None
    time: str | None = None
    position: str | None = None

    def named(self) -> list[str]:
        """The columns that are there, in the order of the parts."""
        return [name for name in self if name is not None]


@dataclass(frozen=True)
class Delimited:
    """Lines of fields. `skip` bytes (a header, a byte order mark) come before the line numbered `first_line`."""

    delimiter: str
    names: tuple[str, ...]
    columns: Columns
    quoted: bool = False
    encoding: str = "utf-8"
    skip: int = 0
    first_line: int = 1


@dataclass(frozen=True)
class Adjacency:
    """Lines of `user item item ...`, separated by blanks."""


@dataclass(frozen=True)
class Parquet:
    """Typed columns, read by row groups."""

    columns: Columns


Layout = Delimited | Adjacency | Parquet


@dataclass(frozen=True)
class EventFile:
    """One file of events. `role`: index into schema.SEGMENTS, where a published split gives it."""

    file: File
    layout: Layout
    role: int = 0


def no_catalogue() -> pa.Table | None:
    """For sources that describe no items."""
    return None


@dataclass(frozen=True)
class Source:
    """What `recognise` found.

    ordered: without times, the order of the file is the order of the events; else they have none.
    catalogue_files: hashed into the manifest beside the event files. catalogue: reads them; see catalogue.py.
    negatives_file: items to rank the published test among; see recsys/data/negatives.py.
    """

    format: str
    events: tuple[EventFile, ...]
    has_rating: bool
    has_time: bool
    ordered: bool = False
    given: bool = False
    catalogue_files: tuple[File, ...] = ()
    catalogue: Callable[[], pa.Table | None] = field(default=no_catalogue)
    negatives_file: File | None = None

    @property
    def files(self) -> tuple[File, ...]:
        """All files that went in, in the order of the manifest: events, then what is read beside them."""
        return (*(event_file.file for event_file in self.events), *self.other_files)

    @property
    def other_files(self) -> tuple[File, ...]:
        """Files that hold no events: catalogues, then negatives."""
        return self.catalogue_files if self.negatives_file is None else (*self.catalogue_files, self.negatives_file)

    @property
    def has_valid(self) -> bool:
        """Whether the published split has a validation set of its own."""
        return any(event_file.role == 1 for event_file in self.events)


class Parsed(NamedTuple):
    """What one range of a file holds. rows = events + rejects: none is lost silently."""

    events: pa.Table
    rejects: pa.Table
