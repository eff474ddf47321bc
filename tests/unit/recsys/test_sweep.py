"""The sweep of how far an index looks: what a planted index of short sight finds with more of it."""

from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from recsys.bundle.read import open_bundle
from recsys.config import IndexConfig
from recsys.retrieval import ann
from recsys.retrieval.measure import sweep
from recsys.retrieval.recommender import Answer, Recommender, Request
from tests.bundles import planted, write_planted

WORLD = planted(users=60, items=3000, tastes=12, dim=16)


@pytest.fixture(autouse=True)
def own_receipts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))


def recommender(root: Path, **index: object) -> Recommender:
    return Recommender(open_bundle(write_planted(root, world=WORLD, index=IndexConfig.model_validate(index))))


@pytest.mark.parametrize(
    ("index", "setting", "own", "efforts"),
    [
        ({"kind": "ivf", "ivf_lists": 50, "ivf_probes": 2}, "probes", 2, [1, 2, 4, 8, 16]),
        ({"kind": "ivf", "ivf_lists": 50, "ivf_probes": 40}, "probes", 40, [5, 10, 20, 40, 50]),
        ({"kind": "hnsw", "hnsw_ef_search": 96}, "ef_search", 96, [12, 24, 48, 96, 192, 384, 768]),
    ],
)
def test_an_index_finds_more_the_farther_it_looks(
    tmp_path: Path, index: dict[str, object], setting: str, own: int, efforts: list[int]
) -> None:
    told: list[tuple[int, int]] = []
    swept = sweep(recommender(tmp_path, **index), 40, lambda done, total: told.append((done, total)))
    assert swept is not None and (swept.setting, swept.own) == (setting, own)
    assert [report.parameters[setting] for report in swept.reports] == efforts
    recalls = [report.recall_at_10 for report in swept.reports]
    assert recalls == sorted(recalls) and recalls[-1] > 0.98 and (setting == "ef_search" or recalls[0] < recalls[-1])
    assert all(report.users == 40 and report.ann_ms > 0 and report.exact_ms > 0 for report in swept.reports)
    assert told == [(done, len(efforts)) for done in range(len(efforts) + 1)]


def test_an_index_that_looks_at_all_has_nothing_to_sweep(tmp_path: Path) -> None:
    assert sweep(recommender(tmp_path, kind="flat"), 40, lambda done, total: None) is None


def test_recall_is_that_of_lists_as_they_are_served(tmp_path: Path) -> None:
    """Without what was seen, which a list with it left in would find more easily."""
    index = IndexConfig(kind="hnsw", hnsw_ef_search=8, hnsw_m=4, hnsw_ef_construction=16)
    made = Recommender(open_bundle(write_planted(tmp_path, world=WORLD, index=index, recall_floor=0.0)))
    found = []
    for user in range(60):
        by_index, exact = made.recommend([Request(user=f"u{user}", mode=mode) for mode in ("ann", "exact")])
        assert isinstance(by_index, Answer) and isinstance(exact, Answer) and by_index.path == "ann"
        assert len(by_index.items) == 10 and exact.path == "exact"
        found.append(len(set(by_index.item_ids) & set(exact.item_ids)) / 10)
    report = made.bundle.manifest.index
    assert report is not None and report.users == 60 and report.recall_at_10 == pytest.approx(sum(found) / 60)
    assert 0 < report.recall_at_10 < 1


@pytest.mark.parametrize("storage", ["fp32", "int8"])
def test_a_graph_of_directions_is_searched_by_products(storage: str) -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.uniform(1, 2, (3000, 1)) * unit(rng.standard_normal((3000, 16)))).astype(np.float32)
    vectors[7] = 0
    queries, indexed = unit(rng.standard_normal((200, 16))).astype(np.float32), np.arange(3000, dtype=np.int32)
    settings = {"kind": "hnsw", "hnsw_graph": "directions", "storage": storage, "hnsw_ef_search": 200}
    index, report = ann.build(vectors, indexed, IndexConfig.model_validate(settings))
    again = faiss.deserialize_index(faiss.serialize_index(index))
    assert (ann.search(again, report, queries, 26) == ann.search(index, report, queries, 26)).all()
    assert ann.difference(again, vectors, indexed) < (1e-6 if storage == "fp32" else 0.02)
    assert ann.audit(again, report, queries, vectors, indexed).recall_at_10 > 0.98
    assert report.parameters["directions"] == 1
    assert faiss.downcast_index(again.index).hnsw.efSearch == 200  # for who reads the file without our settings


def test_of_few_who_are_asked_for_by_the_index_nothing_is_concluded(tmp_path: Path) -> None:
    """The bound of a few is below the floor without a miss."""
    world = planted(users=300, items=260, tastes=4, dim=16)
    world.seen[:] = [seen if user < 20 else np.arange(user % 4, 240, 4)[:40] for user, seen in enumerate(world.seen)]
    made = Recommender(open_bundle(write_planted(tmp_path, world=world, index=IndexConfig(kind="hnsw"))))
    report = made.bundle.manifest.index
    paths = [made.recommend([Request(user=f"u{user}")])[0].path for user in (0, 299)]  # type: ignore[union-attr]
    assert paths == ["ann", "exact"] and report is not None and report.users == 300 and report.recall_low > 0.95


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
