"""`recsys tune` on a real local Ray: the planted setting wins, a bad trial is stopped early, more trials are added."""

import json
import math
import time

import matplotlib.image
import psutil
import pytest

from cluster import runs
from cluster.session import session
from cluster.tune import tune
from cluster.tuning.space import Goal, Search, Space
from cluster.tuning.study import Study
from cluster.tuning.trials import FINISHED, STOPPED, Trial
from recsys.config import ClusterConfig, load_config
from recsys.errors import ConfigError
from tests.datasets import planted_histories, write_dataset

pytestmark = pytest.mark.ray

GOOD, BAD = 0.03, 1e-7
SETTINGS = (
    "model.dim=16",
    "model.negatives=32",
    "train.batch_size=64",
    "train.micro_batch=64",
    "train.precision=fp32",
    "train.threads=1",
    "train.epochs=12",
    "train.patience=12",
    "train.learning_rate=1e-6",  # what nobody tuned
    "cluster.readers=1",
    "cluster.window_events=500",
    "cluster.mix_shards=4",
)


@pytest.fixture(scope="module", autouse=True)
def cluster(cache):
    with session(ClusterConfig(num_workers=2, readers=1, object_store_bytes=200 << 20)):
        yield


@pytest.fixture(scope="module")
def dataset(root):
    write_dataset(root / "dataset", planted_histories(), shards=6, row_group_events=120)
    return root / "dataset"


def space(trials: int) -> Space:
    """Good and bad learning rates, of which the good one is drawn first and a bad one next, by the first seed that does."""
    domains = {"train.learning_rate": (GOOD, BAD), "model.l2": (0.25, 0.2501)}
    for seed in range(100):
        found = Space(domains, Goal(latency_ms=10_000, metric="ndcg@10"), Search(trials=trials, seed=seed, grace_epochs=1,
                      startup_trials=1))  # fmt: skip
        study = Study(found)
        first = study.ask(0)
        study.tell(Trial(0, first, FINISHED, 0.5, 1.0))
        if (first["train.learning_rate"], study.ask(1, [first])["train.learning_rate"]) == (GOOD, BAD):
            return found
    raise AssertionError("no such seed")


class Told:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.bars: dict[str, tuple[int, int]] = {}

    def note(self, text: str) -> None:
        self.notes.append(text)

    def stage(self, name: str, done: int, total: int) -> None:
        self.bars[name] = (done, total)


@pytest.fixture(scope="module")
def first(root, dataset):
    config = load_config(overrides=[*SETTINGS, f"cluster.storage={root / 'runs'}"])
    told = Told()
    return tune(dataset, space(3), config, name="planted", watcher=told), told, config


def test_the_planted_setting_wins_and_the_bad_one_is_stopped_early(first):
    found, told, _ = first
    plain, good, bad = found.trials
    assert plain.settings == {} and plain.state == FINISHED and plain.goal < good.goal
    assert found.best == good and good.settings["train.learning_rate"] == GOOD
    assert (good.state, bad.state) == (FINISHED, STOPPED)
    assert good.epochs == 12 and 2 <= bad.epochs < 12 and bad.goal < good.goal / 2
    assert load_config(found.settings).train.learning_rate == GOOD
    assert told.bars["tune: trials"] == (3, 3)
    assert any("trial-002: stopped early" in note for note in told.notes)


def test_trials_are_ordinary_runs_measured_as_they_would_be_served(first):
    found, *_ = first
    _, good, bad = (found.folder / trial.name for trial in found.trials)
    measured = json.loads((good / runs.RESULT).read_text())["metrics"]["ndcg@10"]
    assert found.best.goal == pytest.approx(measured, abs=1e-6)  # the index of so few items is exact
    assert 0 < found.best.latency_ms < math.inf
    assert not (bad / runs.RESULT).exists() and list(bad.glob("checkpoint_*/state.json"))  # it could be gone on with


def test_the_folder_holds_results_and_picture_and_nothing_else(first):
    found, *_ = first
    left = {path.name for path in found.folder.iterdir()}
    assert left == {".lock", "tune.json", "trials.jsonl", "best.toml", "trials.png", "trial-000", "trial-001", "trial-002"}
    assert matplotlib.image.imread(found.picture).std() > 0.01


def processes_of_trials() -> list[str]:
    below = {child.pid for child in psutil.Process().children(recursive=True)}
    names = [" ".join(child.info["cmdline"] or ()) for child in psutil.process_iter(["cmdline"]) if child.pid in below]
    return [name for name in names if "RayTrainWorker" in name or "TrainController" in name]


def test_no_process_of_a_trial_is_left(first):
    deadline = time.monotonic() + 20  # Ray ends an actor a moment after who owns it
    while (left := processes_of_trials()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left


def test_one_more_trial_leaves_those_that_are_over_alone(first, dataset):
    before, _, config = first
    told = Told()
    again = tune(dataset, space(4), config, name="planted", watcher=told)
    assert again.trials[:3] == before.trials and len(again.trials) == 4
    assert {note.split()[0].rstrip(":") for note in told.notes if note.startswith("trial-")} == {"trial-003"}
    assert again.best.settings["train.learning_rate"] == GOOD
    assert tune(dataset, space(4), config, name="planted").trials == again.trials


def test_another_tune_of_that_name_is_refused(first, dataset):
    _, _, config = first
    other = load_config(overrides=["model.dim=24"], base=config.model_dump(mode="json"))
    with pytest.raises(ConfigError, match="is a tune of another config"):
        tune(dataset, space(4), other, name="planted")


def test_more_at_once_than_there_is_room_for_is_refused(dataset, root):
    config = load_config(overrides=[*SETTINGS, f"cluster.storage={root / 'runs'}"])
    with pytest.raises(ConfigError, match=r"--at-once 50: takes 101 CPUs"):
        tune(dataset, space(2), config, name="crowd", at_once=50)


def test_a_goal_that_no_model_measures_is_refused_before_any_trial(dataset, root):
    config = load_config(overrides=[*SETTINGS, f"cluster.storage={root / 'runs'}"])
    asked = Space(space(2).settings, Goal(metric="ndgc@10"), Search(trials=2))
    with pytest.raises(ConfigError, match=r"train\.metric = 'ndgc@10'"):
        tune(dataset, asked, config, name="misspelt")
