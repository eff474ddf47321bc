"""One streaming pass over a raw file: its SHA-256, where to cut it into ranges, and its content unpacked if need be."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.data.sources.base import Adjacency, Delimited, EventFile
from recsys.data.sources.files import File, locate, opened, read_full, said_plainly, unpacked
from recsys.errors import DataError

CHUNK = 1 << 22
STRAY_QUOTE = 1 << 20
"""A quoted field longer than this is taken for a stray quote, so that one cannot glue a whole file together."""


class Cut(NamedTuple):
    """A range: bytes [first, last) whose first line is numbered `line`; of Parquet, row groups and a row number."""

    first: int
    last: int
    line: int


class Scan(NamedTuple):
    """What a pass found. `path`: where the content lies, plain. `rows`: about how many, to choose the number of shards."""

    path: str
    size: int
    sha256: str
    cuts: tuple[Cut, ...]
    rows: int


def scan(event_file: EventFile, range_bytes: int, staged: Path) -> Scan:
    """Hash a file of events and cut it; `staged` takes the content if the file is packed. Raises DataError if broken."""
    file, layout = event_file.file, event_file.layout
    cutter = None
    if isinstance(layout, Delimited):
        cutter = Cutter(range_bytes, layout.skip, layout.first_line, quoted=layout.quoted)
    elif isinstance(layout, Adjacency):
        cutter = Cutter(range_bytes, 0, 1, quoted=False, row_mark=b" ")
    size, sha256 = _stream(file, cutter, staged)
    path = str(staged) if file.compressed else file.path
    cuts, rows = (cutter.cuts(), cutter.rows) if cutter else _row_groups(file, path, range_bytes)
    if not cuts:
        raise DataError(f"{file.name}: no rows in it. Remove it or fetch it again.")
    return Scan(path, size, sha256, tuple(cuts), rows)


def fingerprint(file: File) -> tuple[int, str]:
    """Size and SHA-256 of the stored bytes of a file that is not cut."""
    return _stream(file, None, None)


class Cutter:
    """Finds where to cut a text: at the first line's end after each `size` bytes that is not inside quotes."""

    def __init__(self, size: int, skip: int, first_line: int, quoted: bool, row_mark: bytes = b"\n") -> None:
        self._size, self._quoted, self._row_mark = size, quoted, row_mark
        self._position, self.line, self._open = 0, 1, False
        self._starts, self._target = [(skip, first_line)], skip + size
        self.rows = 0

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes; a chunk never ends between carriage return and newline."""
        done = 0
        while (newline := chunk.find(b"\n", max(self._target - 1 - self._position, done))) >= 0:
            self._count(chunk[done : newline + 1])
            done = newline + 1
            self._cut_at(self._position + done)
        self._count(chunk[done:])
        self.rows += chunk.count(self._row_mark)
        self._position += len(chunk)

    def cuts(self) -> list[Cut]:
        """The ranges of all that was fed."""
        ends = [start for start, _ in self._starts[1:]] + [self._position]
        return [Cut(start, end, line) for (start, line), end in zip(self._starts, ends, strict=True) if end > start]

    def _cut_at(self, position: int) -> None:
        if self._open and position < self._target + STRAY_QUOTE:
            return
        self._open = False
        self._starts.append((position, self.line))
        self._target = position + self._size

    def _count(self, text: bytes) -> None:
        self.line += text.count(b"\n") + text.count(b"\r") - text.count(b"\r\n")
        if self._quoted:
            self._open ^= bool(text.count(b'"') & 1)


class _Hashing:
    """A stream that hashes what is read through it."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw, self.sha256, self.size = raw, hashlib.sha256(), 0

    def read(self, size: int = -1) -> bytes:
        data = self._raw.read(size)
        self.sha256.update(data)
        self.size += len(data)
        return data


def _stream(file: File, cutter: Cutter | None, staged: Path | None) -> tuple[int, str]:
    keep = file.compressed and staged is not None
    with opened(file) as raw, staged.open("wb") if keep and staged else nullcontext() as copy:
        stored = _Hashing(raw)
        with _naming_the_line(file, cutter):
            for chunk in _chunks(unpacked(file, stored)):
                if cutter:
                    cutter.feed(chunk)
                if copy:
                    copy.write(chunk)
        while stored.read(CHUNK):
            pass  # what follows the compressed content belongs to the file's hash too
    if stored.size == 0:
        raise DataError(f"{file.name}: empty. Remove it or fetch it again.")
    return stored.size, stored.sha256.hexdigest()


@contextmanager
def _naming_the_line(file: File, cutter: Cutter | None) -> Iterator[None]:
    try:
        yield
    except EOFError as error:
        after = f" after line {cutter.line:,}" if cutter else ""
        raise DataError(f"{file.name}: cut or damaged{after} ({error}). Fetch it again.") from None


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := read_full(stream, CHUNK):
        while chunk.endswith(b"\r") and (more := stream.read(1)):
            chunk += more
        yield chunk


def _row_groups(file: File, path: str, range_bytes: int) -> tuple[list[Cut], int]:
    """Row groups gathered into ranges of about `range_bytes`, and the number of rows."""
    cuts: list[Cut] = []
    with said_plainly(file.name), open_parquet(file.name, path) as parquet:
        metadata = parquet.metadata
        first, row, size, start_row = 0, 0, 0, 0
        for group in range(metadata.num_row_groups):
            row += metadata.row_group(group).num_rows
            size += metadata.row_group(group).total_byte_size
            if size >= range_bytes or group + 1 == metadata.num_row_groups:
                cuts.append(Cut(first, group + 1, start_row + 1))
                first, size, start_row = group + 1, 0, row
    return (cuts if row else []), row


def open_parquet(name: str, path: str) -> pq.ParquetFile:
    """Open a Parquet file. Raises DataError naming it if its footer is cut or damaged."""
    filesystem, inner = locate(path)
    try:
        return pq.ParquetFile(filesystem.open_input_file(inner))
    except pa.ArrowInvalid as error:
        raise DataError(f"{name}: cut or damaged ({error}). Fetch it again.") from None
