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
    made = made.astype(np.float32)
    return made[:20], made[20:]


@pytest.mark.parametrize("kind", KINDS)
@given(vectors())
@settings(max_examples=150, deadline=None)
def test_no_score_that_reaches_a_floor_is_told_to_be_less(kind, drawn):
    queries, items = drawn
    scores = kind(items).scores(queries)
    told_BN = scores.block(0, len(items))
    for item, told_B in enumerate(told_BN.T):
        # The item's own true score is the highest floor that it reaches.
        true_B = rescore(queries, np.tile(items[item], (len(queries), 1)))
        assert (told_B >= scores.least(true_B)).all()


@pytest.mark.parametrize("dims", [1, 7, 64, 1280])
def test_bytes_carry_the_margin_even_where_everything_rounds_the_wrong_way(dims):
    """Every number is half a step off, one as long as can be: the margin is then the largest there is."""
    items = np.full((3, dims), 126.5, np.float32)
    items[:, 0] = 127
    queries = np.full((2, dims), 62.5, np.float32)
    queries[:, 0] = 63
    scores = Int8Products(items).scores(queries)
    true_B = rescore(queries, items[:2])
    assert (scores.least(true_B) <= scores.block(0, 3).T).all()


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
    """His vector is long where all items are alike, and small where they differ."""
    rng = np.random.default_rng(1)
    items = rng.standard_normal((30_000, 16)).astype(np.float32)
    items[:, 0] = 1
    queries = rng.standard_normal((5, 16)).astype(np.float32)
    queries[3, 0] = 1000
    asked = []
    finer = Float32Products.scores
    monkeypatch.setattr(Float32Products, "scores", lambda self, queries: asked.append(len(queries)) or finer(self, queries))
    products = Int8Products(items)
    found = top_k(queries, items, 10, products=products)
    assert asked == [1]
    expected = top_k(queries, items, 10)
    assert (found[0] == expected[0]).all() and (found[1] == expected[1]).all()
