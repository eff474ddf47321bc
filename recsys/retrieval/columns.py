"""Which items conditions on the catalogue's columns leave: of genres any, all or none, of years a range, of anything equality.

What has each value is listed once a column, by `warm` or when it is first asked for; the answers to the latest conditions are
remembered.
Shapes: N items, V values of a column.
"""

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache, reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys.data import schema
from recsys.errors import RequestError
from recsys.retrieval.filters import Items, intersection, union
from recsys.retrieval.requests import Condition, Value

TEXT, NUMBER, FLAG = "a string", "a number", "true or false"
OWN = schema.OWN_OF_BUNDLES
SAMPLE = 1000  # values that are looked at to tell what a column is like
NAMED, LONGEST = 3, 60  # values that no item has: how many are told, and how much of each
REMEMBERED = 256  # lists of items: a quarter of a million items in four are 250 MB at the very most


class Columns:
    """The columns of a catalogue. Threads may share it."""

    def __init__(self, items: pa.Table, eligible: Items) -> None:
        """eligible: ascending items that a list may hold; no others come back."""
        self._lookup = _Lookup(items, eligible)
        # Of an object of its own: a cache that held this one would be held by it, and Ray collects no such rings.
        self.allowed = lru_cache(REMEMBERED)(self._lookup.allowed)
        self.nowhere = lru_cache(REMEMBERED)(self._lookup.nowhere)

    @property
    def names(self) -> list[str]:
        """What can be asked about."""
        return self._lookup.names

    def warm(self) -> None:
        """Look through those columns now that conditions are likely about: a column of a million items takes a second."""
        for name in self.names:
            self._lookup.column(name).warm()

    def check(self, conditions: Sequence[Condition]) -> None:
        """Raises RequestError for a column that there is not, or that cannot be asked this."""
        for condition in conditions:
            self._lookup.column(condition.column).check(condition)


class _Lookup:
    """The columns, each made when it is first asked for."""

    def __init__(self, items: pa.Table, eligible: Items) -> None:
        self._table, self._eligible = items.combine_chunks(), eligible
        self._columns: dict[str, _Column] = {}

    @property
    def names(self) -> list[str]:
        return [field.name for field in self._table.schema if field.name not in OWN and _kind_of(field.type)]

    def allowed(self, conditions: tuple[Condition, ...]) -> Items:
        """[.] ascending: what meets all conditions."""
        met = [self.column(condition.column).meets(condition) for condition in conditions]
        found = reduce(intersection, met, self._eligible)
        found.setflags(write=False)  # it is remembered
        return found

    def nowhere(self, conditions: tuple[Condition, ...]) -> str | None:
        """Which of the values that are asked for no item has, in words: misspelt, perhaps. None where all are there."""
        told = [
            f"{condition.column} {_shown(value)!r}"
            for condition in conditions
            for value in self.column(condition.column).nowhere(condition)
        ]
        more = f" and {len(told) - NAMED} more" if len(told) > NAMED else ""
        return f"no item has {', '.join(told[:NAMED])}{more}" if told else None

    def column(self, name: str) -> "_Column":
        if name not in self._columns:
            if name not in self.names:
                raise RequestError("bad_filter", f"filter: no column {name!r}. There are: {', '.join(self.names)}.")
            self._columns[name] = _Column(name, self._table.column(name))
        return self._columns[name]


