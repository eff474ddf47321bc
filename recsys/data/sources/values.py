"""Raw columns to the uniform events table, and the reason of every row that cannot be an event."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys.data import schema

FIELDS = "wrong number of fields"
NOT_UTF8 = "not UTF-8"
LINE_BREAK = "line break in an id"
NO_USER, NO_ITEM = "no user id", "no item id"
RATING_TEXT, RATING_INFINITE, RATING_NEGATIVE = "rating is not a number", "rating is not finite", "rating is negative"
TIME_TEXT, TIME_RANGE = "time is neither Unix seconds nor ISO 8601", "time is before 1970 or after 9999, in seconds"
POSITION_TEXT = "position is not a whole number"

LAST_SECOND = 253_402_300_799
"""The end of the year 9999; beyond it a time was probably in milliseconds."""
TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""Of each unit of Arrow's timestamps in a second."""

_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_SPOKEN = r"(?i)^[+-]?(nan|inf|infinity)$"


class Raw(NamedTuple):
    """Columns of one range as they came: text, binary or typed. An absent one is None."""

    user: pa.Array
    item: pa.Array
    rating: pa.Array | None = None
    time: pa.Array | None = None
    position: pa.Array | None = None


class Checked(NamedTuple):
    """events: schema.EVENTS of the good rows. bad: numbers of the others; reasons: one each."""

    events: pa.Table
    bad: NDArray[np.int64]
    reasons: list[str]


def check(raw: Raw, order: NDArray[np.int64], role: int, *, one_line: bool = False) -> Checked:
    """Turn raw columns into events. order: [rows] place in the source; role: segment of a published split.

    one_line: refuse ids with a line break in them, which in quoted text betray a stray quote.
    """
    faults = _Faults(len(raw.user))
    columns = {
        schema.USER_ID: _ids(raw.user, NO_USER, one_line, faults),
        schema.ITEM_ID: _ids(raw.item, NO_ITEM, one_line, faults),
        schema.RATING: _ratings(raw.rating, faults),
        schema.TIME: _times(raw.time, faults),
        schema.ORDER: _positions(raw.position, order, faults),
        schema.ROLE: pa.array(np.full(len(order), role, np.int8)),
    }
    events = pa.table(columns, schema=schema.EVENTS)
    bad = np.flatnonzero(faults.codes)
    if len(bad):
        events = events.filter(pa.array(faults.codes == 0))
    return Checked(events, bad, [faults.reasons[code - 1] for code in faults.codes[bad]])


class _Faults:
    """The first reason against each row."""

    def __init__(self, rows: int) -> None:
        self.codes: NDArray[np.int16] = np.zeros(rows, np.int16)
        self.reasons: list[str] = []

    def add(self, reason: str, bad: NDArray[np.bool_]) -> None:
        if bad.any():
            self.reasons.append(reason)
            self.codes[bad & (self.codes == 0)] = len(self.reasons)


def _ids(column: pa.Array, reason: str, one_line: bool, faults: _Faults) -> pa.Array:
    strings = _text(column, faults)
    filled = pc.fill_null(strings, "")
    faults.add(reason, _mask(pc.equal(filled, "")))
    if one_line:
        faults.add(LINE_BREAK, _mask(pc.match_substring_regex(filled, "[\r\n]")))
    return strings


def _text(column: pa.Array, faults: _Faults) -> pa.Array:
    if not pa.types.is_binary(column.type):
        return column.cast(pa.string())
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        strings = pa.array([_decoded(value) for value in column.to_pylist()], pa.string())
        faults.add(NOT_UTF8, _mask(pc.and_(strings.is_null(), column.is_valid())))
        return strings


def _decoded(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _ratings(column: pa.Array | None, faults: _Faults) -> pa.Array:
    if column is None:
        return pa.array(np.ones(len(faults.codes), np.float32))
    numbers, known = _numbers(column, faults)
    faults.add(RATING_TEXT, ~known)
    with np.errstate(over="ignore"):
        ratings = numbers.astype(np.float32)
    faults.add(RATING_INFINITE, ~np.isfinite(ratings))
    faults.add(RATING_NEGATIVE, ratings < 0)
    return pa.array(ratings)


def _times(column: pa.Array | None, faults: _Faults) -> pa.Array:
    if column is None:
        return pa.array(np.zeros(len(faults.codes), np.int64))
    seconds, known = _seconds(column, faults)
    faults.add(TIME_TEXT, ~known)
    outside = ~((seconds >= 0) & (seconds <= LAST_SECOND))
    faults.add(TIME_RANGE, outside)
    return pa.array(np.where(outside, 0, seconds).astype(np.int64))


def _positions(column: pa.Array | None, order: NDArray[np.int64], faults: _Faults) -> pa.Array:
    if column is None:
        return pa.array(order)
    numbers, known = _numbers(column, faults)
    fine = known & (np.abs(numbers) < 2**53) & (numbers == np.floor(numbers))
    faults.add(POSITION_TEXT, ~fine)
    return pa.array(np.where(fine, numbers, 0).astype(np.int64))


def _numbers(column: pa.Array, faults: _Faults) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Values, and whether each is a number at all (NaN and infinity are, here)."""
    if not _is_text(column.type):
        return _floats(column.cast(pa.float64(), safe=False))
    text = pc.ascii_trim_whitespace(_text(column, faults))
    try:
        return _floats(text.cast(pa.float64()))
    except pa.ArrowInvalid:
        spoken = pc.or_(pc.match_substring_regex(text, _NUMBER), pc.match_substring_regex(text, _SPOKEN))
        return _floats(pc.if_else(spoken, text, None).cast(pa.float64()))


def _seconds(column: pa.Array, faults: _Faults) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return _moments(column)
    numbers, known = _numbers(column, faults)
    if _is_text(column.type) and not known.all():
        _fill_dates(_text(column, faults), numbers, known)
    return np.floor(numbers), known & ~np.isnan(numbers)


def _moments(column: pa.Array) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    column = column.cast(pa.timestamp("ms")) if pa.types.is_date(column.type) else column
    ticks = pc.fill_null(column.cast(pa.int64()), 0).to_numpy()
    return (ticks // TICKS[column.type.unit]).astype(np.float64), _mask(column.is_valid())


def _fill_dates(text: pa.Array, numbers: NDArray[np.float64], known: NDArray[np.bool_]) -> None:
    for row in np.flatnonzero(~known):
        seconds = _iso_seconds(text[row].as_py())
        if seconds is not None:
            numbers[row], known[row] = seconds, True


def _iso_seconds(text: str | None) -> float | None:
    """Unix seconds of an ISO 8601 date or time; without a zone it is UTC."""
    if text is None or not re.match(r"\s*\d{4}-?\d\d", text):
        return None
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _floats(array: pa.Array) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    known = _mask(array.is_valid())
    return np.array(pc.fill_null(array, np.nan).to_numpy(zero_copy_only=False)), known


def _is_text(kind: pa.DataType) -> bool:
    tests: list[Callable[[Any], bool]] = [pa.types.is_string, pa.types.is_large_string, pa.types.is_binary]
    return any(test(kind) for test in tests)


def _mask(array: pa.Array) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = array.to_numpy(zero_copy_only=False)
    return mask
