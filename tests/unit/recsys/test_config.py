"""What suits a model where nothing is set; what is set stands."""

import pytest

from recsys.config import SUITED, Config, ModelConfig, TrainConfig, check_model, load_config, settled
from recsys.errors import ConfigError


def test_a_model_brings_its_own_defaults_and_what_is_set_stands():
    plain, own = load_config(), load_config(overrides=["model.name=sasrec", "train.epochs=7"])
    assert (plain.train, plain.model.negatives) == (TrainConfig(), 1024)
    assert (own.train.learning_rate, own.train.average, own.model.negatives) == (0.002, 0.999, None)
    assert own.train.epochs == 7
    assert own.train.patience == SUITED["sasrec"]["train"]["patience"]
    assert own.cluster == plain.cluster


def test_sections_made_by_hand_are_completed_alike():
    made = Config(model=ModelConfig(name="sasrec", dim=8), train=TrainConfig(epochs=7, learning_rate=0.01))
    assert (made.model.dim, made.train.learning_rate, made.train.patience) == (8, 0.01, 10)


@pytest.mark.parametrize("model", ["mf", "sasrec"])
def test_a_cosine_is_divided_by_a_tenth_unless_told(model):
    named = [f"model.name={model}", "model.cosine=true"]
    assert load_config(overrides=[f"model.name={model}"]).model.temperature == 1
    assert load_config(overrides=named).model.temperature == 0.1
    assert load_config(overrides=[*named, "model.temperature=1"]).model.temperature == 1
    towers = [load_config(overrides=["model.name=two_tower", f"model.cosine={told}"]).model for told in ("true", "false")]
    assert [tower.temperature for tower in towers] == [0.1, 1]


@pytest.mark.parametrize(("model", "loss"), [("mf", "mse"), ("ials", "squares"), ("bpmf", "mse")])
def test_what_learns_no_cosine_refuses_one(model, loss):
    config = load_config(overrides=[f"model.name={model}", f"model.loss={loss}", "model.cosine=true"])
    with pytest.raises(ConfigError, match=loss):
        check_model(config.model)


def test_few_users_make_small_batches_and_a_batch_that_is_set_stands():
    sizes = {
        users: settled(load_config(overrides=["model.name=sasrec"]), users, 99, 999).train.batch_size
        for users in (9, 671, 6040)
    }
    assert sizes == {9: 8, 671: 16, 6040: 128}
    assert settled(load_config(), 9, 99, 999).train.batch_size == 4096
    assert settled(load_config(overrides=["model.name=sasrec", "train.batch_size=64"]), 9, 99, 999).train.batch_size == 64


def test_what_was_saved_comes_back_whatever_suits_now(monkeypatch):
    saved = load_config(overrides=["model.name=sasrec"]).model_dump(mode="json")
    monkeypatch.setitem(SUITED, "sasrec", {"train": {"learning_rate": 0.5}})
    assert load_config(base=saved).model_dump(mode="json") == saved


@pytest.mark.parametrize("told", ["-1", "[0,2]", "[1]", "abc", "1.5"])
def test_a_number_of_workers_that_cannot_be_is_told_without_pydantics_words(told):
    with pytest.raises(ConfigError, match=r"^cluster\.num_workers = .*: give a whole number, or \[least, most\]"):
        load_config(overrides=[f"cluster.num_workers={told}"])
    with pytest.raises(ConfigError, match=r"^cluster: num_workers: least before most, not \(4, 1\)\."):
        load_config(overrides=["cluster.num_workers=[4,1]"])


def test_every_setting_that_suits_a_model_exists():
    for name in SUITED:
        load_config(overrides=[f"model.name={name}"])


@pytest.mark.parametrize(
    ("users", "items", "dim"),
    [(943, 1682, 32), (671, 9125, 32), (6040, 3416, 128), (30_000, 40_000, 256), (10**7, 10**6, 256), (33, 9, 8), (1, 1, 8)],
)
def test_spectral_has_as_many_dimensions_as_there_is_to_tell(users, items, dim):
    config = load_config(overrides=["model.name=spectral"])
    assert settled(config, users, items, 999).model.dim == dim
    assert settled(config, users, items, 999, begun=64).model.dim == 64  # as the run that it begins from
    told = load_config(overrides=["model.name=spectral", "model.dim=48"])
    assert settled(told, users, items, 999).model.dim == settled(told, users, items, 999, begun=64).model.dim == 48
    assert settled(load_config(), users, items, 999, begun=128).model.dim == 64  # the others' do not depend on the dataset


@pytest.mark.parametrize(("events", "average"), [(4096 * 100 - 1, 0.0), (4096 * 100, 0.9975), (4096 * 250, 0.999)])
def test_tables_of_gradients_are_averaged_over_epochs_where_one_is_many_steps(events, average):
    for model, mean in (("mf", average), ("ials", 0.0), ("two_tower", 0.0), ("sasrec", 0.999), ("popularity", 0.0)):
        config = load_config(overrides=[f"model.name={model}"])
        assert settled(config, 10**6, 99, events).train.average == pytest.approx(mean)
    assert settled(load_config(overrides=["train.average=0.5"]), 99, 99, events).train.average == 0.5
    assert settled(load_config(overrides=["train.average=0"]), 99, 99, events).train.average == 0


def test_whoever_learns_ratings_is_chosen_by_their_error():
    assert load_config(overrides=["model.loss=mse"]).train.metric == "rmse"
    assert load_config(overrides=["model.loss=mse", "train.metric=mae"]).train.metric == "mae"
    assert load_config(overrides=["model.name=bpmf", "train.epochs=3"]).train.model_dump(include={"metric", "epochs"}) == {
        "metric": "rmse",
        "epochs": 3,
    }
    assert load_config(overrides=["model.loss=bpr"]).train.metric == "ndcg@10"


def test_heads_that_do_not_divide_the_vector_are_refused():
    check_model(ModelConfig(name="sasrec", dim=8, heads=2))
    check_model(ModelConfig(name="mf", dim=7, heads=2))
    with pytest.raises(ConfigError, match=r"model\.heads = 3: must divide model\.dim = 8"):
        check_model(ModelConfig(name="sasrec", dim=8, heads=3))
