"""Parsed ranges kept in a dataset folder, so that a source which has not changed need not be parsed again.

    parsed/<key>/<first>.events.<hash>.arrow    events of the range that begins at byte (or row group) `first`
    parsed/<key>/<first>.rejects.<hash>.arrow   its rejected rows

The key is a hash of all that decides what parsing gives: the file's content and name, its layout, its cuts, the release.
A piece carries a hash of its own bytes in its name and is passed over where they differ. The folder may be removed.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from recsys import __version__
from recsys.data import schema
from recsys.data.sources.base import Adjacency, EventFile, Parsed
from recsys.data.sources.parse import Range
from recsys.data.sources.scan import Scan
from recsys.data.sources.text import ROW_BITS

FOLDER = "parsed"
LEFT_OUT = b"left_out"


def key(event_file: EventFile, scanned: Scan) -> str:
    """Names what parsing a file gives."""
    told = (__version__, event_file.file.name, event_file.layout, scanned.sha256, scanned.cuts)
    return hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()


def has(folder: Path, part: Range) -> bool:
    """Whether a range is kept in the folder of its file's key."""
    return all(_piece(folder, part, kind) is not None for kind in ("events", "rejects"))


def write(folder: Path, part: Range, parsed: Parsed, left_out: int) -> None:
    """Keep a range. left_out: rows of forgotten users, which are no longer among the events."""
    folder.mkdir(parents=True, exist_ok=True)
    events = parsed.events.drop_columns([schema.ROLE])
    if not _has_positions(part.event_file):
        events = _moved(events, -(part.index << ROW_BITS))
    for kind, table in (("events", events.replace_schema_metadata({LEFT_OUT: str(left_out)})), ("rejects", parsed.rejects)):
        data = _packed(table)
        (folder / f"{_stem(part, kind)}.{_hash(data)}.arrow").write_bytes(data)


def read(folder: Path, part: Range) -> tuple[Parsed, int] | None:
    """A range as it was kept, and the rows left out of it then; None if it is gone or not as it was written."""
    tables = [_unpacked(_piece(folder, part, kind)) for kind in ("events", "rejects")]
    events, rejects = tables
    if events is None or rejects is None:
        return None
    left_out = int(events.schema.metadata[LEFT_OUT])
    if not _has_positions(part.event_file):
        events = _moved(events, part.index << ROW_BITS)
    role = pa.array(np.full(len(events), part.event_file.role, np.int8))
    return Parsed(events.append_column(schema.ROLE, role).cast(schema.EVENTS), rejects), left_out


def _has_positions(event_file: EventFile) -> bool:
    """Whether the order of events is a column of theirs, and not their place in the source."""
    return not isinstance(event_file.layout, Adjacency) and event_file.layout.columns.position is not None


def _moved(events: pa.Table, by: int) -> pa.Table:
    place = events.column_names.index(schema.ORDER)
    order = events.column(schema.ORDER).to_numpy() + np.int64(by)
    return events.set_column(place, schema.ORDER, pa.array(order))


def _stem(part: Range, kind: str) -> str:
    return f"{part.cut.first:012d}.{kind}"


def _piece(folder: Path, part: Range, kind: str) -> Path | None:
    found: Sequence[Path] = sorted(folder.glob(f"{_stem(part, kind)}.*.arrow"))
    return found[0] if found else None


def _packed(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    # one batch: how a table happens to be chunked must not show in the bytes
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(table.combine_chunks())
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _unpacked(path: Path | None) -> pa.Table | None:
    data = path.read_bytes() if path is not None else b""
    if path is None or _hash(data) != path.name.split(".")[2]:
        return None
    with pa.ipc.open_file(pa.BufferReader(data)) as reader:
        return None if schema.extension_column(reader.schema) else reader.read_all()


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
