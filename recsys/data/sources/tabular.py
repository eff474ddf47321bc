"""Any csv, tsv or parquet, one file or many shards: columns by the config, or by their usual names."""

import csv
import difflib
import io
import logging
from collections.abc import Sequence

import pyarrow as pa

from recsys.config import DataConfig
from recsys.data.sources import catalogue
from recsys.data.sources.base import Columns, Delimited, EventFile, Parquet, Source, no_catalogue
from recsys.data.sources.files import File, head, list_files, said_plainly
from recsys.data.sources.parse import check_types
from recsys.data.sources.scan import open_parquet
from recsys.errors import DataError

log = logging.getLogger(__name__)

TABLES, OTHERS = (".parquet", ".csv", ".tsv"), (".dat", ".txt")
DELIMITERS = (",", "\t", ";", "|", "::", " ")
CATALOGUES = ("items", "item", "movies", "films", "catalogue", "catalog", "products", "books", "tracks")
USUAL = {
    "user": (
        *("user_id", "userid", "user", "uid", "reviewerid", "reviewer_id", "customer_id", "customerid"),
        *("visitorid", "visitor_id", "session_id", "sessionid"),
    ),
    "item": (
        *("item_id", "itemid", "item", "movie_id", "movieid", "movie", "iid", "asin", "parent_asin"),
        *("product_id", "productid", "track_id", "book_id", "business_id", "article_id"),
    ),
    "rating": ("rating", "ratings", "score", "stars", "overall"),
    "time": ("timestamp", "time", "ts", "unixreviewtime", "unix_time", "date", "datetime", "event_time", "created_at"),
    "position": ("position",),
}


def tabular(files: dict[str, File], config: DataConfig) -> Source | None:
    """Every csv, tsv and parquet file given, except one that describes items."""
    usual = [file for name, file in sorted(files.items()) if len(files) > 1 and name.rpartition(".")[0].lower() in CATALOGUES]
    described = _catalogue_file(files, usual, config)
    shards = [file for file in files.values() if file.suffix in TABLES + OTHERS and file != described and file not in usual]
    kinds = {file.suffix: file.name for file in shards}
    tables = {suffix: name for suffix, name in kinds.items() if suffix in TABLES}
    if len(tables) > 1:
        raise DataError(
            f"{' and '.join(sorted(tables.values()))}: shards of different kinds. Give one kind at a time; "
            f"recsys prepare --append joins the other to its dataset."
        )
    chosen = next((suffix for suffix in (*TABLES, *OTHERS) if suffix in kinds), None)
    return _source([file for file in shards if file.suffix == chosen], described, config) if chosen else None


def _source(shards: list[File], described: File | None, config: DataConfig) -> Source:
    headers = [_header(file, config) for file in shards]
    wanted = [_columns(file, names, config) for file, (names, _, _) in zip(shards, headers, strict=True)]
    for file, columns in zip(shards[1:], wanted[1:], strict=True):
        _same_parts(shards[0], wanted[0], file, columns)
    _unknown(shards, [names for names, _, _ in headers], wanted, config)
    if shards[0].suffix == ".parquet":
        events = _parquet_files(shards, wanted)
    else:
        events = [
            EventFile(
                file, Delimited(delimiter, tuple(names), columns, len(delimiter) == 1, config.encoding or "utf-8", skip, 2)
            )
            for file, (names, delimiter, skip), columns in zip(shards, headers, wanted, strict=True)
        ]
    return Source(
        format="tabular",
        events=tuple(events),
        has_rating=wanted[0].rating is not None,
        has_time=wanted[0].time is not None,
        ordered=wanted[0].position is not None,
        catalogue_files=(described,) if described else (),
        catalogue=(lambda: read_catalogue(described, config)) if described else no_catalogue,
    )


def _catalogue_file(files: dict[str, File], usual: list[File], config: DataConfig) -> File | None:
    if config.catalogue is not None:
        named = [file for file in files.values() if config.catalogue in (file.name, file.base)]
        return named[0] if named else named_catalogue(config.catalogue)
    return usual[0] if usual else None


def named_catalogue(path: str) -> File:
    """The file that data.catalogue names. Raises DataError if it is not one file."""
    files = list_files(path)
    if len(files) != 1:
        raise DataError(f"{path}: {len(files)} files; data.catalogue is one.")
    return files[0]


