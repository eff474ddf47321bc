"""Sets of items as ascending arrays, against Python's own."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recsys.retrieval.filters import contains, intersection, union, without

ITEMS = st.lists(st.integers(0, 12), max_size=9)


def ascending(items: list[int]) -> np.ndarray:
    return np.array(sorted(set(items)), np.int32)


@given(sets=st.lists(ITEMS, max_size=3), kind=st.sampled_from([np.int32, np.int64]))
def test_a_union_holds_every_item_once_ascending(sets: list[list[int]], kind: type) -> None:
    found = union(*[np.array(items, kind) for items in sets])
    assert found.dtype == np.int32 and found.tolist() == sorted({item for items in sets for item in items})


@given(one=ITEMS, other=ITEMS)
def test_the_rest_is_what_sets_are(one: list[int], other: list[int]) -> None:
    left, right = ascending(one), ascending(other)
    assert intersection(left, right).tolist() == sorted(set(one) & set(other))
    assert contains(left, right).tolist() == [item in one for item in right.tolist()]
    assert without(np.array(one, np.int32), right).tolist() == [item for item in one if item not in other]


def test_what_goes_in_is_not_changed() -> None:
    items = np.array([3, 1, 3], np.int32)
    union(items)
    assert items.tolist() == [3, 1, 3]
