"""The sweep of how far an index looks: what a planted index of short sight finds with more of it."""

from pathlib import Path

import pytest

from recsys.bundle.read import open_bundle
from recsys.config import IndexConfig
from recsys.retrieval.measure import sweep
from recsys.retrieval.recommender import Recommender
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
