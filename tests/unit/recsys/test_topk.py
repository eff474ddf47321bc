"""Exact search against a sort of all scores in double precision."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.retrieval import topk
from recsys.retrieval.products import Float32Products, Int8Products
from recsys.retrieval.topk import NOTHING, nearest, order, orders, rescore, top_k

KINDS = [Float32Products, Int8Products]


def by_sorting(queries, items, k, hidden):
    """The definition: every score, rounded to single precision, sorted by (-score, item)."""
    lists = []
    for query, gone in zip(queries, hidden, strict=True):
        scores = (items.astype(np.float64) * query).sum(axis=1).astype(np.float32)
        order = np.lexsort((np.arange(len(items)), -scores))
        lists.append([int(item) for item in order if int(item) not in gone][:k])
    return lists


def as_lists(ids_BK):
    return [row[row != NOTHING].tolist() for row in ids_BK]


def compressed(hidden):
    offsets = np.concatenate([[0], np.cumsum([len(gone) for gone in hidden])]).astype(np.int64)
    return offsets, np.array([item for gone in hidden for item in sorted(gone)], np.int32)


@st.composite
def searches(draw):
    seed, users, items = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 70)), draw(st.integers(1, 300))
    dims, k = draw(st.sampled_from([1, 3, 8, 16])), draw(st.integers(1, 320))
    rng = np.random.default_rng(seed)
    levels = draw(st.sampled_from([2, 5, None]))  # few levels: many scores that are equal
    vectors = rng.standard_normal((users + items, dims)) if levels is None else rng.integers(0, levels, (users + items, dims))
    hidden = [set(rng.choice(items, rng.integers(0, items + 1), replace=False).tolist()) for _ in range(users)]
    return vectors[:users].astype(np.float32), vectors[users:].astype(np.float32), k, hidden, draw(st.booleans())


@given(
    searches(),
    st.sampled_from(KINDS),
    st.sampled_from([64, 1000, 1 << 15]),
    st.sampled_from([1, 5, 1 << 10]),
    st.sampled_from([32, 320]),
    st.sampled_from([(0, 1), (0, 4), (0, 64), (1 << 19, 1)]),
)
@settings(max_examples=300)
def test_finds_what_sorting_finds_whatever_the_products_and_their_blocks(search, kind, rows, crowded, longest, grouped):
    queries, items, k, hidden, some_are_for_nobody = search
    never = np.arange(0, len(items), 3, dtype=np.int32) if some_are_for_nobody else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk, "MOST_CANDIDATES", rows)
        patch.setattr(Int8Products, "ROWS", rows)
        patch.setattr(Float32Products, "BLOCK", rows)
        patch.setattr(Int8Products, "crowded", crowded)
        patch.setattr(Int8Products, "LONGEST", longest)
        patch.setattr(topk, "AT_ONCE", rows)
        in_cache, many = grouped
        for name, value in {"IN_CACHE": in_cache, "MANY": many, "LEAST_GROUPS": 8, "GROUP": 4, "LANES": 1}.items():
            patch.setattr(topk, name, value)
        ids_BK, scores_BK = top_k(queries, items, k, seen=compressed(hidden), never=never, products=kind(items))
    gone = set() if never is None else set(never.tolist())
    assert as_lists(ids_BK) == by_sorting(queries, items, k, [some | gone for some in hidden])
    assert (np.isinf(scores_BK) == (ids_BK == NOTHING)).all()


@given(searches(), st.integers(1, 64))
def test_candidates_of_many_queries_are_ordered_as_those_of_each_alone(search, width):
    queries, items, k, hidden, _ = search
    rng = np.random.default_rng(len(items))
    candidates_BC = rng.integers(NOTHING, len(items), (len(queries), width))  # some twice, some NOTHING
    ids_BK, scores_BK = orders(queries, items, candidates_BC, k, compressed(hidden))
    assert ids_BK.shape == scores_BK.shape == (len(queries), min(k, width))
    for query, candidates, gone, ids, scores in zip(queries, candidates_BC, hidden, ids_BK, scores_BK, strict=True):
        kept = np.array(sorted(set(candidates.tolist()) - gone - {NOTHING}), np.int32)
        expected_ids, expected_scores = order(query, items, kept, k)
        padding = len(ids) - len(expected_ids)
        assert ids.tolist() == expected_ids.tolist() + [NOTHING] * padding
        assert scores.tolist() == expected_scores.tolist() + [-np.inf] * padding


@pytest.mark.parametrize("scale", [1e-42, 1e-25, 1e-12, 1e12, 1e18])
@pytest.mark.parametrize("dims", [8, 300])
def test_finds_what_sorting_finds_of_tiny_and_of_huge_numbers(scale, dims):
    """Whose products have few digits in single precision, or none."""
    rng = np.random.default_rng(3)
    items = (rng.standard_normal((400, dims)) * scale).astype(np.float32)
    queries = (rng.standard_normal((5, dims)) * scale).astype(np.float32)
    items[::7], items[3::7] = items[1], -items[1]
    ids_BK, _ = top_k(queries, items, 12, products=Int8Products(items))
    assert as_lists(ids_BK) == by_sorting(queries, items, 12, [set()] * len(queries))


def test_sums_that_overflow_in_single_precision_are_told_apart_truly():
    items = np.array([[3e19, -3e19], [3e19, -2.9e19], [1, 1], [-3e19, 3e19]] * 20, np.float32)
    queries = np.array([[3e19, 3e19], [1, 1]], np.float32)
    ids_BK, _ = top_k(queries, items, 7, products=Int8Products(items))
    assert as_lists(ids_BK) == by_sorting(queries, items, 7, [set()] * 2)


def test_products_that_overflow_to_nothing_take_no_list_with_them():
    items = np.concatenate([np.full((95, 2), 1, np.float32), np.full((5, 2), 3e19, np.float32) * np.float32([1, -1])])
    ids_BK, scores_BK = top_k(np.full((1, 2), 3e19, np.float32), items, 3, products=Float32Products(items))
    assert ids_BK.tolist() == [[0, 1, 2]] and np.isfinite(scores_BK).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_does_not_depend_on_the_batch(kind):
    rng = np.random.default_rng(1)
    base = rng.standard_normal((50, 64))
    # Bundles of vectors a rounding apart: a matrix product alone would order them differently in each batch.
    items = (base[rng.integers(0, 50, 5000)] * (1 + 1e-7 * rng.standard_normal((5000, 1)))).astype(np.float32)
    queries = rng.standard_normal((130, 64)).astype(np.float32)
    together, products = top_k(queries, items, 10), kind(items)
    for size in (1, 3, 64):
        parts = [top_k(queries[first : first + size], items, 10, products=products) for first in range(0, 130, size)]
        assert (np.concatenate([ids for ids, _ in parts]) == together[0]).all()
        assert (np.concatenate([scores for _, scores in parts]) == together[1]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_many_candidates_of_long_vectors_take_little_memory(kind):
    """All items are alike, so that every one of them is a candidate: scored at once they would take 12 GB."""
    queries, items = np.ones((64, 1024), np.float32), np.ones((8_000, 1024), np.float32)
    products = kind(items)
    tracemalloc.start()
    try:
        ids_BK, _ = top_k(queries, items, 10, products=products)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (ids_BK == np.arange(10)).all()
    assert peak < 100 << 20


def test_never_and_allowed_choose_the_items():
    rng = np.random.default_rng(2)
    queries, items = rng.standard_normal((5, 8)).astype(np.float32), rng.standard_normal((40, 8)).astype(np.float32)
    never = np.arange(0, 40, 3, dtype=np.int32)
    allowed = np.setdiff1d(np.arange(40), never).astype(np.int32)
    hidden = [{1, 2, 3} for _ in queries]
    expected = by_sorting(queries, items, 40, [gone | set(never.tolist()) for gone in hidden])
    assert as_lists(top_k(queries, items, 40, seen=compressed(hidden), never=never)[0]) == expected
    assert as_lists(top_k(queries, items, 40, seen=compressed(hidden), allowed=allowed)[0]) == expected
    assert top_k(queries, items, 5, allowed=np.zeros(0, np.int32))[0].shape == (5, 0)


def test_scores_are_those_of_each_row_alone():
    rng = np.random.default_rng(3)
    vectors, query = rng.standard_normal((100, 24)).astype(np.float32), rng.standard_normal(24).astype(np.float32)
    alone = np.array([rescore(query, vector[None])[0] for vector in vectors])
    assert (rescore(query, vectors) == alone).all()
    assert (rescore(np.tile(query, (100, 1)), vectors) == alone).all()


def test_a_query_of_zeros_lists_items_by_number():
    items = np.random.default_rng(4).standard_normal((100, 8)).astype(np.float32)
    assert top_k(np.zeros((1, 8), np.float32), items, 5)[0].tolist() == [[0, 1, 2, 3, 4]]


def test_nearest_leaves_the_item_out_and_ties_go_by_number():
    vectors = np.array([[1, 0], [2, 0], [0, 1], [3, 0], [1, 1]], np.float32)
    items, cosines = nearest(vectors, np.array([0, 1, 2, 3, 4], np.int32), 1, 3)
    assert items.tolist() == [0, 3, 4]
    assert cosines == pytest.approx([1, 1, 2**-0.5])
    assert nearest(vectors, np.array([1], np.int32), 1, 3)[0].tolist() == []
