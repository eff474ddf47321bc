"""What items are: files of titles, years and genres to one table keyed by the item's string id."""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
import pyarrow.parquet as pq

from recsys.data import schema
from recsys.data.sources.files import File, read_all
from recsys.errors import DataError

ID_NAMES = (
    *("item_id", "itemid", "movieid", "movie_id", "item", "movie", "id", "asin", "parent_asin"),
    *("product_id", "productid", "track_id", "book_id", "business_id", "article_id"),
)
TITLE_NAMES = ("title", "name", "item_name", "movie_title")
GENRE_NAMES = ("genres", "genre", "categories", "category")
YEAR_NAMES = ("year", "release_year")
NO_GENRE = "(no genres listed)"
U_ITEM_FIELDS = 5
"""Of `u.item`, before the flags of genres."""

_YEAR = re.compile(r"\((\d{4})(?:[–-]\d{0,4})?\)\s*$")


def catalogue_table(
    ids: Sequence[str | None],
    titles: Sequence[str | None],
    genres: Sequence[Sequence[str]] | None = None,
    **more: Sequence[str | None],
) -> pa.Table:
    """A catalogue from lists; years are read from titles such as `Heat (1995)`, which stay as they are."""
    genres = genres if genres is not None else [[] for _ in ids]
    columns = {
        schema.ITEM_ID: pa.array(ids, pa.string()),
        schema.TITLE: pa.array(titles, pa.string()),
        schema.YEAR: pa.array([year_of(title) for title in titles], pa.int32()),
        schema.GENRES: pa.array(genres, pa.list_(pa.string())),
    }
    return pa.table(columns | {name: pa.array(values, pa.string()) for name, values in more.items()})


def year_of(title: str | None) -> int | None:
    """The year a title ends with in brackets, if it does."""
    match = _YEAR.search(title or "")
    return int(match.group(1)) if match else None


