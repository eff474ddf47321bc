"""Ranges of delimited text to events and rejects."""

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv as pv
from numpy.typing import NDArray

from recsys.data import schema
from recsys.data.sources.base import Delimited, Parsed
from recsys.data.sources.values import FIELDS, LINE_BREAK, Raw, check
from recsys.errors import DataError

ROW_BITS = 40
"""An event's place in the source is range << 40 | a number that grows along the range."""
OPEN_QUOTE = "a quote is never closed"


def parse_delimited(data: bytes, layout: Delimited, name: str, line: int, first_order: int, role: int) -> Parsed:
    """Events of whole lines. name, line: what rejects call the file and the first line.

    A line whose quote is never closed is rejected alone: read by the letter it would swallow all that follows.
    """
    data, delimiter = prepared(data, layout)
    parts: list[Parsed] = []
    start = 0
    while (broken := _open_quote(data, start, delimiter) if layout.quoted else None) is not None:
        parts.append(_parse(data[start:broken], layout, delimiter, name, line, first_order + start, role))
        line += int(len(_lines(data[start:broken])) - 1)
        end = broken + int(_lines(data[broken:])[0, 1])
        raw = data[broken:end].replace(delimiter.encode(), layout.delimiter.encode())
        parts.append(Parsed(schema.EVENTS.empty_table(), rejects_table(name, [line], [OPEN_QUOTE], [raw])))
        start, line = broken + _next_line(data[broken:]), line + 1
    parts.append(_parse(data[start:], layout, delimiter, name, line, first_order + start, role))
    return Parsed(*(pa.concat_tables(tables) for tables in zip(*parts, strict=True)))


def _parse(data: bytes, layout: Delimited, delimiter: str, name: str, line: int, first_order: int, role: int) -> Parsed:
    if not data.strip(b"\r\n"):
        return Parsed(schema.EVENTS.empty_table(), schema.REJECTS.empty_table())
    table, ragged = _read(data, layout, delimiter)
    good = np.delete(np.arange(len(table) + len(ragged)), ragged)
    raw = Raw(*(_column(table, column) for column in layout.columns))
    checked = check(raw, first_order + good, role, one_line=layout.quoted and b'"' in data)
    faults = {int(row): FIELDS for row in ragged}
    faults |= {int(good[row]): reason for row, reason in zip(checked.bad, checked.reasons, strict=True)}
    return Parsed(checked.events, _rejects(data, layout, delimiter, name, line, faults))


def prepared(data: bytes, layout: Delimited) -> tuple[bytes, str]:
    """UTF-8 text with a delimiter of one byte, as Arrow's reader wants it, and that delimiter."""
    if layout.encoding != "utf-8":
        data = data.decode(layout.encoding).encode()
    if len(layout.delimiter) == 1:
        return data, layout.delimiter
    delimiter = _unused_byte(data)
    return data.replace(layout.delimiter.encode(), delimiter.encode()), delimiter


def _unused_byte(data: bytes) -> str:
    for code in (*range(0x1F, 0, -1), 0x7F):
        if code not in (0x0A, 0x0D) and bytes([code]) not in data:
            return chr(code)
    raise DataError("every control character occurs in this text: it is not a ratings file.")


def _read(data: bytes, layout: Delimited, delimiter: str) -> tuple[pa.Table, NDArray[np.int64]]:
    """The wanted columns as bytes, and the numbers (among records that are not blank) of ragged ones."""
    ragged: list[int] = []

    def skip(row: pv.InvalidRow) -> str:
        ragged.append(row.number - 1)
        return "skip"

    wanted = layout.columns.named()
    carried = not is_utf8(data)  # Arrow reports a ragged row as text, and fails if it is none
    text = data.decode("latin-1").encode() if carried else data
    table = pv.read_csv(
        pa.BufferReader(text),
        pv.ReadOptions(use_threads=False, block_size=len(text) + 1, column_names=list(layout.names)),
        pv.ParseOptions(
            delimiter=delimiter,
            quote_char='"' if layout.quoted else False,
            newlines_in_values=layout.quoted,
            invalid_row_handler=skip,
        ),
        pv.ConvertOptions(
            include_columns=wanted,
            column_types=dict.fromkeys(wanted, pa.binary()),
            check_utf8=False,
            strings_can_be_null=False,
        ),
    )
    return (_carried_back(table) if carried else table), np.array(ragged, np.int64)