def read_catalogue(file: File, config: DataConfig) -> pa.Table:
    """A catalogue file by its suffix."""
    if file.suffix == ".dat":
        return catalogue.read_dat(file, config.encoding)
    return catalogue.read_table(file, config.delimiter, config.encoding, config.item_column)


def _header(file: File, config: DataConfig) -> tuple[list[str], str, int]:
    """Column names, delimiter, and the bytes before the first row."""
    if file.suffix == ".parquet":
        if file.compressed:
            raise DataError(f"{file.name}: Parquet inside an archive cannot be read in parts. Unpack it.")
        with said_plainly(file.name), open_parquet(file.name, file.path) as parquet:
            return list(parquet.schema_arrow.names), "", 0
    content = head(file)
    line = content.partition(b"\n")[0]
    text = line.decode(config.encoding or "utf-8", errors="replace").removeprefix("\ufeff").rstrip("\r")
    delimiter = config.delimiter or _delimiter(file, text)
    try:
        names = text.split(delimiter) if len(delimiter) > 1 else next(csv.reader(io.StringIO(text), delimiter=delimiter), [])
    except csv.Error as error:
        raise DataError(f"{file.name}, line 1: {error}. Lines must end with a newline; convert the file.") from None
    return [name.strip() for name in names], delimiter, min(len(line) + 1, len(content))


def _delimiter(file: File, line: str) -> str:
    if file.suffix == ".tsv":
        return "\t"
    return max(DELIMITERS, key=lambda delimiter: (line.count(delimiter) * len(delimiter), delimiter == ","))


def _columns(file: File, names: Sequence[str], config: DataConfig) -> Columns:
    asked = {part: getattr(config, f"{part}_column", None) for part in Columns._fields}
    found = {part: _find(file, names, part, asked[part]) for part in Columns._fields}
    if found["time"] is not None:
        found["position"] = None
    for name in found.values():
        if name is not None and names.count(name) > 1:
            raise DataError(f"{file.name}: {names.count(name)} columns are called {name}. Rename all but one.")
    for part in ("user", "item"):
        if found[part] is None:
            raise DataError(
                f"{file.name}: no column of {part} ids among {', '.join(names)[:300]}. "
                f"Name it: --set data.{part}_column=NAME; its usual name is {USUAL[part][0]}. The first line has to tell names."
            )
    return Columns(**found)  # type: ignore[arg-type]


def _find(file: File, names: Sequence[str], part: str, asked: str | None) -> str | None:
    if asked is not None:
        if asked not in names:
            near = difflib.get_close_matches(asked, names, 1)
            hint = f" Did you mean {near[0]}?" if near else f" It has {', '.join(names)[:300]}."
            raise DataError(f"{file.name}: no column {asked} (data.{part}_column).{hint}")
        return asked
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[name] for name in USUAL[part] if name in lower), None)


def _same_parts(first: File, columns: Columns, file: File, others: Columns) -> None:
    for part, name, other in zip(Columns._fields, columns, others, strict=True):
        if (name is None) != (other is None):
            lacking, having = (file, first) if other is None else (first, file)
            raise DataError(
                f"{lacking.name}: no column {name or other} ({part}), which {having.name} has. Shards must be alike."
            )


def _parquet_files(shards: list[File], wanted: list[Columns]) -> list[EventFile]:
    types: dict[str, tuple[str, File]] = {}
    for file, columns in zip(shards, wanted, strict=True):
        parts = list(zip(Columns._fields, columns, strict=True))
        for name, kind in check_types(file, file.path, parts).items():
            before, where = types.setdefault(name, (kind, file))
            if before != kind:
                raise DataError(
                    f"{file.name}: column {name} is {kind}, in {where.name} it is {before}. Write all shards with one type."
                )
    return [EventFile(file, Parquet(columns)) for file, columns in zip(shards, wanted, strict=True)]


def _unknown(shards: list[File], headers: list[list[str]], wanted: list[Columns], config: DataConfig) -> None:
    unknown = {
        name: file.name
        for file, names, columns in zip(shards, headers, wanted, strict=True)
        for name in names
        if name not in columns.named()
    }
    if not unknown:
        return
    message = f"{next(iter(unknown.values()))}: columns that nobody asked for: {', '.join(sorted(unknown))}."
    if config.strict:
        raise DataError(f"{message} Remove them, or do not set data.strict.")
    log.warning("%s They are ignored; --set data.strict=true fails instead.", message)
