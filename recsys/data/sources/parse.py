"""One range of one file to events and rejects: the function that runs on every core."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.sources.base import Delimited, EventFile, Parquet, Parsed
from recsys.data.sources.files import File, locate, said_plainly
from recsys.data.sources.scan import Cut, open_parquet
from recsys.data.sources.text import ROW_BITS, is_utf8, parse_delimited, rejects_table
from recsys.data.sources.values import NOT_UTF8, Raw, check
from recsys.errors import DataError


@dataclass(frozen=True)
class Range:
    """Part of a file. `index` counts ranges over the whole source; `path` is where the content lies, unpacked."""

    index: int
    event_file: EventFile
    path: str
    cut: Cut


def parse_range(part: Range) -> Parsed:
    """Events and rejects of a range. Raises DataError, naming the file, if it is not what its layout says."""
    file, layout, role = part.event_file.file, part.event_file.layout, part.event_file.role
    first_order = part.index << ROW_BITS
    with said_plainly(file.name):
        if isinstance(layout, Parquet):
            return _parse_row_groups(part, layout, first_order, role)
        data = _read_bytes(part)
        if isinstance(layout, Delimited):
            return parse_delimited(data, layout, file.name, part.cut.line, first_order, role)
        return parse_adjacency(data, file.name, part.cut.line, first_order, role)


def parse_adjacency(data: bytes, name: str, line: int, first_order: int, role: int) -> Parsed:
    """Events of lines `user item item ...`; a user alone has none."""
    fields = [text.split() for text in data.split(b"\n")]
    fine = [is_utf8(b" ".join(words)) for words in fields]
    bad = [row for row, good in enumerate(fine) if not good]
    items = [words[1:] if good else [] for words, good in zip(fields, fine, strict=True)]
    lengths = np.array([len(words) for words in items])
    users = np.repeat(np.array([words[0] if words else b"" for words in fields], object), lengths)
    raw = Raw(_binary(list(users)), _binary([item for words in items for item in words]))
    checked = check(raw, first_order + np.arange(len(raw.user)), role)
    raw_lines = [b" ".join(fields[row]) for row in bad]
    return Parsed(checked.events, rejects_table(name, [line + row for row in bad], [NOT_UTF8] * len(bad), raw_lines))


def check_types(file: File, path: str, columns: list[tuple[str, str | None]]) -> dict[str, str]:
    """Types of a Parquet file's wanted columns, (part, name) each. Raises DataError for one that cannot be its part."""
    with said_plainly(file.name), open_parquet(file.name, path) as parquet:
        fields = {field.name: field.type for field in parquet.schema_arrow}
    for part, column in columns:
        if column is not None and not _fits(part, fields[column]):
            wanted = "text or whole numbers" if part in ("user", "item") else "numbers"
            raise DataError(f"{file.name}: column {column} is {fields[column]}; a {part} wants {wanted}. Convert the column.")
    return {column: str(fields[column]) for _, column in columns if column is not None}


def _fits(part: str, kind: pa.DataType) -> bool:
    types = pa.types
    text = types.is_string(kind) or types.is_large_string(kind)
    if types.is_dictionary(kind):
        return _fits(part, kind.value_type)
    if part in ("user", "item"):
        return bool(text or types.is_integer(kind))
    number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)
    moment = types.is_timestamp(kind) or types.is_date(kind) or text
    return bool(number or (part == "time" and moment) or (part == "rating" and types.is_boolean(kind)))


def _read_bytes(part: Range) -> bytes:
    filesystem, path = locate(part.path)
    with filesystem.open_input_file(path) as stream:
        stream.seek(part.cut.first)
        data: bytes = stream.read(part.cut.last - part.cut.first)
    if len(data) != part.cut.last - part.cut.first:
        raise DataError(f"{part.event_file.file.name}: became shorter while it was read. Run again when it is complete.")
    return data


def _parse_row_groups(part: Range, layout: Parquet, first_order: int, role: int) -> Parsed:
    name = part.event_file.file.name
    with open_parquet(name, part.path) as parquet:
        try:
            table = parquet.read_row_groups(
                range(part.cut.first, part.cut.last), columns=layout.columns.named(), use_threads=False
            )
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{name}: cut or damaged ({error}). Fetch it again.") from None
    raw = Raw(*(_plain_column(table, column) for column in layout.columns))
    checked = check(raw, first_order + np.arange(len(table)), role)
    shown = [repr(row).encode() for row in _printable(table.take(pa.array(checked.bad))).to_pylist()]
    return Parsed(
        checked.events, rejects_table(name, [part.cut.line + int(row) for row in checked.bad], checked.reasons, shown)
    )


def _plain_column(table: pa.Table, name: str | None) -> Any:
    if name is None:
        return None
    column = table.column(name).combine_chunks()
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return pc.cast(column, column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _printable(table: pa.Table) -> pa.Table:
    """Timestamps as text: Python's own end with the year 9999 and know no nanoseconds."""
    for number, column in enumerate(table.columns):
        if pa.types.is_timestamp(column.type):
            table = table.set_column(number, table.field(number).name, column.cast(pa.string()))
    return table


def _binary(values: list[bytes]) -> pa.Array:
    return pa.array(values, pa.binary())
