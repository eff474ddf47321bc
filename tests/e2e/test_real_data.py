"""The commands on real ratings, where $RECSYS_DATA has them."""

import json
from pathlib import Path

import pytest

from tests.commands import Recsys

pytestmark = [pytest.mark.ray, pytest.mark.data]


def test_movietweetings_from_zip_to_recommendations(recsys: Recsys, real_data: Path, tmp_path: Path) -> None:
    recsys("prepare", real_data / "movietweetings-100k.zip", tmp_path / "dataset")
    counts = json.loads((tmp_path / "dataset" / "dataset.json").read_bytes())
    assert (counts["rows_in"], counts["users"]) == (100_000, 16_554)
    storage = f"cluster.storage={tmp_path / 'runs'}"
    recsys("train", tmp_path / "dataset", "--set", storage, "--set", "train.epochs=6", "--name", "mt")
    result = json.loads((tmp_path / "runs" / "mt" / "result.json").read_bytes())
    assert result["test"]["ndcg@10"] > result["test_popularity"]["ndcg@10"]
    recsys("export", tmp_path / "runs" / "mt", tmp_path / "bundles", "--name", "mt")
    answer = json.loads(recsys("recommend", tmp_path / "bundles" / "mt", "--user", "1", "--json").stdout)
    assert len(answer["items"]) == 10 and all(item["title"] for item in answer["items"])


def test_popularity_among_the_stored_negatives_of_ncf(recsys: Recsys, real_data: Path, tmp_path: Path) -> None:
    """HR@10 .4538 and NDCG@10 .2543, as measured by another program on the same files."""
    recsys("prepare", real_data / "ncf-ml-1m.zip", tmp_path / "dataset", "--set", "data.valid_fraction=0.0")
    where = ("--set", "cluster.num_workers=0", "--set", f"cluster.storage={tmp_path / 'runs'}")
    recsys("train", tmp_path / "dataset", *where, "--set", "model.name=popularity", "--name", "popular")
    told = json.loads(recsys("evaluate", tmp_path / "runs" / "popular", "--protocol", "negatives", "--json").stdout)
    assert (told["users"], told["events"], told["strangers"]) == (6_040, 6_040, 0)
    assert told["metrics"]["hr@10"]["value"] == pytest.approx(0.4538, abs=5e-5)
    assert told["metrics"]["ndcg@10"]["value"] == pytest.approx(0.2543, abs=5e-5)
    assert told["metrics"]["hr@10"]["low"] < 0.4538 < told["metrics"]["hr@10"]["high"]


@pytest.mark.parametrize(
    ("name", "rows", "users", "items"),
    [
        ("ml-latest-small.zip", 100_004, 671, 9_125),
        ("ml-100k.zip", 100_000, 943, 1_682),
        ("gowalla-lightgcn.zip", 810_128 + 217_242, 29_858, 40_981),
    ],
)
def test_every_published_shape_is_read(
    recsys: Recsys, real_data: Path, tmp_path: Path, name: str, rows: int, users: int, items: int
) -> None:
    recsys("prepare", real_data / name, tmp_path / "dataset")
    counts = json.loads((tmp_path / "dataset" / "dataset.json").read_bytes())
    assert (counts["rows_in"], counts["users"], counts["items"]) == (rows, users, items)
    assert not counts["rejects"]
