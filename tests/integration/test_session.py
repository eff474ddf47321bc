"""Starting and joining Ray: only what was started here is shut down, and nothing is printed."""

import os
import threading
from pathlib import Path

import pytest
import ray
import ray.data

from cluster import session as sessions
from cluster.session import execution, reader_cpus, session, takes_gpu
from recsys.config import ClusterConfig, load_config
from recsys.errors import ConfigError, RecsysError

pytestmark = pytest.mark.ray

SMALL = ClusterConfig(num_workers=2, readers=1, object_store_bytes=100 << 20)


@pytest.fixture(autouse=True)
def outside_of_any_ray(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert not ray.is_initialized()


def test_a_session_has_room_for_workers_and_readers_and_ends_with_its_block(capfd):
    with session(SMALL):
        assert ray.cluster_resources()["CPU"] >= 2 + 1 + 2
        with session(SMALL):  # one inside another joins it, and leaves it running
            pass
        assert ray.is_initialized()
        assert reader_cpus(SMALL) == 1
        everything = load_config(overrides=[f"cluster.num_workers={int(ray.cluster_resources()['CPU'])}"]).cluster
        assert reader_cpus(everything) == 0  # or its readers would wait for a CPU for ever
        with pytest.raises(ConfigError, match="GPUs"):
            takes_gpu(load_config(overrides=["cluster.use_gpu=yes", "cluster.num_workers=99"]).cluster)
    assert not ray.is_initialized()
    assert capfd.readouterr().out == ""


def test_what_is_abandoned_ends_with_its_session_and_leaves_no_thread_that_could_ask_a_ray_that_is_gone():
    """Ray ends a process that does so, without a word: an error of ours would never be shown."""
    with session(SMALL):
        numbers = ray.data.range(100_000, override_num_blocks=50).map_batches(lambda batch: batch, batch_size=None)
        abandoned = execution(numbers.iter_batches(batch_size=10)).thing
        next(abandoned)
        assert fetching()
    assert not fetching()
    with pytest.raises(StopIteration):
        next(abandoned)


def fetching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == sessions.RAY_DATA_THREAD]


def test_an_address_where_no_ray_is_is_said_so(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(RecsysError, match=r"127\.0\.0\.1:1 cannot be reached"), session(SMALL):
        pass


def test_without_a_home_to_write_to_the_token_stays_in_memory(monkeypatch, tmp_path: Path):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    sessions._ensure_token_can_be_kept()
    assert "RAY_AUTH_TOKEN" not in os.environ  # Ray can keep it in a file
    monkeypatch.setattr(os, "access", lambda *_: False)
    sessions._ensure_token_can_be_kept()
    assert len(os.environ.pop("RAY_AUTH_TOKEN")) == 64
