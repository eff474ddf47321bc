"""Recipes: every one under recipes/ is whole, and what is misspelt is refused with the nearest name."""

import tomllib
from pathlib import Path

import pytest

from cluster.recipe import RECIPES, Goal, all_recipes, changed, find_recipe, read_recipe
from recsys.config import TrainConfig
from recsys.errors import ConfigError
from recsys.models import MODELS

TEXT = f"""
title = "A recipe"
metrics = ["hr@7", "ndcg@10"]
seeds = [3, 4]
folds = ["u1", "u2"]
[source]
file = "x.zip"
files = {{ "x.csv" = "{"0" * 64}" }}
published = "nowhere"
licence = "none"
citation = "nobody"
[goal]
metric = "hr@7"
must = 0.5
[[published]]
model = "theirs"
figures = {{ "hr@7" = 0.4 }}
source = "a paper"
[model]
name = "sasrec"
[train]
epochs = 7
"""

COMPARED = (
    TEXT.partition("[goal]")[0].replace('folds = ["u1", "u2"]', 'against = "one"')
    + """
[train]
epochs = 7
[[variant]]
name = "one"
model.name = "ials"
[[variant]]
name = "two"
model = { name = "sasrec", dim = 8 }
train.epochs = 9
"""
)


def written(folder: Path, text: str = TEXT) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_project_is_whole(path):
    recipe = find_recipe(path.stem)
    assert recipe.name == path.stem and len(recipe.seeds) >= 3 and recipe.source.published
    told = tomllib.loads(path.read_text("utf-8"))
    models = [variant.config.model.name for variant in recipe.parts or recipe.compared]
    assert models == [one["model"]["name"] for one in told.get("variant", told.get("part", [told]))] and set(models) <= set(
        MODELS
    )
    metric = recipe.config.train.metric
    # Stored negatives belong to the test, so validation is asked for something else there.
    assert metric in recipe.metrics or recipe.protocol == "negatives", "chosen on validation by what is shown"


def test_there_are_recipes_and_they_come_by_name():
    names = [recipe.name for recipe in all_recipes()]
    assert names == sorted(names) and {"ml-1m-sasrec", "ncf-ml-1m-blend", "gowalla-spectral", "ml-100k-mse"} <= set(names)


def test_sections_are_merged_as_any_config(tmp_path):
    recipe = read_recipe(written(tmp_path))
    assert (recipe.config.train.epochs, recipe.config.train.learning_rate) == (7, 0.002)  # set; what suits sasrec
    assert changed(recipe.config) == {"model.name": "sasrec", "train.epochs": 7}
    assert [variant.name for variant in recipe.compared] == ["sasrec"] and not recipe.variants


def test_a_seed_changes_training_and_never_the_split(tmp_path):
    recipe = read_recipe(written(tmp_path))
    assert [asked[1:] for asked in recipe.trials] == [(3, "u1"), (3, "u2"), (4, "u1"), (4, "u2")]
    one, other = (recipe.settings(asked, tmp_path) for asked in recipe.trials if asked.fold == "u2")
    assert one.data == other.data and one.data.fold == "u2" and one.data.seed == 0
    assert (one.train.seed, other.train.seed) == (3, 4) and one.cluster.storage == str(tmp_path)
    assert one.train.metric_ks == (7, *TrainConfig().metric_ks)  # what is shown is measured


def test_a_variant_lays_its_sections_over_the_recipes_and_keeps_what_suits_its_model(tmp_path):
    recipe = read_recipe(written(tmp_path, COMPARED))
    assert [(asked.variant.name, asked.seed) for asked in recipe.trials] == [("one", 3), ("two", 3), ("one", 4), ("two", 4)]
    assert [changed(variant.config) for variant in recipe.variants] == [
        {"model.name": "ials", "train.epochs": 7},
        {"model.name": "sasrec", "model.dim": 8, "train.epochs": 9},
    ]
    first, second = (recipe.settings(asked, tmp_path) for asked in recipe.trials[:2])
    assert first.data == second.data and first.train.seed == second.train.seed == 3
    assert (first.train.patience, second.train.patience) == (3, 10) and first.train.metric_ks == (7, 10, 20)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('against = "one"', 'against = "three"', "against three: no variant has that name"),
        ('name = "two"', 'name = "one"', "variant one: another has that name"),
        ('name = "two"', 'name = "popularity"', "variant popularity: another has that name"),
        ('name = "two"', 'nam = "two"', r"no key variant\.nam\. Did you mean name\?"),
        ('name = "two"', "", r"variants\.1\.name: field required"),
        ("[[variant]]", "[[varaint]]", r"no key varaint\. Did you mean variant\?"),
        ('[[variant]]\nname = "two"\n', "", "cannot overwrite|Cannot overwrite"),
        ("train.epochs = 9", "data.seed = 9", r"no key variant\.data\."),
        ("train.epochs = 9", "train.epoch = 9", r"no setting train\.epoch\. Did you mean epochs\?"),
        ("train.epochs = 9", "train = 9", "variant.train is a section"),
        ("train.epochs = 9", 'train.metric = "hr@7"', "chosen by one metric"),
        ('"sasrec"', '"sasrek"', "no such model"),
        ('"sasrec"', '"sasrec", loss = "mse"', "sasrec learns by one of"),
        ("seeds =", 'folds = ["u1"]\nseeds =', "without folds"),
    ],
)
def test_a_mistake_in_a_variant_is_named(tmp_path, old, new, message):
    assert old in COMPARED
    with pytest.raises(ConfigError, match=message):
        read_recipe(written(tmp_path, COMPARED.replace(old, new, 1)))