def decode(content: bytes, encoding: str | None) -> str:
    """Text in the given encoding; unset: UTF-8 if it is that, else latin-1."""
    try:
        return content.decode(encoding if encoding == "latin-1" else "utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def split_genres(text: str | None) -> list[str]:
    """Genres separated by bars."""
    return [] if not text or text == NO_GENRE else text.split("|")


def read_dat(file: File, encoding: str | None) -> pa.Table:
    """`movies.dat`: id::title::genres; titles may hold `::` themselves."""
    rows = [line.split("::") for line in _lines(decode(read_all(file), encoding), file, "::")]
    genres = [split_genres(row[-1]) if len(row) > 2 else [] for row in rows]
    return catalogue_table(
        [row[0] for row in rows], ["::".join(row[1:-1] if len(row) > 2 else row[1:]) for row in rows], genres
    )


def read_u_item(file: File, genre_names: Sequence[str]) -> pa.Table:
    """`u.item` of ml-100k: id|title|date|video date|url|a flag for each genre."""
    rows = [line.split("|") for line in _lines(decode(read_all(file), "latin-1"), file, "|", U_ITEM_FIELDS)]
    genres = [[name for name, flag in zip(genre_names, row[5:], strict=False) if flag == "1"] for row in rows]
    dates, urls = [row[2] or None for row in rows], [row[4] or None for row in rows]
    return catalogue_table([row[0] for row in rows], [row[1] for row in rows], genres, release_date=dates, imdb_url=urls)


def read_table(file: File, delimiter: str | None, encoding: str | None, id_column: str | None = None) -> pa.Table:
    """csv, tsv or parquet with a header; attributes nobody knows stay as they came."""
    raw = _read_parquet(file) if file.suffix == ".parquet" else _read_csv(file, delimiter, encoding)
    raw = raw.rename_columns([name.strip() for name in raw.column_names])
    if twice := [name for name, times in Counter(raw.column_names).items() if times > 1]:
        raise DataError(f"{file.name}: more than one column is called {twice[0]}. Rename all but one.")
    try:
        return _described(raw, file, id_column)
    except pa.ArrowNotImplementedError as error:
        raise DataError(f"{file.name}: {error}. Ids, titles and years are text or numbers; convert the column.") from None


def _described(raw: pa.Table, file: File, id_column: str | None) -> pa.Table:
    taken: list[str] = []
    ids = _pick(raw, (id_column.lower(),) if id_column in raw.column_names and id_column else ID_NAMES, taken)
    if ids is None:
        raise DataError(f"{file.name}: no column of item ids among {', '.join(raw.column_names)}. Rename it to item_id.")
    titles, years, genres = (_pick(raw, names, taken) for names in (TITLE_NAMES, YEAR_NAMES, GENRE_NAMES))
    table = catalogue_table(_strings(ids), _strings(titles, len(raw)), _genre_lists(genres, len(raw)))
    if years is not None:
        table = table.set_column(2, schema.YEAR, _years(years))
    used = {*schema.ITEMS.names, schema.COUNT, *raw.column_names}
    for name in raw.column_names:
        if name not in taken:
            table = table.append_column(_unused(name, used), raw.column(name).combine_chunks())
    return table


def _unused(name: str, used: set[str]) -> str:
    """The name itself unless the contract has a column so called; then with as many `_` as make it another."""
    if name not in (*schema.ITEMS.names, schema.COUNT):
        return name
    while name in used:
        name += "_"
    used.add(name)
    return name


def _read_parquet(file: File) -> pa.Table:
    try:
        table = pq.read_table(pa.BufferReader(read_all(file)))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{file.name}: cut or damaged ({error}). Fetch it again.") from None
    if (column := schema.extension_column(table.schema)) is not None:
        raise DataError(f"{file.name}: {schema.REFUSED.format(column)}")
    return table


def first_of_each(table: pa.Table) -> pa.Table:
    """The catalogue without rows that have no id or one already seen."""
    seen: set[str | None] = {None, ""}
    ids = table.column(schema.ITEM_ID).to_pylist()
    rows = [row for row, item in enumerate(ids) if item not in seen and not seen.add(item)]  # type: ignore[func-returns-value]
    return table if len(rows) == len(table) else table.take(pa.array(rows, pa.int64()))


def renamed(read: Callable[[], pa.Table], names: Callable[[], dict[str, str]]) -> Callable[[], pa.Table]:
    """A catalogue of other ids: names() gives, for each id of the events, the id that the catalogue knows it by."""

    def catalogue() -> pa.Table:
        table = first_of_each(read())
        rows = {item: row for row, item in enumerate(table.column(schema.ITEM_ID).to_pylist())}
        known = {ours: rows[theirs] for ours, theirs in names().items() if theirs in rows}
        taken = table.take(pa.array(list(known.values()), pa.int64()))
        return taken.set_column(0, schema.ITEM_ID, pa.array(list(known), pa.string()))

    return catalogue


def read_pairs(file: File) -> dict[str, str]:
    """A map of ids: two fields a line, separated by blanks, without a header."""
    return dict(line.split()[:2] for line in _lines(decode(read_all(file), None), file, None))


def _lines(text: str, file: File, delimiter: str | None, least: int = 2) -> Iterable[str]:
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        if line.strip() and len(line.split(delimiter)) < least:
            raise DataError(f"{file.name}, line {number}: {line[:80]!r} has fewer than {least} fields. Fetch the file again.")
        if line.strip():
            yield line


def _read_csv(file: File, delimiter: str | None, encoding: str | None) -> pa.Table:
    text = decode(read_all(file), encoding)
    delimiter = delimiter or ("\t" if file.suffix == ".tsv" else ",")
    names = next(csv.reader(io.StringIO(text), delimiter=delimiter), [])
    try:
        return pv.read_csv(
            pa.BufferReader(text.encode()),
            pv.ReadOptions(block_size=min(len(text) * 4 + 1, (1 << 31) - 1), use_threads=False),
            pv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            pv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]),
        )
    except pa.ArrowInvalid as error:
        raise DataError(f"{file.name}: {error}. Mend the file or give another to data.catalogue.") from None


def _pick(raw: pa.Table, names: Sequence[str], taken: list[str]) -> pa.ChunkedArray | None:
    lower = {name.lower(): name for name in reversed(raw.column_names)}
    for name in names:
        if name in lower and lower[name] not in taken:
            taken.append(lower[name])
            return raw.column(lower[name])
    return None


def _strings(column: pa.ChunkedArray | None, rows: int = 0) -> list[str | None]:
    return [None] * rows if column is None else column.cast(pa.string()).to_pylist()


def _genre_lists(column: pa.ChunkedArray | None, rows: int) -> list[list[str]]:
    if column is None:
        return [[] for _ in range(rows)]
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return [list(map(str, genres or [])) for genres in column.to_pylist()]
    return [split_genres(text) for text in column.cast(pa.string()).to_pylist()]


def _years(column: pa.ChunkedArray) -> pa.Array:
    text = column.cast(pa.string()).combine_chunks()
    return pc.if_else(pc.fill_null(pc.match_substring_regex(text, r"^\d{1,4}$"), False), text, None).cast(pa.int32())
