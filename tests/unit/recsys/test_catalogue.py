"""Titles are found whatever their case and accents."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.data import schema
from recsys.retrieval.catalogue import Catalogue

TITLES = ["Amélie", "The Matrix", "Matrix Reloaded", "Aliens (1986)", "amelie ii", "100% [Wolf]", None, "Alien"]


@pytest.fixture
def catalogue():
    return of(TITLES)


def of(titles):
    numbers = range(len(titles))
    fields = {schema.ITEM: pa.int32(), schema.ITEM_ID: pa.string(), schema.TITLE: pa.string(), schema.COUNT: pa.int64()}
    columns = [numbers, [f"i{number}" for number in numbers], titles, numbers]
    return Catalogue(pa.table([pa.array(list(c), t) for c, t in zip(columns, fields.values(), strict=True)], list(fields)))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("AMELIE", [4, 0]),  # both begin with it; the more watched first
        ("matrix", [2, 1]),  # the beginning of a title before the beginning of a word
        ("lien", [7, 3]),
        ("  the   matrix ", [1]),
        ("matrix the", [1]),  # in another order
        ("matrix nowhere", []),
        ("trix the", []),  # the beginnings of words
        ("1986 aliens", [3]),  # whatever stands between words
        ("al'iens", [3]),
        ("100% [", [5]),
        (".*", []),
        ("\ud800alien", [7, 3]),
        ("", []),
        ("i6", [6]),  # without a title, the id stands for it
    ],
)
def test_search(catalogue, text, found):
    assert catalogue.search(text, 10).tolist() == found
    assert catalogue.search(text, 1).tolist() == found[:1]


@given(st.lists(st.text(max_size=12), max_size=20), st.text(max_size=4))
def test_search_takes_any_text(titles, text):
    found = of(titles).search(text, 5)
    assert len(found) <= 5 and (found < len(titles)).all()


def test_every_title_finds_itself(catalogue):
    for number, title in enumerate(TITLES):
        if title is not None:
            assert number in catalogue.search(title, 10)


def test_describes_and_numbers(catalogue):
    assert catalogue.describe(6) == {"item_id": "i6", "title": "i6", "count": 6}
    numbers, unknown = catalogue.numbers(["i2", "nope", "i0", "i2", "nope"])
    assert numbers.tolist() == [2, 0] and unknown == ["nope"]
    assert numbers.dtype == np.int32
