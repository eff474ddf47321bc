"""Checkpoints: going on is as if nothing had happened; another run's are refused with the difference."""

import json

import planted
import pytest
import torch

from recsys.config import Config, TrainConfig
from recsys.data.plan import Leg
from recsys.errors import ConfigError, RecsysError
from recsys.models import MODELS, PERSONALISED
from recsys.models.owned import UserRanges
from recsys.training import checkpoint
from recsys.training.loop import EpochStats
from recsys.training.stopping import EarlyStopping
from recsys.training.user_parts import part_file

METRICS = {"ndcg@10": 0.5}


@pytest.fixture(scope="module")
def world():
    return planted.two_tastes()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", PERSONALISED)
@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_two_epochs_and_two_more_are_four(tmp_path, world, name, optimizer, precision):
    settings = planted.QUICK.model_copy(update={"optimizer": optimizer, "precision": precision, "clip_norm": 0.05})
    config = planted.config_of(name, train=settings)
    straight = planted.train(planted.start(world, config), world, 4)
    checkpoint.save(tmp_path, planted.train(planted.start(world, config), world, 2))
    torch.manual_seed(99)
    resumed = checkpoint.load(tmp_path, planted.start(world, config, seed=5))
    assert resumed.epoch == 2
    planted.train(resumed, world, 2)
    assert same(straight.weights(), resumed.weights())
    moments = [[m for one in state.optimizers[:1] for m in one.state.values()] for state in (straight, resumed)]
    assert all(torch.equal(one["first"], other["first"]) for one, other in zip(*moments, strict=True) if "first" in one)


