"""What is known of items as numbered features: from the columns of items.parquet to what an item tower looks up.

A feature is a category of a column: a genre, a word of a title, a decade, a tenth of the prices. Which features there are is
decided by the whole catalogue, and by nothing that was watched.

Shapes: N items, F features, E entries (the features of all items, one after the other).
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys.data import schema
from recsys.errors import ConfigError

BINS = 10  # parts, alike in items, that numbers are cut into; fewer different numbers are categories of their own
MISSING, OTHER = "?", "*"  # behind a column's name: it says nothing of an item, or nothing that enough items share
NO_ATTRIBUTES = (schema.ITEM, schema.ITEM_ID, schema.COUNT)
DECADE = 10

YEAR_OF_TITLE = r"\(\d{4}[^)]*\)\s*$"
NO_WORD = r"[^\p{L}\p{N}]+"


@dataclass(frozen=True, eq=False)
class Attributes:
    """The features of each item, in compressed rows.

    names: [F], `column=category`, `column?` or `column*`: by these another dataset's are told to be the same;
    column: [F] int64, which column's each is; category: [F] whether it is one, and no place for what is missing or rare;
    offsets: [N + 1] int64 into feature [E] int32 and weight [E] float32: of an item's entries those of one column add up to 1.
    """

    names: tuple[str, ...]
    column: NDArray[np.int64]
    category: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    feature: NDArray[np.int32]
    weight: NDArray[np.float32]

    @property
    def item(self) -> NDArray[np.int64]:
        """[E] whose each entry is."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    @property
    def told(self) -> NDArray[np.bool_]:
        """[N] whether an item has any category. Of the others nothing is known."""
        found = np.zeros(len(self.offsets) - 1, bool)
        found[self.item[self.category[self.feature]]] = True
        return found

    def of(self, trained_N: NDArray[np.bool_]) -> "Attributes":
        """What can be learnt of from some items: without the entries of features that none of them has."""
        learnt_F = np.zeros(len(self.names), bool)
        learnt_F[self.feature[trained_N[self.item]]] = True
        kept = learnt_F[self.feature]
        return _by_item(self.names, self.column, self.category, self.item[kept], self.feature[kept], len(trained_N))


@dataclass(frozen=True)
class _Column:
    """Entries of one column, by item: item [E], feature [E] into names, whose last two are places."""

    names: list[str]
    item: NDArray[np.int64]
    feature: NDArray[np.int64]


def attributes_of(items: pa.Table, columns: Sequence[str] | None = None, *, least: int = 1) -> Attributes:
    """The features of a catalogue. items: as items.parquet, row = item.

    Titles are cut into words, years into decades, other numbers (also in text) into tenths; text and booleans are categories,
    lists have one for each element. columns: which to use; unset: all but ids and counts. least: items that a category needs;
    an item all of whose categories have fewer gets the column's place for others, one without a value that for missing ones.
    Raises ConfigError for a column that is not there or holds neither text nor numbers nor lists of them.
    """
    taken = _chosen(items, columns)
    found = [_column(name, items.column(name).combine_chunks(), least) for name in taken]
    return _joined(found, items.num_rows)


def _chosen(items: pa.Table, columns: Sequence[str] | None) -> list[str]:
    usable = [name for name in items.column_names if name not in NO_ATTRIBUTES]
    if columns is None:
        return [name for name in usable if _can_be_read(items.schema.field(name).type)]
    for name in columns:
        if name not in usable:
            close = difflib.get_close_matches(name, usable, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(usable)}."
            raise ConfigError(f"model.attributes: items.parquet has no attribute {name!r}. {hint}")
        if not _can_be_read(kind := items.schema.field(name).type):
            raise ConfigError(f"model.attributes: {name} holds {kind}, which cannot be read as categories. Leave it out.")
    return list(dict.fromkeys(columns))


def _can_be_read(kind: pa.DataType) -> bool:
    if _is_list(kind):
        return _can_be_read(kind.value_type) and not _is_list(kind.value_type)
    if pa.types.is_dictionary(kind):
        return _can_be_read(kind.value_type)
    return _is_text(kind) or _is_number(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)


def _column(name: str, column: pa.Array, least: int) -> _Column:
    item, category = _entries(name, column)
    kept = pc.fill_null(pc.not_equal(category, ""), False).to_numpy(zero_copy_only=False)
    item, coded = item[kept], category.filter(pa.array(kept)).dictionary_encode()
    item, code = _distinct(item, coded.indices.to_numpy(zero_copy_only=False).astype(np.int64))
    words = coded.dictionary.to_pylist()
    shared = np.bincount(code, minlength=len(words)) >= least
    chosen = sorted((word, place) for place, word in enumerate(words) if shared[place])
    number = np.full(len(words), -1)
    number[[place for _, place in chosen]] = np.arange(len(chosen))
    return _with_places(name, [f"{name}={word}" for word, _ in chosen], item, number[code], len(column))


