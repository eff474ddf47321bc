"""Equal work on unequal data: shards of wildly different sizes, a user of a million events, more workers than shards.

That workers learn alike, too, is held where one user does not drown the others: tests/contract/test_workers.py."""

from pathlib import Path

import numpy as np
import pytest

from cluster.runs import read_json, read_rows
from cluster.session import session
from cluster.trainer import train
from recsys.config import ClusterConfig, load_config
from tests.datasets import last_two_held_out, planted_histories, write_dataset

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.timeout(1200)]

GIANT = 1_000_000
SEEDS, WORKERS = (0, 1), (1, 2, 4)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Three shards: of 397 users, of 2, and of one of the same four tastes who watched a million times."""
    root = tmp_path_factory.mktemp("equal")
    usual, rng = planted_histories(users=399), np.random.default_rng(0)
    lengths = np.append(usual.lengths, GIANT)
    histories = last_two_held_out(lengths, np.append(usual.item, rng.integers(0, 20, GIANT) * 4 + 3))
    write_dataset(root / "dataset", histories, items=80, row_group_events=1000, shard_of=[0] * 397 + [1] * 2 + [2])
    return root


@pytest.fixture(scope="module", autouse=True)
def ray_session():
    with session(ClusterConfig(num_workers=max(WORKERS), object_store_bytes=200 << 20)):
        yield


def run(root: Path, workers: int, seed: int) -> tuple[list[dict], dict]:
    """Rows and result of two epochs, batches of which the giant fills most."""
    options = {
        "model.dim": 8, "model.negatives": 32, "train.batch_size": 8192, "train.epochs": 2, "train.seed": seed,
        "cluster.num_workers": workers, "cluster.storage": root / "runs", "cluster.window_events": 100_000,
    }  # fmt: skip
    config = load_config(overrides=[f"{name}={value}" for name, value in options.items()])
    folder = train(root / "dataset", config, name=f"{workers}-{seed}").folder
    return read_rows(folder), read_json(folder / "result.json") or {}


@pytest.mark.parametrize("seed", SEEDS)
def test_any_number_of_workers_takes_equal_steps_over_all_events(root, seed):
    runs = {workers: run(root, workers, seed) for workers in WORKERS}
    events = 399 * 10 + GIANT - 2
    for workers, (rows, result) in runs.items():
        assert [(row["events"], row["workers"]) for row in rows] == [(events, workers)] * 2
        assert {row["steps"] for row in rows} == {-(-events // 8192)}
        assert result["people"]["test"]["users"] == 400, "every user is measured once"
