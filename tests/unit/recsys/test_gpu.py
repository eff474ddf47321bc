"""Exact search as a GPU makes it, on PyTorch's processor: there is no other here."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.bundle.read import open_bundle
from recsys.config import IndexConfig
from recsys.errors import ConfigError
from recsys.retrieval import gpu
from recsys.retrieval.filters import compressed
from recsys.retrieval.gpu import GpuSearch
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.requests import Answer, Condition, Request
from recsys.retrieval.topk import NOTHING, top_k
from tests.bundles import planted, write_planted

NONE = np.zeros(0, np.int32)


@st.composite
def worlds(draw):
    """Queries, items of which many are alike, what is hidden from whom, and what from all."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    items, queries, dims = draw(st.integers(1, 300)), draw(st.integers(1, 6)), draw(st.sampled_from([1, 3, 8]))
    vectors = rng.integers(-2, 3, (items, dims)) if draw(st.booleans()) else rng.normal(size=(items, dims))
    scale = np.float32(draw(st.sampled_from([0.0, 1e-20, 1.0, 1e19, 1e30])))
    seen = [np.flatnonzero(rng.random(items) < draw(st.sampled_from([0, 0.1, 0.9]))).astype(np.int32) for _ in range(queries)]
    never = np.flatnonzero(rng.random(items) < draw(st.sampled_from([0, 0.3, 1]))).astype(np.int32)
    return rng.normal(size=(queries, dims)).astype(np.float32), vectors.astype(np.float32) * scale, compressed(seen), never


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning", "ignore:invalid value encountered:RuntimeWarning")
@given(worlds(), st.integers(1, 40), st.sampled_from([1 << 26, 64]))
def test_lists_are_those_of_the_processor_bit_by_bit(world, k, at_once):
    queries, items, seen, never = world
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "AT_ONCE", at_once)  # in one block, or in many
        found = GpuSearch(items, never, "cpu").top_k(queries, k, seen)
    for mine, expected in zip(found, top_k(queries, items, k, seen=seen, never=never), strict=True):
        assert mine.dtype == expected.dtype and np.array_equal(mine, expected)


@given(worlds(), st.integers(1, 40))
def test_what_may_be_listed_is_listed_alone(world, k):
    queries, items, seen, _ = world
    may = np.arange(len(items)) % 3 == 0
    ids, scores = GpuSearch(items, NONE, "cpu").top_k(queries, k, seen, may)
    wanted, of_them = top_k(queries, items, k, seen=seen, never=np.flatnonzero(~may).astype(np.int32))
    assert np.array_equal(ids, wanted) and np.array_equal(scores, of_them)


def test_queries_with_more_of_the_same_than_candidates_are_searched_on_the_processor(monkeypatch):
    items = np.ones((500, 4), np.float32)
    search = GpuSearch(items, NONE, "cpu")
    asked = []
    told = search._on_processor
    monkeypatch.setattr(search, "_on_processor", lambda *rest: asked.append(len(rest[0])) or told(*rest))
    ids, _ = search.top_k(np.ones((2, 4), np.float32), 10, compressed([NONE, NONE]))
    assert asked == [2] and ids.tolist() == [list(range(10))] * 2
    search.top_k(np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32) * 0, 10, compressed([NONE, NONE]))
    assert asked == [2, 2]


def test_distinct_scores_need_no_second_search(monkeypatch):
    rng = np.random.default_rng(0)
    search = GpuSearch(rng.normal(size=(5000, 16)).astype(np.float32), NONE, "cpu")
    monkeypatch.setattr(search, "_on_processor", lambda *_: pytest.fail("asked"))
    ids, _ = search.top_k(rng.normal(size=(64, 16)).astype(np.float32), 10, compressed([NONE] * 64))
    assert (ids != NOTHING).all()


@pytest.mark.usefixtures("own_receipts_and_one_thread")
def test_a_recommender_answers_alike_with_an_index_or_without(tmp_path):
    """Of an index that misses things, it finds all; who names the index gets it."""
    world = planted(users=40, items=6000, untrained=7)
    folder = write_planted(tmp_path, world=world, index=IndexConfig(kind="hnsw"), recall_floor=0.9)
    plain, there = (Recommender(open_bundle(folder), device=device) for device in (None, "cpu"))
    even = Condition("item_id", none=tuple(f"i{item}" for item in range(0, 1000, 2)))
    for told in ({}, {"exclude": ("i1", "i5")}, {"k": 300}, {"filters": (even,)}, {"user": None}):
        asked = [Request(**{"user": f"u{user}", **told}) for user in range(40)]
        exact = [Request(**{"user": f"u{user}", **told, "mode": "exact"}) for user in range(40)]
        for mine, expected in zip(there.recommend(asked), plain.recommend(exact), strict=True):
            assert isinstance(mine, Answer) and isinstance(expected, Answer)
            assert (mine.item_ids, mine.path, mine.reason) == (expected.item_ids, expected.path, expected.reason)
            assert np.array_equal(mine.scores, expected.scores)
    (named,) = there.recommend([Request(user="u1", mode="ann")])
    assert isinstance(named, Answer) and named.path == "ann"
    assert there.audit is None


def test_a_device_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"search on cuda:99: .* serve without it: --gpus 0"):
        Recommender(open_bundle(write_planted(tmp_path)), device="cuda:99")
