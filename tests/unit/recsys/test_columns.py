"""Conditions on columns, against a loop over the rows."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import RequestError
from recsys.retrieval.columns import Columns
from recsys.retrieval.requests import Condition

GENRES = ("Comedy", "Drama", "Horror", "Western")
LANGUAGES = ("en", "fr", "", "EN")

ROW = st.fixed_dictionaries(
    {
        "genres": st.none() | st.lists(st.none() | st.sampled_from(GENRES), max_size=4),
        "year": st.none() | st.integers(1990, 1996),
        "score": st.none() | st.sampled_from([0.5, 1.0, 2.25, math.nan]),
        "language": st.none() | st.sampled_from(LANGUAGES),
        "new": st.none() | st.booleans(),
        "rooms": st.none() | st.lists(st.integers(0, 3), max_size=3),
    }
)
SCHEMA = pa.schema(
    [
        ("item", pa.int32()),
        ("item_id", pa.string()),
        ("genres", pa.list_(pa.string())),
        ("year", pa.int32()),
        ("score", pa.float64()),
        ("language", pa.string()),
        ("new", pa.bool_()),
        ("rooms", pa.list_(pa.int64())),
        ("place", pa.struct([("x", pa.int32())])),
    ]
)


def table(rows: list[dict]) -> pa.Table:
    columns = {name: [row[name] for row in rows] for name in ("genres", "year", "score", "language", "new", "rooms")}
    numbers = list(range(len(rows)))
    columns |= {"item": numbers, "item_id": [f"i{n}" for n in numbers], "place": [None] * len(rows)}
    return pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA)


def lists_of(values, extra):
    return st.none() | st.lists(st.sampled_from([*values, extra]), max_size=3).map(tuple)


def several(column, values, extra):
    any_, all_, none = (lists_of(values, extra) for _ in range(3))
    return st.builds(Condition, st.just(column), any=any_, all=all_, none=none)


def single(column, values, extra):
    value = st.none() | st.sampled_from([*values, extra])
    return st.builds(Condition, st.just(column), any=lists_of(values, extra), none=lists_of(values, extra), equals=value)


def numbers(column, values, extra):
    bound = st.none() | st.sampled_from([*values, extra, min(values) - 0.5])
    return st.builds(
        Condition, st.just(column), any=lists_of(values, extra), none=lists_of(values, extra), min=bound, max=bound
    ).filter(lambda made: None in (made.min, made.max) or made.min <= made.max)


CONDITION = st.one_of(
    several("genres", GENRES, "None"),
    several("rooms", (0, 1, 2), 9),
    single("language", LANGUAGES, "de"),
    single("new", (True, False), True),
    numbers("year", (1990, 1993, 1996), 2050),
    numbers("score", (0.5, 1.0, 2.25), 9.5),
).filter(lambda condition: condition.asked)


def meets(value, condition: Condition) -> bool:
    """By its words."""
    values = {v for v in (value if isinstance(value, list) else [value]) if v is not None}
    known = {v for v in values if v == v}
    return (
        (condition.any is None or bool(known & set(condition.any)))
        and (condition.all is None or known >= set(condition.all))
        and (condition.none is None or not known & set(condition.none))
        and (condition.equals is None or condition.equals in known)
        and (condition.min is None or any(v >= condition.min for v in known))
        and (condition.max is None or any(v <= condition.max for v in known))
    )


@given(st.lists(ROW, max_size=12), st.lists(CONDITION, min_size=1, max_size=3), st.data())
def test_what_is_left_is_what_a_loop_leaves(rows, conditions, data):
    eligible = sorted(data.draw(st.sets(st.integers(0, max(len(rows) - 1, 0)), max_size=len(rows)))) if rows else []
    columns = Columns(table(rows), np.array(eligible, np.int32))
    columns.check(conditions)
    wanted = [item for item in eligible if all(meets(rows[item][c.column], c) for c in conditions)]
    found = columns.allowed(tuple(conditions))
    assert found.tolist() == wanted and found.dtype == np.int32
    assert columns.allowed(tuple(conditions)) is found  # remembered


def test_values_that_no_item_has_are_named():
    rows = [{"genres": ["Drama"], "year": 1990, "score": 1.0, "language": "en", "new": True, "rooms": [1]}]
    columns = Columns(table(rows), np.zeros(1, np.int32))
    here = (Condition("genres", any=("Drama",), none=("Drama",)), Condition("year", equals=1990, min=3000.0))
    assert columns.nowhere(here) is None
    wrong = (Condition("genres", any=("Drama", "Comdy")), Condition("year", equals=2050))
    assert columns.nowhere(wrong) == "no item has genres 'Comdy', year 2050"
    assert columns.nowhere((Condition("genres", none=("Horor",)),)) is None, "it takes nothing away"
    many = Condition("genres", any=("x" * 1000, "b"), all=("c", "d", "e"))
    assert columns.nowhere((many,)) == f"no item has genres {'x' * 60 + '…'!r}, genres 'b', genres 'c' and 2 more"


def test_columns_of_other_kinds_and_the_bundles_own_are_not_offered():
    columns = Columns(table([]), np.zeros(0, np.int32))
    assert columns.names == ["item_id", "genres", "year", "score", "language", "new", "rooms"]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (Condition("genre", any=("Drama",)), "no column 'genre'. There are: item_id, genres, year"),
        (Condition("item", equals=1), "no column 'item'"),
        (Condition("place", equals=1), "no column 'place'"),
        (Condition("genres"), "genres: say any, all, none, equals, min or max"),
        (Condition("genres", equals="Drama"), "genres has several values"),
        (Condition("language", all=("en",)), "language has one value"),
        (Condition("language", min=1.0), "language is not numbers"),
        (Condition("rooms", max=1.0), "rooms is not numbers"),
        (Condition("year", min=2000.0, max=1999.0), "year: min is above max"),
        (Condition("year", any=("1990",)), "'1990' should be a number"),
        (Condition("genres", none=(3,)), "3 should be a string"),
        (Condition("genres", none=(("Drama",),)), "should be a string"),
        (Condition("year", equals=True), "True should be a number"),
        (Condition("year", min=True), "True should be a number"),
        (Condition("new", equals=1), "1 should be true or false"),
    ],
)
def test_what_cannot_be_asked_is_told(condition, message):
    rows = [{"genres": ["Drama"], "year": 1990, "score": 1.0, "language": "en", "new": True, "rooms": [1]}]
    with pytest.raises(RequestError, match=message) as error:
        Columns(table(rows), np.zeros(1, np.int32)).check([condition])
    assert error.value.code == "bad_filter"


def test_a_catalogue_in_pieces_is_one():
    rows = [{"genres": ["Drama"], "year": year, "score": 1.0, "language": "en", "new": True, "rooms": [1]} for year in range(6)]
    whole = table(rows)
    pieces = pa.concat_tables([whole.slice(0, 2), whole.slice(2, 0), whole.slice(2)])
    found = Columns(pieces, np.arange(6, dtype=np.int32)).allowed((Condition("year", min=1.0, max=3.0),))
    assert found.tolist() == [1, 2, 3]


def test_warm_columns_are_those_that_conditions_are_about():
    numbers = range(2000)
    told = pa.table(
        {
            "title": [f"Film {number}" for number in numbers],
            "genres": [[GENRES[number % 4]] for number in numbers],
            "year": [1990 + number % 7 for number in numbers],
            "language": ["en" if number % 3 else "fr" for number in numbers],
            "length": [str(90 + number % 60) for number in numbers],
            "price": [0.01 * number for number in numbers],
        }
    )
    columns = Columns(told, np.arange(len(told), dtype=np.int32))
    columns.warm()
    ready = {name for name, column in columns._lookup._columns.items() if "_listed" in vars(column)}
    assert ready == {"genres", "year", "language", "length"}
    assert {name for name, column in columns._lookup._columns.items() if "_sorted" in vars(column)} == {
        "year",
        "length",
        "price",
    }
    assert columns.allowed((Condition("genres", any=("Drama",)), Condition("year", max=1990.0))).tolist() == [
        number for number in numbers if number % 4 == 1 and number % 7 == 0
    ]


def test_a_table_without_rows_is_warm_at_once():
    columns = Columns(table([]), np.zeros(0, np.int32))
    columns.warm()
    assert columns.allowed((Condition("year", min=1.0),)).tolist() == []


def test_text_that_is_all_numbers_has_a_range_as_csv_tells_them():
    told = pa.table({"item_id": ["a", "b", "c", "d"], "length": ["90", None, "120.5", " 7"], "rated": ["18", "PG", "7", "12"]})
    columns = Columns(told, np.arange(4, dtype=np.int32))
    assert columns.allowed((Condition("length", min=90.0),)).tolist() == [0, 2]
    assert columns.allowed((Condition("length", min=8.0, max=100.0),)).tolist() == [0]
    assert columns.allowed((Condition("length", equals="90"),)).tolist() == [0]
    columns.check([Condition("length", max=8.0)])
    with pytest.raises(RequestError, match="rated is not numbers"):
        columns.check([Condition("rated", min=1.0)])
