"""What products tell of scores is never less than the scores are, and not much more."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.retrieval.products import Float32Products, Int8Products
from recsys.retrieval.topk import rescore, top_k

KINDS = [Float32Products, Int8Products]


@st.composite
def vectors(draw):
    """Of users and of items: round, spiky, of very different lengths, along one axis, or none at all."""
    dims, rng = draw(st.sampled_from([1, 2, 7, 64, 300])), np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    made = rng.standard_normal((60, dims)) ** draw(st.sampled_from([1, 3, 9]))
    made *= 10.0 ** rng.uniform(*draw(st.sampled_from([(0, 0), (-3, 3), (-12, -9), (6, 9)])), (60, 1))
    made[rng.random(made.shape) < draw(st.sampled_from([0, 0.9]))] = 0
    if draw(st.booleans()):  # in one dimension all items are alike
        made[20:, -1] = 3
    made = made.astype(np.float32)
    return made[:20], made[20:]


@pytest.mark.parametrize("kind", KINDS)
@given(vectors(), st.sampled_from([7, 1 << 15]))
@settings(max_examples=150)
def test_no_score_that_reaches_a_floor_is_told_to_be_less(kind, drawn, rows):
    queries, items = drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Int8Products, "ROWS", rows)
        products = kind(items)
    scores, step = products.scores(queries), min(rows, len(items))
    told_BN = np.hstack([scores.block(first, min(first + step, len(items))).copy() for first in range(0, len(items), step)])
    for item, told_B in enumerate(told_BN.T):
        # The item's own true score is the highest floor that it reaches.
        true_B = rescore(queries, np.tile(items[item], (len(queries), 1)))
        assert (told_B >= scores.least(true_B)).all()


@pytest.mark.parametrize("dims", [1, 7, 64, 1280])
def test_bytes_carry_the_margin_even_where_everything_rounds_the_wrong_way(dims, monkeypatch):
    """Every number is half a step off, one as long as can be: the margin is then the largest there is, and not that of the last
    block, of which bytes say all."""
    monkeypatch.setattr(Int8Products, "ROWS", 1)
    items = np.full((3, dims), 126.5, np.float32)
    items[:, 0] = 127
    items[1] = -items[1]  # what all have in common is left out
    items[2] = np.eye(dims)[0]
    queries = np.full((2, dims), 62.5, np.float32)
    queries[:, 0] = 63
    scores = Int8Products(items).scores(queries)
    for item in range(3):
        told_B = scores.block(item, item + 1)[:, 0]
        assert (scores.least(rescore(queries, np.tile(items[item], (2, 1)))) <= told_B).all()
    assert scores.queries.shape[1] > dims


def test_bytes_leave_few_candidates():
    """A hundredth of the items at most may reach the tenth best score, so much is told by bytes."""
    rng = np.random.default_rng(0)
    queries, items = (rng.standard_normal((count, 64)).astype(np.float32) for count in (8, 20_000))
    scores = Int8Products(items).scores(queries)
    floors_B = top_k(queries, items, 10)[1][:, -1]
    told_BN = scores.block(0, len(items))
    reach_B = (told_BN >= scores.least(floors_B)[:, None]).sum(axis=1)
    assert (reach_B >= 10).all() and (reach_B <= 200).all()


def test_a_user_of_whom_bytes_tell_too_little_is_asked_of_finer_products(monkeypatch):
    """His vector is long where all items are nearly alike."""
    rng = np.random.default_rng(1)
    items = rng.standard_normal((70_000, 16)).astype(np.float32)
    items[:, 0] = 1 + 1e-6 * items[:, 0]
    queries = rng.standard_normal((5, 16)).astype(np.float32)
    queries[3, 0] = 10_000
    expected = top_k(queries, items, 10, never=np.arange(0, 70_000, 2, dtype=np.int32))
    asked, finer = [], Float32Products.scores
    monkeypatch.setattr(Float32Products, "scores", lambda self, queries: asked.append(len(queries)) or finer(self, queries))
    found = top_k(queries, items, 10, never=np.arange(0, 70_000, 2, dtype=np.int32), products=Int8Products(items))
    assert asked == [1]
    assert (found[0] == expected[0]).all() and (found[1] == expected[1]).all()


def test_what_all_items_have_in_common_tells_bytes_nothing_less(monkeypatch):
    """Models of ratings have a dimension of ones, where users have what they rate on average."""
    rng = np.random.default_rng(2)
    queries, items = rng.standard_normal((64, 256)) * 0.1, rng.standard_normal((5_000, 256)) * 0.1
    queries[:, 7], items[:, 7] = 3.5, 1
    items[::5] = 0  # not indexed
    indexed = np.flatnonzero(items.any(axis=1)).astype(np.int32)
    queries, items = queries.astype(np.float32), items.astype(np.float32)
    expected = top_k(queries, items, 10, never=np.arange(0, 5_000, 5, dtype=np.int32))
    monkeypatch.setattr(Float32Products, "scores", lambda *_: pytest.fail("bytes told too little"))
    found = top_k(queries, items, 10, never=np.arange(0, 5_000, 5, dtype=np.int32), products=Int8Products(items, indexed))
    assert (found[0] == expected[0]).all() and (found[1] == expected[1]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("far", [1e-24, 1e15])
def test_vectors_of_any_length_have_lists(kind, far):
    rng = np.random.default_rng(3)
    queries, items = (rng.standard_normal((count, 16)).astype(np.float32) for count in (20, 200))
    usual = top_k(queries, items, 10)[0]
    stretched = top_k(queries / np.float32(far), items * np.float32(far), 10, products=kind(items * np.float32(far)))[0]
    assert (stretched == usual).mean() > 0.95  # rounding may exchange neighbours
    assert (
        top_k(np.zeros((1, 16), np.float32), items * np.float32(far), 10, products=kind(items * np.float32(far)))[0]
        == range(10)
    ).all()
