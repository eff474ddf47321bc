"""The index is chosen by size, holds only what was trained, and is measured at the settings it is served with."""

import faiss
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from recsys.config import IndexConfig
from recsys.retrieval import ann

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with threadpool_limits(1):
        yield


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


ITEMS = unit(RNG.standard_normal((1500, 32)))
QUERIES = unit(RNG.standard_normal((200, 32)))
INDEXED = np.setdiff1d(np.arange(1500), np.arange(0, 1500, 7)).astype(np.int32)


@pytest.mark.parametrize(
    ("items", "kind"), [(0, "flat"), (300_000, "flat"), (300_001, "hnsw"), (2_000_000, "hnsw"), (2_000_001, "ivf")]
)
def test_kind_by_size(items, kind):
    assert ann.choose(items, IndexConfig()) == kind
    assert ann.choose(items, IndexConfig(kind="hnsw")) == "hnsw"


@pytest.mark.parametrize("storage", ["fp16", "int8", "pq"])
def test_codes_are_scanned_of_small_catalogues_alone(storage):
    """Exact search multiplies bytes for a whole batch; a scan of codes does not."""
    kinds = [ann.choose(items, IndexConfig(storage=storage)) for items in (20_000, 20_001)]
    assert kinds == ["flat", "hnsw"]
    assert ann.choose(20_000, IndexConfig(storage=storage, flat_until=1_000)) == "hnsw"


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_ids_are_item_numbers_and_only_of_what_is_indexed(kind):
    index, report = ann.build(ITEMS, INDEXED, IndexConfig(kind=kind, ivf_lists=30, ivf_probes=30))
    found = ann.search(index, report, ITEMS[INDEXED[:50]], 5)
    assert (found[:, 0] == INDEXED[:50]).all()
    assert np.isin(found, INDEXED).all() and report.indexed == index.ntotal == len(INDEXED)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_a_result_does_not_depend_on_the_batch(kind):
    index, report = ann.build(ITEMS, INDEXED, IndexConfig(kind=kind, ivf_lists=50, ivf_probes=5))
    together = ann.search(index, report, QUERIES, 26)
    alone = np.concatenate([ann.search(index, report, query[None], 26) for query in QUERIES])
    assert (together == alone).all()


def test_the_audit_sees_what_an_index_misses():
    good, _ = audited(IndexConfig(kind="ivf", ivf_lists=60, ivf_probes=60))
    poor, index = audited(IndexConfig(kind="ivf", ivf_lists=60, ivf_probes=1))
    assert good.recall_at_10 == 1 and 0.98 < good.recall_low < 1
    assert poor.recall_at_10 < 0.6 and poor.recall_low < poor.recall_at_10
    assert poor.users == 200 and poor.ann_ms > 0 and poor.exact_ms > 0
    truth = np.argsort(-(QUERIES @ ITEMS[INDEXED].T), axis=1)[:, :10]
    found = ann.search(index, poor, QUERIES, 26)
    by_hand = np.mean([len(set(INDEXED[row]) & set(ids)) / 10 for row, ids in zip(truth, found, strict=True)])
    assert poor.recall_at_10 == pytest.approx(by_hand)


def audited(config):
    index, report = ann.build(ITEMS, INDEXED, config)
    return ann.audit(index, report, QUERIES, ITEMS, INDEXED), index


def test_hnsw_at_production_settings_is_above_the_floor():
    """Not one cell and not a toy: the default settings, on vectors without any structure to help."""
    report, _ = audited(IndexConfig(kind="hnsw"))
    assert report.recall_low >= IndexConfig().recall_floor


def test_searching_looks_at_more_for_a_longer_list():
    index, report = ann.build(ITEMS, INDEXED, IndexConfig(kind="hnsw", hnsw_ef_search=16))
    found = ann.search(index, report, QUERIES, 500)
    assert (found >= 0).all() and all(len(set(row)) == 500 for row in found.tolist())


@pytest.mark.parametrize(
    ("hits", "low"), [([1.0] * 1000, 0.997), ([1.0] * 10, 0.787), ([0.5] * 1000, 0.474), ([0.0] * 10, 0.0)]
)
def test_lower_bound(hits, low):
    assert ann.lower_bound(np.array(hits)) == pytest.approx(low, abs=1e-3)


def test_saved_settings_serve_others_too():
    index, _ = ann.build(ITEMS, INDEXED, IndexConfig(kind="ivf", ivf_lists=30, ivf_probes=7))
    again = faiss.deserialize_index(faiss.serialize_index(index))
    assert faiss.downcast_index(again.index).nprobe == 7


def test_an_empty_catalogue_is_no_fault():
    index, report = ann.build(ITEMS, np.zeros(0, np.int32), IndexConfig())
    assert index.ntotal == report.indexed == 0