def test_everything_else_comes_back(tmp_path, world):
    config = planted.config_of()
    state = planted.start(world, config)
    state.finish_epoch({"ndcg@10": 0.5})
    state.finish_epoch({"ndcg@10": 0.4})
    state.legs, state.history = [Leg(3, 17), Leg(1, 2)], [{"epoch": 0, "ndcg@10": 0.5, "loss": float("inf")}]
    state.so_far = EpochStats(loss=1.5, events=7, steps=19, skipped=0, grad_norm=0.1, seconds=2.0, wait_seconds=0.5)
    checkpoint.save(tmp_path, state)
    loaded = checkpoint.load(tmp_path, planted.start(world, config))
    assert (loaded.epoch, loaded.legs, loaded.step, loaded.history) == (2, state.legs, 19, state.history)
    assert loaded.so_far == state.so_far
    assert loaded.stopping.state_dict() == {"best": 0.5, "best_epoch": 0, "waited": 1}
    assert [s.state_dict() for s in loaded.schedulers] == [s.state_dict() for s in state.schedulers]
    json.loads((tmp_path / checkpoint.STATE_FILE).read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_the_best_weights_are_kept_aside_and_come_back(tmp_path, world):
    config = planted.config_of()
    state = planted.start(world, config)
    assert state.finish_epoch({"ndcg@10": 0.5})
    best = {name: tensor.clone() for name, tensor in state.weights().items()}
    checkpoint.save(tmp_path / "first", state)
    assert not (tmp_path / "first" / checkpoint.BEST_FILE).exists(), "the latest are the best: no need for a second copy"
    planted.train(state, world, 1)
    assert not state.finish_epoch({"ndcg@10": 0.5}), "equal is not better"
    assert not same(state.weights(), best)
    checkpoint.save(tmp_path / "second", state)
    for folder in ("first", "second"):
        assert same(checkpoint.read_weights(tmp_path / folder), best)
        loaded = checkpoint.load(tmp_path / folder, planted.start(world, config, seed=9))
        loaded.restore_best()
        assert same(loaded.weights(), best)


@pytest.mark.parametrize("name", [name for name in PERSONALISED if MODELS[name].learns == "gradients"])
def test_where_weights_are_averaged_their_means_are_what_is_kept(tmp_path, world, name):
    settings = planted.QUICK.model_copy(update={"average": 0.9})
    config = planted.config_of(name, train=settings)
    state = planted.train(planted.start(world, config), world, 3)
    latest = {name: tensor.clone() for name, tensor in state.weights().items()}
    assert state.finish_epoch(METRICS)
    assert not same(state.best, latest)
    checkpoint.save(tmp_path, state)
    assert same(checkpoint.read_weights(tmp_path), state.best)
    loaded = checkpoint.load(tmp_path, planted.start(world, config, seed=9))
    assert same(loaded.weights(), latest) and same(loaded.best, state.best) and same(loaded.kept(), state.best)
    state.best = {}  # as in a refit, which validates nothing
    state.restore_best()
    assert same(state.weights(), loaded.best)


def test_in_the_middle_of_an_epoch_the_latest_are_not_the_best(tmp_path, world):
    state = planted.start(world, planted.config_of())
    state.finish_epoch(METRICS)
    best = {name: tensor.clone() for name, tensor in state.weights().items()}
    planted.train(state, world, 1)
    state.epoch, state.legs = 1, [Leg(1, 4)]
    checkpoint.save(tmp_path, state)
    assert same(checkpoint.read_weights(tmp_path), best)


def test_a_plateau_slows_down_and_patience_ends(world):
    state = planted.start(world, planted.config_of(train=TrainConfig(patience=4, plateau_patience=1, plateau_factor=0.5)))
    rates = []
    for _ in range(5):
        state.finish_epoch(METRICS)
        rates.append(state.optimizers[0].param_groups[0]["lr"])
    first = TrainConfig().learning_rate
    assert rates == [first, first, first / 2, first / 2, first / 4]
    assert state.stopping.exhausted


def test_of_errors_the_lowest_is_the_best():
    stopping = EarlyStopping("rmse", patience=2)
    assert [stopping.improved(epoch, {"rmse": value}) for epoch, value in enumerate((1.0, 0.9, 0.95))] == [True, True, False]
    assert (stopping.best, stopping.best_epoch, stopping.exhausted) == (0.9, 1, False)


@pytest.mark.parametrize(
    ("now", "dataset", "difference"),
    [
        ({"model": {"dim": 16}}, "planted", "model.dim: 8 → 16"),
        ({"train": {"batch_size": 64}}, "planted", "train.batch_size: 256 → 64"),
        ({}, "another", "dataset: planted → another"),
    ],
)
def test_another_run_is_refused_with_the_difference(tmp_path, world, now, dataset, difference):
    config = planted.config_of()
    checkpoint.save(tmp_path, planted.start(world, config))
    content = config.model_dump()
    for section, values in now.items():
        content[section] |= values
    with pytest.raises(ConfigError, match=difference):
        checkpoint.load(tmp_path, planted.start(world, Config.model_validate(content), dataset=dataset))


def test_within_an_epoch_the_window_must_stay_since_what_is_left_is_told_from_it(tmp_path, world):
    config = planted.config_of()
    content = config.model_dump()
    content["cluster"]["window_events"] = 7
    other = Config.model_validate(content)
    state = planted.start(world, config)
    checkpoint.save(tmp_path / "between", state)
    checkpoint.load(tmp_path / "between", planted.start(world, other))
    state.legs = [Leg(1, 4)]
    checkpoint.save(tmp_path / "within", state)
    with pytest.raises(ConfigError, match=r"cluster\.window_events: 1048576 → 7"):
        checkpoint.load(tmp_path / "within", planted.start(world, other))


def test_a_worker_without_users_leaves_an_empty_part(tmp_path, world):
    """More workers than shards: he must not write rows that are others'."""
    state = planted.start(world, planted.config_of(), owned=UserRanges.of([]))
    assert state.weights()["user_table"].shape[0] == 0
    checkpoint.save(tmp_path, state)
    assert checkpoint.read_weights(tmp_path)["user_table"].shape[0] == 0
    with pytest.raises(RecsysError, match="rows of 0 of 300 users"):
        checkpoint.load(tmp_path, planted.start(world, planted.config_of()))


def test_what_cannot_be_written_is_an_oserror_and_no_checkpoint(tmp_path, world):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="not every worker could write"):
        checkpoint.save(tmp_path / "file", planted.start(world, planted.config_of()))


def test_what_does_not_change_the_model_may_differ(tmp_path, world):
    config = planted.config_of()
    checkpoint.save(tmp_path, planted.train(planted.start(world, config), world, 1))
    content = config.model_dump()
    content["cluster"]["num_workers"], content["index"]["kind"] = 7, "ivf"
    content["train"] |= {"epochs": 99, "patience": 9, "precision": "bf16"}
    state = checkpoint.load(tmp_path, planted.start(world, Config.model_validate(content)))
    assert state.epoch == 1
    assert state.stopping.patience == 9


@pytest.mark.parametrize("name", [checkpoint.STATE_FILE, checkpoint.MODEL_FILE, checkpoint.OPTIMIZER_FILE, part_file(0, 1)])
@pytest.mark.parametrize("harm", ["missing", "cut"])
def test_an_incomplete_checkpoint_is_refused(tmp_path, world, name, harm):
    config = planted.config_of()
    checkpoint.save(tmp_path, planted.start(world, config))
    path = tmp_path / name
    path.unlink() if harm == "missing" else path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RecsysError):
        checkpoint.load(tmp_path, planted.start(world, config))


def test_a_later_format_is_refused(tmp_path, world):
    checkpoint.save(tmp_path, planted.start(world, planted.config_of()))
    path = tmp_path / checkpoint.STATE_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with pytest.raises(RecsysError, match="format version 99"):
        checkpoint.read_weights(tmp_path)
