"""Training on a real local Ray with two workers: complete, equal on all ranks, resumable, honest about failures."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from safetensors.numpy import load_file, save_file

from cluster import worker
from cluster.keeper import KEPT
from cluster.runs import read_rows
from cluster.session import session
from cluster.share import Share
from cluster.task import Task
from cluster.trainer import RunResult, train
from recsys.config import ClusterConfig, Config, load_config
from recsys.data.dataset import read_manifest
from recsys.data.histories import Histories
from recsys.errors import ConfigError, DataError
from recsys.training import checkpoint
from tests.datasets import planted_histories, write_dataset
from tests.processes import below

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
HISTORIES = planted_histories()
SETTINGS = (
    "model.dim=16",
    "model.negatives=32",
    "train.batch_size=64",
    "train.learning_rate=0.03",
    "train.precision=fp32",
    "train.threads=1",
    "train.epochs=6",
    "cluster.num_workers=2",
    "cluster.readers=1",
    "cluster.window_events=500",
    "cluster.mix_shards=4",
    f"cluster.object_store_bytes={200 << 20}",
)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with session(ClusterConfig(num_workers=2, readers=1, object_store_bytes=200 << 20)):
        yield


@pytest.fixture(scope="module")
def dataset(root) -> Path:
    write_dataset(root / "dataset", HISTORIES, shards=6, row_group_events=120)
    return root / "dataset"


def settings(root: Path, *more: str) -> Config:
    return load_config(overrides=[*SETTINGS, f"cluster.storage={root / 'runs'}", *more])


@pytest.fixture(scope="module")
def undisturbed(root, dataset) -> RunResult:
    return train(dataset, settings(root), name="undisturbed")


def weights_of(run: Path) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in checkpoint.read_weights(run / "best").items()}


def assert_same_weights(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_a_run_learns_the_tastes_and_leaves_everything_in_its_folder(undisturbed):
    assert undisturbed.test["ndcg@10"] > 3 * undisturbed.test_popularity["ndcg@10"]
    rows = read_rows(undisturbed.folder)
    assert [row["epoch"] for row in rows] == list(range(1, undisturbed.epochs + 1))
    assert {row["events"] for row in rows} == {len(HISTORIES.segment("train").item)}
    best = rows[undisturbed.best_epoch - 1]
    assert best["best"] and best["metrics"]["ndcg@10"] == max(row["metrics"]["ndcg@10"] for row in rows)
    assert undisturbed.metrics == pytest.approx(best["metrics"])  # the best weights were restored
    assert (undisturbed.folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert next((undisturbed.folder / "tensorboard").glob("*tfevents*")).stat().st_size > 100 * len(rows)
    assert json.loads((undisturbed.folder / "environment.json").read_text())["hardware"]["workers"] == 2
    result = json.loads((undisturbed.folder / "result.json").read_text())
    assert result["fingerprint"] == read_manifest(Path(result["dataset"])).fingerprint
    assert result["people"]["test"]["users"] == len(HISTORIES)


def test_the_same_call_again_returns_the_result_and_trains_nothing(root, dataset, undisturbed):
    told = []
    (undisturbed.folder / "curves.png").unlink()  # as a start that was killed while it drew leaves it
    again = train(dataset, settings(root), name="undisturbed", on_epoch=told.append)
    assert again.already_finished and again.test == undisturbed.test and not told
    assert (undisturbed.folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_name_taken_by_another_run_is_refused_with_the_difference(root, dataset, undisturbed):
    with pytest.raises(ConfigError, match=r"model\.dim: 16 → 24"):
        train(dataset, settings(root, "model.dim=24"), name="undisturbed")
    write_dataset(root / "other", planted_histories(seed=1), shards=6)
    with pytest.raises(ConfigError, match="fingerprint"):
        train(root / "other", settings(root), name="undisturbed")


@pytest.fixture(scope="module")
def alone(root, dataset) -> RunResult:
    return train(dataset, settings(root, "cluster.num_workers=1"), name="alone")


def test_one_worker_learns_as_well_as_two(alone, undisturbed):
    assert alone.test["ndcg@10"] == pytest.approx(undisturbed.test["ndcg@10"], rel=0.1)
    assert read_rows(alone.folder)[0]["steps"] == read_rows(undisturbed.folder)[0]["steps"]


@pytest.fixture(scope="module")
def here(root, dataset) -> RunResult:
    """Trained by this very process."""
    return train(dataset, settings(root, "cluster.num_workers=0"), name="here")


def test_this_process_learns_the_same_as_one_worker_to_the_bit(alone, here):
    assert_same_weights(weights_of(here.folder), weights_of(alone.folder))
    assert (here.metrics, here.test) == (alone.metrics, alone.test)
    kept = [sorted(path.name for path in run.folder.glob("checkpoint_*/")) for run in (here, alone)]
    assert kept[0] == kept[1] and len(kept[0]) == KEPT


def test_this_process_streams_what_it_may_not_hold(root, dataset, here):
    streamed = train(dataset, settings(root, "cluster.num_workers=0", "cluster.hold_bytes=0"), name="streamed")
    assert {row["read_from"] for row in read_rows(streamed.folder)} == {"files"}
    assert_same_weights(weights_of(streamed.folder), weights_of(here.folder))


def test_more_epochs_go_on_from_the_last(root, dataset, here):
    told = []
    longer = train(dataset, settings(root, "cluster.num_workers=0", "train.epochs=7"), name="here", on_epoch=told.append)
    assert (longer.epochs, longer.resumed_from) == (7, 6)
    assert [row["epoch"] for row in told] == [7]


def epochs_noting_what_was_seen(given: dict) -> None:
    """Two epochs by the product's own functions; each rank leaves its weights and the events it was fed."""
    share = Share(given["task"])
    state = worker._resume_or_start(share, worker.build(share.config.model, share.catalogue, 0), None)
    epoch_of, fed = share.epoch, []

    def noting(number: int, legs: list, batch_type: type):
        epoch = epoch_of(number, legs, batch_type)
        return replace(epoch, batches=(fed.append((number, batch)) or batch for batch in epoch.batches))

    share.epoch = noting
    for _ in range(2):
        worker._train(share, state)
        state.epoch += 1
    seen = np.array([[e, u, i] for e, b in fed for u, i in zip(b.user.tolist(), b.item.tolist(), strict=True)])
    arrays = {"seen": seen, "steps": np.array([sum(e == epoch for e, _ in fed) for epoch in range(2)])}
    arrays |= {name: tensor.detach().numpy() for name, tensor in state.weights().items() if not state.is_of_users(tensor)}
    save_file(arrays, share.task.folder / f"rank{share.rank}.safetensors")