PARTS = (
    TEXT.partition("[goal]")[0].replace('folds = ["u1", "u2"]', "")
    + """
[[part]]
name = "one"
model = { name = "mf" }
[[part]]
name = "two"
model = { name = "ials" }
train.epochs = 3
"""
)


def test_a_blend_has_parts_with_settings_of_their_own(tmp_path):
    recipe = read_recipe(written(tmp_path, PARTS))
    assert [part.name for part in recipe.parts] == ["one", "two"] and [each.name for each in recipe.compared] == ["one+two"]
    first, second = (recipe.settings(recipe.trials[0], tmp_path, part) for part in recipe.parts)
    assert (first.model.name, second.model.name, second.train.epochs) == ("mf", "ials", 3)
    assert first.train.seed == second.train.seed == recipe.seeds[0] and first.train.metric == second.train.metric


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "two"', 'name = "one"', "two parts or more, of different names"),
        ('name = "ials"', 'name = "bpmf"', "part two: a part is one of mf, ials, spectral|not measured"),
        ('name = "mf"', 'name = "mf", loss = "mse"', "part one: a part is one of"),
        ("train.epochs = 3", 'train.metric = "hr@7"', "part two: a part is one of .* chosen by the recipe's train.metric"),
        ("train.epochs = 3", "train.epoch = 3", r"no setting train\.epoch\. Did you mean epochs\?"),
        ("[[part]]", "[[variant]]", "is no variant"),
    ],
)
def test_a_mistake_in_a_part_is_named(tmp_path, old, new, message):
    assert old in PARTS
    with pytest.raises(ConfigError, match=message):
        read_recipe(written(tmp_path, PARTS.replace(old, new, 1)))


def test_a_single_table_is_no_list_of_variants(tmp_path):
    with pytest.raises(ConfigError, match=r"Write \[\[variant\]\] above each"):
        read_recipe(written(tmp_path, TEXT + '[variant]\nname = "one"\n'))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 7", "epoch = 7", r"mine\.toml: no setting train\.epoch\. Did you mean epochs\?"),
        ("[train]", "[trian]", r"no key trian\. Did you mean train\?"),
        ("title", "titel", r"no key titel\. Did you mean title\?"),
        ("must =", "most =", r"no key goal\.most\. Did you mean must\?"),
        ("licence =", "license =", r"no key source\.license\. Did you mean licence\?"),
        ("model = ", "modle = ", r"no key published\.0\.modle\. Did you mean model\?"),
        ('name = "sasrec"', 'name = "sasrek"', r"no such model\. Did you mean sasrec\?"),
        ('name = "sasrec"', 'name = "popularity"', "no such model"),
        ('metric = "hr@7"', 'metric = "hr@8"', "hr@8 is not among the metrics"),
        ('"hr@7" = 0.4', '"rmse" = 0.4', "rmse is not among the metrics"),
        ('["hr@7", "ndcg@10"]', '["hr@7", "rmse"]', "rmse is not measured of model.loss = softmax"),
        ("[3, 4]", "[3, 3]", "a seed stands there twice"),
        ("[3, 4]", "[]", "seeds: "),
        (f'"{"0" * 64}"', '"00"', r"source\.files\.x\.csv: "),
        ('file = "x.zip"', 'file = "x.zip"\nurl = "https://example.org/x.zip"', "url and sha256 go together"),
        ('file = "x.zip"', 'file = "../x.zip"', r"source\.file: "),
        ("epochs = 7", "epochs = 0", r"train\.epochs = 0"),
        ("title = ", "title ", "not valid TOML"),
    ],
)
def test_a_mistake_is_named(tmp_path, old, new, message):
    assert old in TEXT
    with pytest.raises(ConfigError, match=message):
        read_recipe(written(tmp_path, TEXT.replace(old, new, 1)))


def test_a_name_that_is_no_recipe_is_told_the_nearest():
    with pytest.raises(ConfigError, match=r"ml-1m-sasrek: no such recipe\. Did you mean ml-1m-sasrec\?"):
        find_recipe("ml-1m-sasrek")
    with pytest.raises(ConfigError, match="cannot be read"):
        find_recipe("nowhere.toml")


def test_of_errors_less_is_better():
    assert Goal(metric="rmse", must=0.9).reached(0.89, 0.9) and not Goal(metric="rmse", must=0.9).reached(0.91, 0.9)
    assert Goal(metric="hr@10", must=0.3).reached(0.3, 0.3) and not Goal(metric="hr@10", must=0.3).reached(0.29, 0.3)