def _with_places(name: str, names: list[str], item: NDArray[np.int64], feature: NDArray[np.int64], items: int) -> _Column:
    """Add the places for items of which the column says nothing, and nothing that is shared."""
    has, told = np.zeros(items, bool), np.zeros(items, bool)
    has[item] = True
    item, feature = item[feature >= 0], feature[feature >= 0]
    told[item] = True
    missing, other = np.flatnonzero(~has), np.flatnonzero(has & ~told)
    places = np.repeat([len(names), len(names) + 1], [len(missing), len(other)])
    return _Column(
        names=[*names, name + MISSING, name + OTHER],
        item=np.concatenate([item, missing, other]),
        feature=np.concatenate([feature, places]),
    )


def _joined(columns: Sequence[_Column], items: int) -> Attributes:
    """All columns' entries by item, each column's numbers behind those of the one before."""
    sizes = [len(column.names) for column in columns]
    firsts = np.cumsum([0, *sizes])
    return _by_item(
        names=tuple(name for column in columns for name in column.names),
        column=np.repeat(np.arange(len(columns)), sizes),
        category=np.concatenate([np.zeros(0, bool), *(np.arange(size) < size - 2 for size in sizes)]),
        item=np.concatenate([np.zeros(0, np.int64), *(column.item for column in columns)]),
        feature=np.concatenate([np.zeros(0, np.int64), *(c.feature + n for c, n in zip(columns, firsts, strict=False))]),
        items=items,
    )


def _by_item(
    names: tuple[str, ...],
    column: NDArray[np.int64],
    category: NDArray[np.bool_],
    item: NDArray[np.int64],
    feature: NDArray[np.integer],
    items: int,
) -> Attributes:
    """Entries in any order, laid out by item; those that an item has in one column weigh alike."""
    order = np.lexsort((feature, item))
    item, feature = item[order], feature[order]
    _, group, alike = np.unique(item * (1 + column.max(initial=0)) + column[feature], return_inverse=True, return_counts=True)
    return Attributes(
        names=names,
        column=column,
        category=category,
        offsets=np.concatenate([[0], np.cumsum(np.bincount(item, minlength=items))]).astype(np.int64),
        feature=feature.astype(np.int32),
        weight=(1 / alike[group]).astype(np.float32),
    )


def _entries(name: str, column: pa.Array) -> tuple[NDArray[np.int64], pa.Array]:
    """Each value's item, and its category as text, null where there is none."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    item = np.arange(len(column))
    if name == schema.TITLE:
        return _flat(item, _words(column.cast(pa.string())))
    if _is_list(column.type):
        item, column = _flat(item, column)
    if name == schema.YEAR:
        return item, _decades(column)
    return item, _categories(column)


def _words(titles: pa.Array) -> pa.Array:
    """Lists of lower-case words, without the year that ends a title."""
    plain = pc.utf8_lower(pc.replace_substring_regex(titles, YEAR_OF_TITLE, ""))
    return pc.split_pattern(pc.utf8_trim_whitespace(pc.replace_substring_regex(plain, NO_WORD, " ")), " ")


def _decades(years: pa.Array) -> pa.Array:
    try:
        decade = pc.multiply(pc.divide(years.cast(pa.int64()), DECADE), DECADE)
    except pa.ArrowInvalid:
        return _categories(years)
    return pc.binary_join_element_wise(decade.cast(pa.string()), "s", "")


def _categories(values: pa.Array) -> pa.Array:
    """Text of each value; of numbers, where there are many, the part of them it lies in."""
    if pa.types.is_null(values.type) or pa.types.is_boolean(values.type):
        return values.cast(pa.string())
    if _is_text(values.type):
        text = pc.utf8_trim_whitespace(values.cast(pa.string()))
        values = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
    numbers = _numbers(values)
    if numbers is None:
        return values.cast(pa.string())
    usable = np.isfinite(numbers)
    if len(np.unique(numbers[usable])) <= BINS:
        return pc.if_else(pa.array(usable), values.cast(pa.string()), pa.scalar(None, pa.string()))
    bounds = np.unique(np.quantile(numbers[usable], np.arange(1, BINS) / BINS))
    part = np.searchsorted(bounds, numbers, side="right")
    return pc.if_else(pa.array(usable), pa.array([f"part {number}" for number in part]), pa.scalar(None, pa.string()))


def _numbers(values: pa.Array) -> NDArray[np.float64] | None:
    """NaN where there is none; None of text that is not all numbers."""
    if pa.types.is_temporal(values.type):
        values = values.cast(pa.timestamp("ms")).cast(pa.int64())
    try:
        numbers: NDArray[np.float64] = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        return None
    return numbers


def _flat(item: NDArray[np.int64], lists: pa.Array) -> tuple[NDArray[np.int64], pa.Array]:
    """The elements of lists, each with its list's item."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return np.repeat(item, lengths), lists.drop_null().flatten()


def _distinct(item: NDArray[np.int64], code: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each category of an item once."""
    if not len(item):
        return item, code
    codes = int(code.max()) + 1
    pairs = np.unique(item * codes + code)
    return pairs // codes, pairs % codes


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_number(kind: pa.DataType) -> bool:
    dated = pa.types.is_date(kind) or pa.types.is_timestamp(kind)
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or dated)
