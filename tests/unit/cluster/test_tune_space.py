"""A space of trials: read, and refused with what to do, before anything starts."""

from pathlib import Path

import pytest

from cluster.tuning.space import Range, configured, read_space, samples, trial_config
from recsys.config import Config, ModelConfig, check_model, load_config
from recsys.errors import ConfigError

ROOT = Path(__file__).parents[3]
WITHOUT_LIMIT = ("ncf-ml-1m-ials",)  # sought for a published table, not to be served


def read(tmp_path: Path, text: str, *overrides: str):
    (tmp_path / "space.toml").write_text(text, "utf-8")
    return read_space(tmp_path / "space.toml", load_config(overrides=overrides))


def test_reads_choices_ranges_and_what_is_sought(tmp_path):
    space = read(
        tmp_path,
        """
        [space]
        model.dim = [32, 64]
        "model.negatives" = ["none", 256]
        train.learning_rate = { low = 0.001, high = 0.1, log = true }
        [space.index]
        hnsw_ef_search = { low = 16, high = 64, step = 16 }
        [goal]
        latency_ms = 3
        [search]
        trials = 7
        """,
        "train.metric=hr@20",
    )
    assert space.settings["model.dim"] == (32, 64) and space.settings["model.negatives"] == (None, 256)
    assert space.settings["train.learning_rate"] == Range(low=0.001, high=0.1, log=True)
    assert space.settings["index.hnsw_ef_search"].whole
    assert (space.goal.metric, space.goal.latency_ms, space.search.trials) == ("hr@20", 3, 7)
    assert space.with_trials(9).search.trials == 9 and space.with_trials(None) == space


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[space]\nmodel.dims = [8, 16]", r"no setting model\.dims\. Did you mean dim\?"),
        ("[space]\nmodle.dim = [8, 16]", r"no section modle\. Did you mean model\?"),
        ("[spaces]\nmodel.dim = [8, 16]", r"no table \[spaces\]\. Did you mean space\?"),
        ("[space]\nmodel.dim = [8, 16]\n[goal]\nlatency = 3", r"no setting goal\.latency\. Did you mean latency_ms\?"),
        ("[space]\nmodel.dim = [8, 16]\n[search]\ntrials = 0", r"search\.trials = 0"),
        ("[space]\nmodel.dim = [8, 0]", r"model\.dim = 0: input should be greater than or equal to 1"),
        ("[space]\nmodel.dim = [8, 'wide']", r"model\.dim = 'wide'"),
        ("[space]\nmodel.dim = {low = 8, high = 64, step = 0.5}", r"model\.dim = 28\.72"),
        ("[space]\nmodel.dim = {low = 8, hihg = 64}", r"no setting model\.dim\.hihg\. Did you mean high\?"),
        ("[space]\nmodel.dim = {low = 8}", r"model\.dim\.high.*required"),
        ("[space]\nmodel.dim = {low = 64, high = 8}", r"low = 64 is not below high = 8"),
        ("[space]\nmodel.l2 = {low = 0.0, high = 1.0, log = true}", r"low = 0\.0 has no logarithm"),
        ("[space]\nmodel.l2 = {low = 0.1, high = 1.0, log = true, step = 0.1}", "log and step"),
        ("[space]\nmodel.dim = []", "no value at all"),
        ("[space]\nmodel.dim = [8, 8]", "stands there twice"),
        ("[space]\nmodel.dim = [[8], 16]", r"\[8\] is no single value"),
        ("[space]\nmodel.dim = 8", "one value only"),
        ("[space]\nmodel.biases = ['yes', 'no']", r"model\.biases = 'yes' would be taken as True"),
        ("[space]\ncluster.num_workers = [1, 2]", "cluster is no part of a trial"),
        ("[space]\ntrain.metric = ['hr@10', 'ndcg@10']", r"incomparable\. Set the metric in \[goal\]"),
        ("[goal]\nlatency_ms = 3", r"nothing to try\. Write \[space\]"),
        ("[space]\nmodel.dim = [8, ", "not valid TOML"),
    ],
)
def test_refuses_with_what_to_do(tmp_path, text, told):
    with pytest.raises(ConfigError, match=told):
        read(tmp_path, text)


def test_a_trial_has_what_suits_its_model_and_what_was_set(tmp_path):
    base = load_config(overrides=["train.epochs=7", "train.metric=hr@20"])
    config = configured(base, {"model.name": "sasrec", "model.dropout": 0.4})
    assert (config.train.epochs, config.model.dropout) == (7, 0.4)
    assert config.train.patience == Config.model_validate({"model": {"name": "sasrec"}}).train.patience
    space = read(tmp_path, "[space]\nmodel.dim = [8, 16]\n[goal]\nmetric = 'mrr@5'")
    config = trial_config(base, space, {"model.dim": 8}, tmp_path)
    assert (config.train.metric, config.cluster.storage, config.model.dim) == ("mrr@5", str(tmp_path), 8)


def test_drawn_numbers_are_short_and_stay_within():
    assert Range(low=0.001, high=0.1).rounded(0.0123456) == 0.01235
    assert Range(low=0.001, high=0.00123456).rounded(0.00123456) == 0.00123456
    assert Range(low=1, high=9).rounded(5) == 5
    assert Range(low=0.00125, high=1.0, step=0.00125).rounded(0.71625) == 0.71625  # on the grid, or Optuna refuses it later


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "spaces").glob("*.toml")), ids=lambda path: path.stem)
def test_the_spaces_that_come_along_can_be_read(path):
    space = read_space(path, Config())
    assert (space.goal.latency_ms is None) == (path.stem in WITHOUT_LIMIT)
    models = [trial_config(Config(), space, settings, path).model for settings in samples(space, 20)]
    assert any(model == checked(model) for model in models)


def checked(model: ModelConfig) -> ModelConfig | None:
    """None where no model can have these settings."""
    try:
        check_model(model)
    except ConfigError:
        return None
    return model