class _Column:
    """One column, looked up by value. An item without a value has none of them, and lies in no range."""

    def __init__(self, name: str, values: pa.ChunkedArray) -> None:
        self.name, self.kind = name, _kind_of(values.type)
        self._values: pa.Array = values.combine_chunks()
        if isinstance(self._values, pa.ChunkedArray):  # of an empty table
            self._values = pa.concat_arrays(self._values.chunks) if self._values.num_chunks else pa.array([], values.type)
        self._all = np.arange(len(self._values), dtype=np.int32)

    def check(self, condition: Condition) -> None:
        """Raises RequestError for what this column cannot be asked."""
        asked = condition.asked
        if not asked:
            raise RequestError("bad_filter", f"filter: {self.name}: say any, all, none, equals, min or max.")
        if "all" in asked and self.kind != "list":
            raise RequestError(
                "bad_filter", f"filter: {self.name} has one value an item: ask for any, none or equals, not all."
            )
        if "equals" in asked and self.kind == "list":
            raise RequestError("bad_filter", f"filter: {self.name} has several values an item: ask for any, all or none.")
        if {"min", "max"} & asked and self.kind != "number" and self._told_numbers is None:
            raise RequestError("bad_filter", f"filter: {self.name} is not numbers, so it has no min or max.")
        for bound in condition.bounds:
            if _sort_of(bound) != NUMBER:
                raise RequestError("bad_filter", f"filter: {self.name}: {bound!r} should be a number.")
        if condition.min is not None and condition.max is not None and condition.min > condition.max:
            raise RequestError("bad_filter", f"filter: {self.name}: min is above max, so that nothing lies between them.")
        for value in condition.values:
            if _sort_of(value) != self._sort:
                raise RequestError("bad_filter", f"filter: {self.name}: {value!r} should be {self._sort}.")

    def warm(self) -> None:
        """Make what lookups need. Where hardly two items have the same value, as with titles or prices, nobody asks for one: of
        numbers their order alone, for ranges."""
        repeats = self.kind == "list" or 2 * len(self._values.slice(0, SAMPLE).unique()) <= min(SAMPLE, len(self._values))
        if repeats:
            _ = self._places, self._listed
        if self.kind == "number" or (repeats and self._told_numbers is not None):
            _ = self._sorted

    def meets(self, condition: Condition) -> Items:
        """[.] ascending: items that meet all that is asked."""
        parts: list[Items] = []
        if condition.any is not None:
            parts.append(union(*map(self._having, condition.any)))
        if condition.all is not None:
            parts += [self._having(value) for value in condition.all] or [self._all]
        if condition.equals is not None:
            parts.append(self._having(condition.equals))
        if condition.min is not None or condition.max is not None:
            parts.append(self._between(condition.min, condition.max))
        if condition.none is not None:
            hidden = union(*map(self._having, condition.none))
            parts.append(np.setdiff1d(self._all, hidden, assume_unique=True).astype(np.int32))
        return reduce(intersection, parts)

    def nowhere(self, condition: Condition) -> list[Value]:
        """Values asked for that no item has. Of those that are left out it says nothing: they take nothing away."""
        asked = [*(condition.any or ()), *(condition.all or ()), *([] if condition.equals is None else [condition.equals])]
        return [value for value in asked if self._place_of(value) is None]

    def _having(self, value: Value) -> Items:
        place = self._place_of(value)
        if place is None:
            return self._all[:0]
        offsets, items = self._listed
        return items[offsets[place] : offsets[place + 1]]

    def _between(self, least: float | None, most: float | None) -> Items:
        sorted_values, items = self._sorted
        first = 0 if least is None else int(np.searchsorted(sorted_values, least, "left"))
        last = len(items) if most is None else int(np.searchsorted(sorted_values, most, "right"))
        return np.sort(items[first : max(first, last)])

    @cached_property
    def _sort(self) -> str:
        kind = self._dictionary.type
        if pa.types.is_boolean(kind):
            return FLAG
        return TEXT if pa.types.is_string(kind) or pa.types.is_large_string(kind) else NUMBER

    @cached_property
    def _flat(self) -> tuple[NDArray[np.int32], pa.DictionaryArray]:
        """[E] items and their values, one after the other; none where there is no value."""
        lists = self.kind == "list"
        parents = pc.list_parent_indices(self._values) if lists else pa.array(self._all)
        values = pc.list_flatten(self._values) if lists else self._values
        has = pc.is_valid(values)
        return parents.filter(has).to_numpy().astype(np.int32), pc.dictionary_encode(values.filter(has))

    @property
    def _dictionary(self) -> pa.Array:
        return self._flat[1].dictionary

    @cached_property
    def _told_numbers(self) -> NDArray[np.float64] | None:
        """[V] of text that is all numbers, as a csv catalogue tells them; None of other columns."""
        if self.kind != "one" or self._sort != TEXT or not len(self._dictionary):
            return None
        try:
            return np.asarray(pc.utf8_trim_whitespace(self._dictionary).cast(pa.float64()))
        except pa.ArrowInvalid:
            return None

    @cached_property
    def _places(self) -> dict[Value, int]:
        return {value: place for place, value in enumerate(self._dictionary.to_pylist())}

    def _place_of(self, value: Value) -> int | None:
        return self._places.get(value)

    @cached_property
    def _listed(self) -> tuple[NDArray[np.int64], Items]:
        """Compressed rows: of each of V values the items that have it, ascending, each once."""
        items, encoded = self._flat
        codes = encoded.indices.to_numpy().astype(np.min_scalar_type(len(self._dictionary)))
        order = np.argsort(codes, kind="stable")  # items are ascending already; of small integers, one pass of radix sort
        codes, items = codes[order], items[order]
        first = np.ones(len(items), bool)
        first[1:] = (codes[1:] != codes[:-1]) | (items[1:] != items[:-1])
        counts = np.bincount(codes[first], minlength=len(self._dictionary))
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), items[first]

    @cached_property
    def _sorted(self) -> tuple[NDArray[Any], Items]:
        """Numbers, ascending, and whose they are."""
        items, encoded = self._flat
        if self._told_numbers is not None:
            values = self._told_numbers[encoded.indices.to_numpy()]
        else:
            values = encoded.dictionary_decode().to_numpy(zero_copy_only=False)
        kept = ~np.isnan(values) if values.dtype.kind == "f" else np.ones(len(values), bool)
        order = np.argsort(values[kept], kind="stable")
        return values[kept][order], items[kept][order]


def _shown(value: Value) -> Value:
    return value if not isinstance(value, str) or len(value) <= LONGEST else f"{value[:LONGEST]}…"


def _sort_of(value: Any) -> str | None:
    """None for what no column holds."""
    if isinstance(value, bool):
        return FLAG
    return TEXT if isinstance(value, str) else NUMBER if isinstance(value, int | float) else None


def _kind_of(kind: pa.DataType) -> str | None:
    """`list`, `number`, or `one` value of another kind; None for what cannot be asked about."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return "list" if _kind_of(kind.value_type) in ("number", "one") else None
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    known: Sequence[Callable[[pa.DataType], bool]] = (pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean)
    return "one" if any(is_of(kind) for is_of in known) else None


__all__ = ["Columns", "Condition", "Value"]
