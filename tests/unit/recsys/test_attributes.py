"""What is known of items as features: each kind of column, what is missing, what is rare, and names that no order changes."""

from datetime import date

import numpy as np
import pyarrow as pa
import pytest

from recsys.data.attributes import BINS, Attributes, attributes_of
from recsys.errors import ConfigError


def told(attributes: Attributes, item: int) -> dict[str, float]:
    """What an item has, by the names of its features."""
    entries = slice(attributes.offsets[item], attributes.offsets[item + 1])
    names = [attributes.names[feature] for feature in attributes.feature[entries]]
    assert len(set(names)) == len(names)
    return dict(zip(names, attributes.weight[entries].astype(float).round(4).tolist(), strict=True))


def all_told(attributes: Attributes) -> list[set[str]]:
    return [set(told(attributes, item)) for item in range(len(attributes.offsets) - 1)]


def of(values: list, kind: pa.DataType | None = None, name: str = "x", **options) -> list[set[str]]:
    return all_told(attributes_of(pa.table({name: pa.array(values, kind)}), **options))


def test_a_catalogue_as_it_is_prepared():
    items = pa.table(
        {
            "item": [0, 1, 2],
            "item_id": ["a", "b", "c"],
            "title": ["The Matrix: Reloaded (2003)", "the matrix (1999)", None],
            "year": pa.array([2003, 1999, None], pa.int32()),
            "genres": [["Action", "Sci-Fi"], ["Action"], []],
            "count": [5, 0, 2],
        }
    )
    attributes = attributes_of(items)
    assert told(attributes, 0) == {
        **{"title=the": 0.3333, "title=matrix": 0.3333, "title=reloaded": 0.3333},
        **{"year=2000s": 1, "genres=Action": 0.5, "genres=Sci-Fi": 0.5},
    }
    assert told(attributes, 1) == {"title=the": 0.5, "title=matrix": 0.5, "year=1990s": 1, "genres=Action": 1}
    assert told(attributes, 2) == {"title?": 1, "year?": 1, "genres?": 1}
    assert attributes.told.tolist() == [True, True, False]
    assert attributes.offsets[-1] == len(attributes.feature) == 13


def test_a_category_of_too_few_items_shares_a_place_that_is_not_the_one_of_missing_values():
    values = [["a", "b"], ["a"], ["c"], None, ["a", "a"]]
    assert of(values, least=3) == [{"x=a"}, {"x=a"}, {"x*"}, {"x?"}, {"x=a"}]
    assert of(values, least=1) == [{"x=a", "x=b"}, {"x=a"}, {"x=c"}, {"x?"}, {"x=a"}]
    assert attributes_of(pa.table({"x": values}), least=3).told.tolist() == [True, True, False, False, True]
    assert attributes_of(pa.table({"x": values}), least=9).names == ("x?", "x*")


@pytest.mark.parametrize("kind", [pa.int64(), pa.float32(), pa.string(), pa.decimal128(22, 2)])
def test_many_numbers_are_cut_into_parts_of_like_size_also_where_they_are_text(kind):
    numbers = np.random.default_rng(0).permutation(1000)
    text = pa.array([f"{number}.0" for number in numbers])
    parts = of([*(text if kind == pa.string() else pa.array(numbers).cast(kind)).to_pylist(), None], kind)
    assert parts[-1] == {"x?"}
    counted = {name: sum(name in part for part in parts) for name in set().union(*parts) - {"x?"}}
    assert len(counted) == BINS and set(counted.values()) == {100}
    assert parts[numbers.argmin()] == {"x=part 0"} and parts[numbers.argmax()] == {f"x=part {BINS - 1}"}


@pytest.mark.parametrize(
    ("values", "kind", "features"),
    [
        ([1, 2, 1, None], pa.int8(), ["x=1", "x=2", "x=1", "x?"]),
        ([0.5, float("nan"), float("inf")], pa.float64(), ["x=0.5", "x?", "x?"]),
        ([True, False, None], None, ["x=true", "x=false", "x?"]),
        (["red", " red ", "", "12"], None, ["x=red", "x=red", "x?", "x=12"]),
        ([None, None], pa.null(), ["x?", "x?"]),
        ([date(2020, 1, 1), date(2020, 1, 1)], None, ["x=2020-01-01"] * 2),
        (pa.array(["u", "v", "u"]).dictionary_encode(), None, ["x=u", "x=v", "x=u"]),
    ],
    ids=str,
)
def test_other_columns_are_categories(values, kind, features):
    column = values if isinstance(values, pa.Array) else pa.array(values, kind)
    assert all_told(attributes_of(pa.table({"x": column}))) == [{feature} for feature in features]


def test_lists_of_numbers_and_chunks_and_items_without_any_column():
    chunks = pa.chunked_array([[[1, 2]], [[2], None]])
    assert all_told(attributes_of(pa.table({"x": chunks}))) == [{"x=1", "x=2"}, {"x=2"}, {"x?"}]
    nothing = attributes_of(pa.table({"item_id": ["a", "b"], "count": [1, 2]}))
    assert nothing.names == () and not nothing.told.any() and nothing.offsets.tolist() == [0, 0, 0]
    assert attributes_of(pa.table({"x": pa.array([], pa.string())})).offsets.tolist() == [0]


def test_only_columns_that_are_asked_for_are_read_and_unknown_ones_refused():
    items = pa.table({"title": ["a"], "colour": ["red"], "map": [{"a": 1}], "count": [1]})
    assert all_told(attributes_of(items, ["colour"])) == [{"colour=red"}]
    assert all_told(attributes_of(items)) == [{"title=a", "colour=red"}]
    for name, hint in (("color", "Did you mean colour"), ("count", "There are: title"), ("map", "struct.*Leave it out")):
        with pytest.raises(ConfigError, match=rf"model\.attributes.*{name}.*{hint}"):
            attributes_of(items, [name])


def test_of_what_some_items_have():
    table = pa.table({"genres": [["a", "b"], ["b", "c"], ["c"], ["a"]], "year": [1990, None, 2001, 2001]})
    learnt = attributes_of(table).of(np.array([True, False, False, False]))
    assert told(learnt, 0) == {"genres=a": 0.5, "genres=b": 0.5, "year=1990s": 1}
    assert told(learnt, 1) == {"genres=b": 1} and told(learnt, 2) == {} and told(learnt, 3) == {"genres=a": 1}
    assert learnt.told.tolist() == [True, True, False, True]


def test_names_do_not_depend_on_the_order_of_items():
    items = pa.table({"genres": [["b"], ["a", "c"], None], "year": pa.array([1999, 2001, 1990], pa.int32())})
    one, other = attributes_of(items), attributes_of(items.take([2, 0, 1]))
    assert one.names == other.names and [told(one, item) for item in (2, 0, 1)] == [told(other, item) for item in range(3)]
