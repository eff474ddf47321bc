"""An index of rounded vectors: smaller, alike in any batch, and after rescoring with the whole ones the exact list."""

import shutil
from itertools import product

import faiss
import numpy as np
import pytest

from recsys.bundle.read import open_bundle
from recsys.config import IndexConfig
from recsys.errors import BundleError
from recsys.retrieval import ann
from recsys.retrieval.recommender import Recommender, Request
from tests.bundles import planted, rehash, reseal, write_planted

KINDS, STORAGES = ("flat", "hnsw", "ivf"), ("fp16", "int8", "pq")
EACH = list(product(KINDS, STORAGES))
WORLD = planted(users=40, items=1200, untrained=7)
RNG = np.random.default_rng(0)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


ITEMS, QUERIES = unit(RNG.standard_normal((1500, 32))), unit(RNG.standard_normal((100, 32)))
INDEXED = np.setdiff1d(np.arange(1500), np.arange(0, 1500, 7)).astype(np.int32)


pytestmark = pytest.mark.usefixtures("own_receipts_and_one_thread")


def config_of(kind: str, storage: str, **more: object) -> IndexConfig:
    return IndexConfig(kind=kind, storage=storage, ivf_lists=20, ivf_probes=12, **more)


@pytest.mark.parametrize(("kind", "storage"), EACH)
def test_lists_are_exact_after_rescoring_and_come_from_the_index(tmp_path, kind, storage):
    folder = write_planted(tmp_path, world=WORLD, index=config_of(kind, storage, rerank=5, pq_dims=2), recall_floor=0.5)
    recommender = Recommender(open_bundle(folder))
    assert recommender.bundle.manifest.index.storage == storage and recommender.bundle.manifest.index.recall_at_10 == 1
    for user in range(40):
        (answer,) = recommender.recommend([Request(user=f"u{user}", k=10)])
        assert answer.path == "ann" and answer.items.tolist() == WORLD.wanted(user, 10)
        exact = WORLD.item_vectors[answer.items].astype(np.float64) @ WORLD.user_vectors[user]
        assert answer.scores == pytest.approx(exact, abs=1e-6)  # by the whole vectors, not by rounded ones


@pytest.mark.parametrize(("kind", "storage"), [*product(KINDS, ("fp32", *STORAGES))])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
def test_among_the_allowed_alone(kind, storage, share):
    """Also where they lie on one side, as a genre's do: nothing else is found, and little is missed."""
    index, report = ann.build(ITEMS, INDEXED, config_of(kind, storage, hnsw_m=16, rerank=8))
    if not ann.can_narrow(report):
        assert (kind, storage) == ("flat", "pq")
        return
    inside = INDEXED[np.argsort(-ITEMS[INDEXED] @ RNG.standard_normal(32))[: int(share * len(INDEXED))]]
    may = np.zeros(len(ITEMS), bool)
    may[inside] = True
    found = ann.search(index, report, QUERIES, 80, only_N=may)
    assert np.isin(found, [*inside, ann.NOTHING]).all()
    best = inside[np.argsort(-(QUERIES @ ITEMS[inside].T), axis=1)[:, :10]]
    recall = np.mean([np.isin(wanted, row).mean() for wanted, row in zip(best, found, strict=True)])
    assert recall > (0.9 if kind == "ivf" else 0.97)
    alone = np.concatenate([ann.search(index, report, query[None], 80, only_N=may) for query in QUERIES])
    assert (found == alone).all()


@pytest.mark.parametrize(("kind", "storage"), EACH)
def test_ids_batches_and_recall_without_structure(kind, storage):
    index, report = ann.build(ITEMS, INDEXED, config_of(kind, storage, hnsw_m=16, rerank=8))
    audited = ann.audit(index, report, QUERIES, ITEMS, INDEXED)
    assert audited.recall_at_10 > (0.9 if kind == "ivf" else 0.98)
    found = ann.search(index, report, QUERIES, 40)
    assert np.isin(found, INDEXED).all()
    assert (found == np.concatenate([ann.search(index, report, query[None], 40) for query in QUERIES])).all()


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_smaller_and_rougher_than_the_one_before(kind):
    made = [ann.build(ITEMS, INDEXED, config_of(kind, storage, hnsw_m=8, pq_bits=5)) for storage in ("fp32", *STORAGES)]
    sizes = [len(faiss.serialize_index(index)) for index, _ in made]
    apart = [ann.difference(index, ITEMS, INDEXED) for index, _ in made]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] - sizes[2] > 0.7 * ITEMS[INDEXED].nbytes
    assert apart == sorted(apart) and apart[0] < 1e-6 < apart[1] < 2e-3 < apart[3] < 1
    assert [report.difference for _, report in made] == [0.0, *apart[1:]]


def test_more_rescoring_misses_less():
    misses = []
    for rerank in (1, 4, 16):
        index, report = ann.build(ITEMS, INDEXED, config_of("flat", "pq", pq_dims=8, rerank=rerank))
        misses.append(1 - ann.audit(index, report, QUERIES, ITEMS, INDEXED).recall_at_10)
    assert misses[0] > misses[1] > misses[2]


def test_an_index_that_misses_too_much_is_not_asked(tmp_path):
    folder = write_planted(tmp_path, world=WORLD, index=config_of("flat", "pq"), report={"recall_low": 0.5})
    (answer,) = Recommender(open_bundle(folder)).recommend([Request(user="u1")])
    assert answer.path == "exact" and "audit" in answer.reason and answer.items.tolist() == WORLD.wanted(1, 10)


@pytest.mark.parametrize(("items", "bits"), [(2, 1), (3, 1), (20, 4), (255, 7), (256, 8)])
def test_few_items_have_shorter_codes(items, bits):
    index, report = ann.build(ITEMS[:items], np.arange(items, dtype=np.int32), config_of("flat", "pq"))
    assert report.parameters["pq_bits"] == bits and index.ntotal == items


@pytest.mark.parametrize(("kind", "storage"), EACH)
def test_one_item_or_none(kind, storage):
    for indexed in (INDEXED[:0], INDEXED[:1]):
        index, report = ann.build(ITEMS, indexed, config_of(kind, storage))
        assert index.ntotal == len(indexed) and ann.is_exact(report)


@pytest.mark.parametrize(("kind", "storage"), EACH)
def test_an_index_of_other_vectors_is_refused(tmp_path, kind, storage):
    config = config_of(kind, storage)
    folder = write_planted(tmp_path, "films", world=WORLD, index=config)
    other = write_planted(tmp_path, "other", world=planted(users=40, items=1200, untrained=7, seed=9), index=config)
    shutil.copy(other / "index.faiss", folder / "index.faiss")
    with pytest.raises(BundleError, match="altered"):
        open_bundle(folder)
    rehash(folder, "index.faiss")
    with pytest.raises(BundleError, match="belong"):
        Recommender(open_bundle(folder))


@pytest.mark.parametrize(("kind", "storage"), [*EACH, *((kind, "fp32") for kind in KINDS)])
def test_an_index_that_holds_vectors_otherwise_than_the_manifest_says_is_refused(tmp_path, kind, storage):
    folder = write_planted(tmp_path, world=WORLD, index=config_of(kind, storage))
    report = open_bundle(folder).manifest.index
    for said in {"fp32", *STORAGES} - {storage}:
        reseal(folder, index=report.model_dump() | {"storage": said})
        with pytest.raises(BundleError, match=f"the manifest says {kind} of {said}"):
            open_bundle(folder)
