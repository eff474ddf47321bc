"""A run's folder: found again by the same command, refused to another, never half written."""

import json
import os
import subprocess
import sys

import pytest

from cluster import runs
from cluster.held import ahead_room
from cluster.own_errors import own_error
from cluster.task import unusual
from cluster.trainer import _draw, _Watch, check
from recsys.config import MACRO_BATCH_BYTES, MODEL_NAMES, RANKING_METRICS, ClusterConfig, Config, load_config
from recsys.errors import ConfigError, DataError, RecsysError
from recsys.evaluation.metrics import RANKING
from recsys.models import MODELS
from tests.datasets import random_histories, write_dataset


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("runs") / "dataset", random_histories(users=20))


@pytest.fixture(scope="module")
def another(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("runs") / "another", random_histories(users=21))


def claim(folder, manifest, config, refit=None):
    return runs.claim(folder, folder / "dataset", manifest, config, refit)


def test_the_default_name_knows_dataset_and_settings_but_not_the_cluster(manifest, another):
    name = runs.default_name(manifest, Config())
    assert name.startswith("mf-") and len(name) == len("mf-") + 8
    assert name == runs.default_name(manifest, load_config(overrides=["cluster.num_workers=4"]))
    assert name != runs.default_name(manifest, load_config(overrides=["train.seed=1"]))
    assert name != runs.default_name(manifest, Config(), refit_epochs=3)
    assert name != runs.default_name(another, Config())


@pytest.mark.parametrize(("storage", "name"), [("s3://bucket/runs", "a"), ("runs", "a/b"), ("runs", "../a")])
def test_a_folder_that_cannot_be_is_refused(storage, name):
    with pytest.raises(ConfigError):
        runs.run_folder(load_config(overrides=[f"cluster.storage={storage}"]), name)


def test_a_run_is_claimed_once_and_gone_on_with(tmp_path, manifest):
    folder = tmp_path / "run"
    assert claim(folder, manifest, Config()) == runs.Before(0, finished=False)
    runs.write_rows(folder, [{"epoch": 1}, {"epoch": 2}])
    assert claim(folder, manifest, Config()) == runs.Before(2, finished=False)
    runs.write_json(folder / runs.RESULT, {"config": Config().model_dump(mode="json")})
    assert claim(folder, manifest, Config()) == runs.Before(2, finished=True)


def test_a_finished_run_goes_on_when_asked_for_more_epochs(tmp_path, manifest):
    claim(tmp_path / "run", manifest, Config())
    runs.write_json(tmp_path / "run" / runs.RESULT, {"config": Config().model_dump(mode="json")})
    more = load_config(overrides=["train.epochs=99"])
    assert not claim(tmp_path / "run", manifest, more).finished
    assert not (tmp_path / "run" / runs.RESULT).exists()


def test_fewer_epochs_than_were_trained_are_refused_and_nothing_is_touched(tmp_path, manifest):
    claim(tmp_path / "run", manifest, Config())
    runs.write_rows(tmp_path / "run", [{"epoch": 1}, {"epoch": 2}])
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(ConfigError, match="has trained 2 epochs already"):
        claim(tmp_path / "run", manifest, load_config(overrides=["train.epochs=1"]))
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_another_model_dataset_or_purpose_is_refused_with_the_difference(tmp_path, manifest, another):
    claim(tmp_path / "run", manifest, Config())
    with pytest.raises(ConfigError, match=r"model\.dim: 64 → 8"):
        claim(tmp_path / "run", manifest, load_config(overrides=["model.dim=8"]))
    with pytest.raises(ConfigError, match="fingerprint"):
        claim(tmp_path / "run", another, Config())
    with pytest.raises(ConfigError, match="refit_epochs: None → 3"):
        claim(tmp_path / "run", manifest, Config(), refit=3)


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path):
    with runs.held(tmp_path / "run"), pytest.raises(RecsysError, match=rf"being trained by process {os.getpid()} on"):
        runs.held(tmp_path / "run").__enter__()
    with runs.held(tmp_path / "run"):
        pass


def test_a_row_being_written_is_left_for_later(tmp_path):
    (tmp_path / runs.METRICS).write_text('{"epoch": 1}\n{"epo')
    assert runs.read_rows(tmp_path) == [{"epoch": 1}]
    assert runs.read_rows(tmp_path / "nowhere") == []


def test_what_is_cut_is_said_to_be(tmp_path):
    (tmp_path / runs.RESULT).write_text('{"config": ')
    with pytest.raises(DataError, match=r"result\.json: not JSON"):
        runs.read_json(tmp_path / runs.RESULT)


def test_the_environment_names_versions(tmp_path, manifest):
    claim(tmp_path / "run", manifest, Config())
    runs.note_hardware(tmp_path / "run", {"workers": 2})
    noted = json.loads((tmp_path / "run" / runs.ENVIRONMENT).read_text())
    assert {"ray", "torch", "commit", "python"} <= noted.keys() and noted["hardware"] == {"workers": 2}


