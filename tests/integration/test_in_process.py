"""Training by the command's own process (`cluster.num_workers=0`): without Ray, stopped, broken, gone on with by workers."""

import os
import signal

import pytest
import ray

from cluster import runs, worker
from cluster.keeper import KEPT, NAME
from cluster.runs import read_rows
from cluster.session import session
from cluster.trainer import train
from recsys.config import ClusterConfig, load_config
from recsys.errors import ConfigError, Interrupted, RecsysError
from tests.datasets import planted_histories, write_dataset

pytestmark = pytest.mark.ray

HISTORIES = planted_histories()
SETTINGS = (
    "model.dim=8",
    "model.negatives=16",
    "train.batch_size=64",
    "train.precision=fp32",
    "train.threads=1",
    "cluster.num_workers=0",
    "cluster.readers=1",
    "cluster.window_events=500",
    "cluster.mix_shards=4",
)


@pytest.fixture(scope="module")
def dataset(root, cache):
    write_dataset(root / "dataset", HISTORIES, shards=6, row_group_events=120)
    return root / "dataset"


def settings(root, epochs: int = 2, *more: str):
    return load_config(overrides=[*SETTINGS, f"train.epochs={epochs}", f"cluster.storage={root / 'runs'}", *more])


@pytest.fixture(scope="module")
def whole(root, dataset):
    return train(dataset, settings(root), name="whole")


def weights(run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run.folder / "best").glob("*.safetensors")}


def test_no_ray_is_started(whole):
    assert not ray.is_initialized() and whole.test["ndcg@10"] > 0
    assert {row["read_from"] for row in read_rows(whole.folder)} == {"memory"}


@pytest.mark.parametrize("model", ["popularity", "ials"])
def test_nor_by_a_model_that_learns_by_no_batches(root, dataset, model, monkeypatch):
    monkeypatch.setattr("cluster.held.fit_in_memory", lambda *_, **__: False)
    train(dataset, settings(root, 1, f"model.name={model}"))
    assert not ray.is_initialized()


def test_a_signal_ends_it_after_a_checkpoint(root, dataset):
    def ask(row: dict) -> None:
        if row["epoch"] == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(dataset, settings(root, 200, "train.patience=200"), name="asked", on_epoch=ask)
    assert list((root / "runs" / "asked").glob("checkpoint_*/state.json"))


def test_stopped_within_an_epoch_it_goes_on_to_the_same_end(root, dataset, whole, monkeypatch):
    looked = []

    def asked(folder) -> bool:
        looked.append(folder)
        return len(looked) == 2

    with monkeypatch.context() as patch:
        patch.setattr(runs, "asked_to_stop", asked)
        with pytest.raises(Interrupted):
            train(dataset, settings(root), name="stopped")
    (left,) = (root / "runs" / "stopped").glob("checkpoint_*/")
    assert int(NAME.fullmatch(left.name)[2]) > 0, "not within an epoch"
    assert weights(train(dataset, settings(root), name="stopped")) == weights(whole)


def test_what_breaks_is_told_with_where(root, dataset, monkeypatch):
    def broken(*_):
        raise KeyError("x")

    monkeypatch.setattr(worker, "_run_epoch", broken)
    with pytest.raises(RecsysError, match="The same command goes on") as raised:
        train(dataset, settings(root), name="broken")
    assert "KeyError: 'x'" in str(raised.value) and "in broken" in str(raised.value) and "max_failures" not in str(raised.value)


def test_a_gpu_that_is_not_there_is_told(root, dataset, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)  # as with a driver that is too old
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for workers in (0, 1):  # before Ray is started, and a run begun
        with pytest.raises(ConfigError, match="takes a GPU, but PyTorch can use 0 here"):
            train(dataset, settings(root, 2, "cluster.use_gpu=yes", f"cluster.num_workers={workers}"), name="gpu")
    assert not (root / "runs" / "gpu").exists()


def test_workers_go_on_from_it_and_it_from_them(root, dataset):
    """Ray Train would not start where a checkpoint is gone that it knows of, nor ever remove one that it does not."""
    with session(ClusterConfig(readers=1, object_store_bytes=100 << 20)):
        for epochs, workers in ((1, 1), (4, 0), (5, 1)):
            found = train(dataset, settings(root, epochs, f"cluster.num_workers={workers}"), name="in turn")
            assert found.epochs == epochs
            assert len(list(found.folder.glob("checkpoint_*/"))) <= KEPT