@pytest.fixture
def this_module_travels():
    """Ray's workers cannot import a test file, so what they run of it goes to them whole."""
    module = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(module)
    yield
    ray.cloudpickle.unregister_pickle_by_value(module)


@pytest.mark.usefixtures("this_module_travels")
def test_two_workers_see_every_event_once_an_epoch_and_end_bit_equal(root, dataset, tmp_path):
    TorchTrainer(
        epochs_noting_what_was_seen,
        train_loop_config={"task": Task(dataset, tmp_path, settings(root))},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="noting", storage_path=str(tmp_path / "ray")),
    ).fit()
    ranks = [load_file(tmp_path / f"rank{rank}.safetensors") for rank in range(2)]
    pairs = HISTORIES.segment("train").pairs()
    expected = sorted((epoch, *pair) for epoch in range(2) for pair in zip(pairs.user, pairs.item, strict=True))
    assert sorted(map(tuple, np.concatenate([rank.pop("seen") for rank in ranks]).tolist())) == expected
    assert_same_weights(*ranks)  # and equal numbers of steps


def train_workers() -> list[psutil.Process]:
    return below(psutil.Process(), "RayTrainWorker")


def test_a_cut_shard_stops_the_run_at_once_as_a_data_error(root, tmp_path):
    write_dataset(tmp_path / "dataset", HISTORIES, shards=6)
    victim = tmp_path / "dataset" / "users" / "all-00003.parquet"
    victim.write_bytes(victim.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"all-00003\.parquet"):  # started again 1000 times in vain, it would not end
        train(tmp_path / "dataset", settings(root, "cluster.max_failures=1000"), name="cut")