def is_utf8(data: bytes) -> bool:
    """Whether the bytes are text."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _carried_back(table: pa.Table) -> pa.Table:
    columns = [[value.decode().encode("latin-1") for value in column.to_pylist()] for column in table.columns]
    return pa.table([pa.array(column, pa.binary()) for column in columns], names=table.column_names)


def _column(table: pa.Table, name: str | None) -> pa.Array | None:
    if name is None:
        return None
    column = table.column(name).combine_chunks()
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _rejects(data: bytes, layout: Delimited, delimiter: str, name: str, line: int, faults: dict[int, str]) -> pa.Table:
    if not faults:
        return schema.REJECTS.empty_table()
    bounds, lines = record_bounds(data, delimiter if layout.quoted else None)
    found: list[tuple[int, str, bytes]] = []
    for row in sorted(faults):
        first, last = bounds[row]
        record = data[first:last].replace(delimiter.encode(), layout.delimiter.encode())
        # Such a record of several lines is lines that stray quotes swallowed: each of them counts.
        raw = record.splitlines() if faults[row] in (FIELDS, LINE_BREAK) else [record]
        found += [(line + int(lines[row]) + below, faults[row], text) for below, text in enumerate(raw)]
    positions, reasons, texts = zip(*found, strict=True)
    return rejects_table(name, positions, reasons, texts)


def rejects_table(name: str, positions: Sequence[int], reasons: Sequence[str], raw: Sequence[bytes]) -> pa.Table:
    """Rejected rows (schema.REJECTS); bytes that are not UTF-8 are shown escaped."""
    text = [line.decode(errors="backslashreplace") for line in raw]
    return pa.table([[name] * len(text), positions, reasons, text], schema=schema.REJECTS)


def record_bounds(data: bytes, delimiter: str | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[R, 2] first and last byte of each record that is not blank, and [R] the lines before it.

    delimiter: of quoted text, where a record may run over several lines; None: every line is a record.
    """
    quoted = delimiter is not None and b'"' in data
    bounds = _quoted_records(data, delimiter or "") if quoted else _lines(data)
    bounds = bounds[bounds[:, 1] > bounds[:, 0]]
    return bounds, np.searchsorted(_lines(data)[:, 1], bounds[:, 0])


def _lines(data: bytes) -> NDArray[np.int64]:
    """[L, 2] bounds of lines that end in newline, carriage return, or both."""
    text = np.frombuffer(data, np.uint8)
    newline, cr = text == 0x0A, text == 0x0D
    before_newline = cr & np.append(newline[1:], False)
    ends = np.flatnonzero((newline | cr) & ~before_newline)
    starts = np.concatenate([[0], ends + 1])
    lasts = np.append(ends, len(text))
    paired = np.append(before_newline[np.maximum(ends - 1, 0)] & (ends > 0), False)
    return np.stack([starts, lasts - paired], axis=1)


def _quoted_records(data: bytes, delimiter: str) -> NDArray[np.int64]:
    record = _record(delimiter, rb"(?:\"[^%b\r\n]*|\Z)")
    bounds, position = [], 0
    while position < len(data):
        end = record.match(data, position).end()  # type: ignore[union-attr]  # matches the empty string too
        bounds.append((position, end))
        position = end + _next_line(data[end : end + 2])
    return np.array(bounds, np.int64).reshape(-1, 2)


def _open_quote(data: bytes, start: int, delimiter: str) -> int | None:
    """Where the last record from `start` on begins, if a quote in it is never closed."""
    if data.count(b'"', start) % 2 == 0:
        return None
    records = _quoted_records(data[start:], delimiter)
    last = start + int(records[-1, 0])
    return None if _record(delimiter, rb"\"[^%b\r\n]*").fullmatch(data[last:].rstrip(b"\r\n")) else last


def _record(delimiter: str, closing: bytes) -> re.Pattern[bytes]:
    mark = re.escape(delimiter.encode())
    inside = rb'"(?:[^"]++|"")*+' + closing % mark  # possessive: two quotes inside are one, never an end
    field = rb"(?:" + inside + rb'|[^%b\r\n"][^%b\r\n]*|)' % (mark, mark)
    return re.compile(field + rb"(?:" + mark + field + rb")*")


def _next_line(data: bytes) -> int:
    """Bytes up to the start of the second line."""
    first = _lines(data)[0, 1]
    return int(first) + (2 if data[first : first + 2] == b"\r\n" else 1)