@pytest.mark.parametrize("setting", ["train.metric=ndcg", "train.metric=rmse", "train.metric=auc@10", "model.name=svd"])
def test_settings_that_would_fail_an_epoch_later_are_refused_at_once(tmp_path, manifest, setting):
    with pytest.raises(ConfigError, match=r"There are|give one of"):
        check(manifest, load_config(overrides=[setting]), tmp_path)


def test_the_names_that_settings_are_checked_by_are_the_models_and_metrics_there_are():
    assert tuple(MODELS) == MODEL_NAMES
    assert tuple(RANKING) == RANKING_METRICS


@pytest.mark.parametrize(("room", "ahead"), [(1 << 40, 8), (3 * (1 << 20) * MACRO_BATCH_BYTES, 3), (0, 1)])
def test_as_much_is_read_ahead_as_readers_and_memory_allow(room, ahead):
    assert ClusterConfig().prefetch_on(readers=8, room_bytes=room) == ahead
    assert ClusterConfig(prefetch=0).prefetch_on(readers=8, room_bytes=room) == 0


def test_what_ray_data_streams_must_fit_its_object_store_too():
    assert ahead_room(free=64 << 30, store=None, workers_on_host=2) == 2 << 30
    assert ahead_room(free=64 << 30, store=1 << 30, workers_on_host=2) == 128 << 20


def test_bad_settings_are_told_before_what_takes_long_is_loaded_and_the_rest_loads_without_ray():
    """Ray loads in the main thread while these load in another: of one another they must not load parts."""
    code = "import sys, cluster.trainer; assert not {'torch', 'ray.train'} & set(sys.modules)\n"
    code += "from importlib import import_module; from cluster.session import MEANWHILE\n"
    code += "ray = {n for n in sys.modules if n.split('.')[0] == 'ray'}; [*map(import_module, MEANWHILE)]\n"
    code += "assert 'torch' in sys.modules and ray == {n for n in sys.modules if n.split('.')[0] == 'ray'}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_picture_that_cannot_be_drawn_is_told_and_the_run_stands(tmp_path):
    told: list[str] = []
    watch = _Watch(tmp_path, 0, None, None, told.append)
    (tmp_path / runs.METRICS).write_text('{"epoch": 1}\n')  # no row of an epoch has so little
    _draw(tmp_path, Config(), watch)
    assert "curves.png cannot be drawn" in told[0]
    assert [path.name for path in tmp_path.iterdir()] == [runs.METRICS]


def test_a_dataset_without_train_events_is_refused(tmp_path, manifest):
    held_out = manifest.model_copy(update={"segments": {"train": 0, "valid": 5, "test": 5}})
    with pytest.raises(DataError, match="no train events"):
        check(held_out, Config(), tmp_path)


def test_the_projects_error_is_found_inside_rays():
    class WrapperError(Exception):
        def __init__(self, inner: Exception) -> None:
            self.worker_failures = {0: OSError("connection reset by peer"), 1: inner}

    found = own_error(WrapperError(DataError("users/all-00003.parquet: missing")))
    assert isinstance(found, DataError) and "all-00003" in str(found)
    assert own_error(WrapperError(ValueError("other"))) is None


def test_what_is_asked_beyond_the_usual_makes_another_run(tmp_path, manifest):
    usual = unusual(refit_until="end", refit_rates=None, measure_test=True)
    assert usual == {} and runs.default_name(manifest, Config(), 3) == runs.default_name(manifest, Config(), 3, unusual=usual)
    asked = [{"refit_until": "test"}, {"refit_rates": (0.1, 0.01, 0.01)}, {"measure_test": False}]
    names = {runs.default_name(manifest, Config(), 3, unusual=unusual(**each)) for each in [{}, *asked]}
    assert len(names) == 4
    rates = unusual(refit_rates=(0.1, 0.05))
    runs.claim(tmp_path / "run", tmp_path / "dataset", manifest, Config(), 2, None, rates)
    runs.claim(tmp_path / "run", tmp_path / "dataset", manifest, Config(), 2, None, rates)  # the same command goes on
    with pytest.raises(ConfigError, match=r"refit_rates: \[0\.1, 0\.05\] → None"):
        runs.claim(tmp_path / "run", tmp_path / "dataset", manifest, Config(), 2)


def test_learning_rates_are_those_of_the_epochs_asked_for(tmp_path):
    runs.write_rows(tmp_path, [{"epoch": epoch, "learning_rate": 1 / epoch} for epoch in (1, 2, 3)])
    assert runs.learning_rates(tmp_path, 2) == (1.0, 0.5)
    with pytest.raises(DataError, match=r"metrics\.jsonl: does not tell the learning rates of 4 epochs"):
        runs.learning_rates(tmp_path, 4)
    runs.write_rows(tmp_path, [{"epoch": 1}])
    assert runs.learning_rates(tmp_path, 1) is None
