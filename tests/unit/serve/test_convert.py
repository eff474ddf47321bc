"""Answers as JSON that is made once: what a dictionary made anew would say."""

from datetime import date
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest

from recsys.retrieval.answers import answer_json, to_json
from recsys.retrieval.catalogue import Catalogue
from recsys.retrieval.requests import Answer, Cause
from serve import convert
from serve.convert import Describer, Descriptions

ITEMS = pa.table(
    {
        "item": [0, 1, 2],
        "item_id": ["a", "b", 'ü"'],
        "title": ["A", None, "Der Zug"],
        "genres": [["x"], [], None],
        "came": [date(2020, 1, 2), None, date(1999, 12, 31)],
        "grade": [1.5, float("nan"), None],
        "score": [7.5, 8.5, 9.5],
        "count": [3, 2, 1],
    }
)


def answer(*items: int, **more: Any) -> Answer:
    scores = np.array([1 / 3, -2.5e-7, 1e8], np.float32)[: len(items)]
    chosen = np.array(items, np.int32)
    told = {"item_ids": [ITEMS["item_id"][item].as_py() for item in items], "items": chosen, "scores": scores}
    return Answer(**{**told, "path": "exact", "fallback": False, "version": "1"} | more)


def parsed(told: dict[str, Any]) -> Any:
    return orjson.loads(to_json(told))


@pytest.mark.parametrize("items", [(), (1,), (2, 0, 1), (0, 0)], ids=str)
def test_what_is_remembered_is_what_would_be_made_anew(items: tuple[int, ...]) -> None:
    catalogue = Catalogue(ITEMS)
    descriptions, anew = Descriptions(catalogue), answer_json(answer(*items), catalogue.describe)
    for _ in range(2):  # before and after they are known
        (told,) = descriptions.answers([answer(*items)])
        assert parsed(told) == parsed(anew)
        text = to_json(told)
        assert text.count(b'"score":') == len(items), "a column of that name gives way to the answer's own"


def test_explained_ones_stand_among_others_in_their_order() -> None:
    because = [(Cause(2, 0.5), Cause(0, 0.25)), ()]
    plain, explained = answer(0, 2), answer(1, 0, because=because)
    found = Descriptions(Catalogue(ITEMS)).answers([plain, explained, plain])
    expected = [answer_json(each, Catalogue(ITEMS).describe) for each in (plain, explained, plain)]
    assert list(map(parsed, found)) == list(map(parsed, expected))


def test_no_more_is_remembered_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "REMEMBERED", 2)
    catalogue = Catalogue(ITEMS)
    descriptions = Descriptions(catalogue)
    for items in ((0,), (1, 0), (2, 1), (0,)):
        (told,) = descriptions.answers([answer(*items)])
        assert parsed(told) == parsed(answer_json(answer(*items), catalogue.describe))
        assert len(descriptions._known) <= 2


def test_each_bundle_has_descriptions_of_its_own() -> None:
    class Recommends:
        items = Catalogue(ITEMS)

    one, other, describer = Recommends(), Recommends(), Describer()
    assert describer.of(one) is describer.of(one)  # type: ignore[arg-type]
    assert describer.of(one) is not describer.of(other)  # type: ignore[arg-type]