def grown(histories: Histories, new_users: int) -> tuple[Histories, list[str], list[str]]:
    """The same users and items under other numbers, and new users before them: (histories, user ids, item ids)."""
    more = planted_histories(users=len(histories) + new_users, seed=5)
    old_rows = histories.item.reshape(len(histories), -1)
    number_of = np.random.default_rng(0).permutation(80)
    items = np.concatenate([more.item.reshape(len(more), -1)[:new_users], old_rows])
    users = [f"new{u}" for u in range(new_users)] + [f"u{u}" for u in range(len(histories))]
    ids = [f"i{np.flatnonzero(number_of == n)[0]}" for n in range(80)]
    return replace(more, item=number_of[items].ravel().astype(np.int32)), users, ids


def test_a_run_begins_from_an_earlier_one_by_string_ids(root, tmp_path, undisturbed):
    """What was learnt is there before the first step, under other numbers; new users begin as new ones do."""
    write_dataset(tmp_path / "old", HISTORIES, shards=6, user_ids=[f"u{u}" for u in range(len(HISTORIES))],
                  item_ids=[f"i{i}" for i in range(80)])  # fmt: skip
    histories, users, ids = grown(HISTORIES, new_users=24)
    write_dataset(tmp_path / "new", histories, shards=5, user_ids=users, item_ids=ids)
    first = train(tmp_path / "old", settings(root, "cluster.num_workers=0"), name="first")
    barely = ("train.learning_rate=1e-9", "train.epochs=1")
    warm = train(tmp_path / "new", settings(root, *barely), name="warm", begin_from=first.folder)
    cold = train(tmp_path / "new", settings(root, *barely, "cluster.num_workers=0"), name="cold")
    assert warm.test["ndcg@10"] > 0.85 * first.test["ndcg@10"] > 2 * cold.test["ndcg@10"]
    weights, optimizers = checkpoint.read_everything(warm.folder / "best")
    old, _ = checkpoint.read_everything(first.folder / "best")
    np.testing.assert_allclose(weights["user_table"][24:], old["user_table"], atol=1e-6)
    assert optimizers[0]["state"][0]["step"] > read_rows(first.folder)[0]["steps"]
    told = json.loads((warm.folder / "environment.json").read_text())
    assert told["known_to_rank_0"]["item"] == 80 and Path(told["begun_from"]) == first.folder


def test_a_model_of_other_settings_cannot_be_begun_from(root, dataset, undisturbed):
    with pytest.raises(ConfigError, match=r"model\.dim: 16 → 24"):
        train(dataset, settings(root, "model.dim=24"), name="other", begin_from=undisturbed.folder)
    with pytest.raises(DataError, match="no run folder"):
        train(dataset, settings(root), name="nowhere", begin_from=root / "nowhere")


def test_popularity_goes_the_same_way(root, dataset, undisturbed):
    result = train(dataset, settings(root, "model.name=popularity"), name="popular")
    assert result.test == result.test_popularity == undisturbed.test_popularity


def test_users_held_out_whole_are_answered_from_their_history(root, tmp_path):
    """A split by user: the model never trained on them, and still knows their taste."""
    roles = (["train"] * 24 + ["valid"] * 8 + ["test"] * 8) * 6
    write_dataset(tmp_path / "dataset", HISTORIES, shards=6, row_group_events=120, roles=roles)
    result = train(tmp_path / "dataset", settings(root, "cluster.num_workers=0"), name="by-user")
    assert result.test["ndcg@10"] > 3 * result.test_popularity["ndcg@10"]


def test_refitting_learns_from_all_segments_and_measures_nothing(root, dataset):
    result = train(dataset, settings(root, "cluster.num_workers=0"), name="refit", refit_epochs=2)
    assert result.epochs == 2 and not result.metrics and not result.test
    assert [row["events"] for row in read_rows(result.folder)] == [len(HISTORIES.item)] * 2
