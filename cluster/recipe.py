"""Recipes: how a published figure is made again, or models are set side by side, as TOML under recipes/."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from recsys.config import (
    BLENDED,
    LOWER_IS_BETTER,
    MODEL_NAMES,
    OF_HISTORIES,
    RANKING_METRICS,
    Config,
    check_model,
    config_of,
    nearest,
    read_toml,
)
from recsys.errors import ConfigError

RECIPES = Path(__file__).parents[1] / "recipes"

VARIED = ("model", "train")
"""Sections that a variant may have: all of a recipe are trained on the same dataset, in the same cluster."""
POPULARITY = "popularity"
"""What stands beside every variant, so that none may have its name."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class RecipeSource(_Part):
    """Which raw data, where it comes from, and how it is known to be the same."""

    file: str = Field(pattern=r"^[^/\\]+$")
    """Archive under $RECSYS_DATA; if it ends in .zip, a folder of that name without .zip will do."""
    inside: str | None = None
    """The one file that is prepared, by its path in the folder; unset: the folder."""
    files: dict[str, Sha256] = Field(min_length=1)
    """SHA-256 of the files that are learnt from and scored, whatever they come in."""
    url: str | None = Field(None, pattern=r"^https?://")
    """Where the archive can be downloaded."""
    sha256: Sha256 | None = None
    """Of the archive at `url`."""
    published: str
    """Where people find it."""
    licence: str
    citation: str

    @model_validator(mode="after")
    def _download_is_checked(self) -> "RecipeSource":
        if (self.url is None) != (self.sha256 is None):
            raise ValueError("url and sha256 go together: a download is held against its hash")
        return self


class Goal(_Part):
    """What the mean over seeds should reach."""

    metric: str
    must: float
    stretch: float | None = None

    def reached(self, value: float, wanted: float) -> bool:
        """Whether a value is as good as one that is wanted."""
        return value <= wanted if self.metric in LOWER_IS_BETTER else value >= wanted


class Published(_Part):
    """A row of somebody's table, made by the same protocol."""

    model: str
    figures: dict[str, float] = Field(min_length=1)
    source: str


class Variant(_Part):
    """One of the models a recipe compares. config: the recipe's sections, with the variant's own over them."""

    name: str = Field(pattern=r"^[\w.+-]+$")
    config: Config


class Asked(NamedTuple):
    """A trial: one of the models, with one seed, on one dataset."""

    variant: Variant
    seed: int
    fold: str | None


class Recipe(_Part):
    """What a recipe's file says. config: its sections [data], [model], [train], [index], [cluster], merged like any config."""

    name: str
    title: str
    about: str = ""
    """What a reader of the page should know of the protocol."""
    source: RecipeSource
    protocol: Literal["full", "negatives"] = "full"
    """As of `recsys evaluate`: every trained item is ranked, or the items stored with the test."""
    metrics: tuple[str, ...] = Field(min_length=1)
    """Metrics that are shown."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 1, 2), min_length=1)
    folds: tuple[str, ...] = ()
    """Values of data.fold, each prepared apart; a figure is then the mean over them."""
    goal: Goal | None = None
    published: tuple[Published, ...] = ()
    variants: tuple[Variant, ...] = ()
    """Models that are compared, [[variant]] each in the file; none: the recipe is one model."""
    parts: tuple[Variant, ...] = ()
    """Models that are trained apart and blended (`cluster.blending`), best first, [[part]] each in the file."""
    against: Annotated[tuple[str, ...], BeforeValidator(lambda told: (told,) if isinstance(told, str) else told)] = ()
    """The variant, or several, that the others are set against, user by user, beside popularity."""
    config: Config

    @model_validator(mode="after")
    def _fits_together(self) -> "Recipe":
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed stands there twice")
        known = [name for row in self.published for name in row.figures] + ([self.goal.metric] if self.goal else [])
        if unknown := [name for name in known if name not in self.metrics]:
            raise ValueError(f"{unknown[0]} is not among the metrics that are shown")
        for loss in (variant.config.model.loss for variant in self.compared):
            if unmeasured := [name for name in self.metrics if not _is_measured(name, loss)]:
                raise ValueError(f"{unmeasured[0]} is not measured of model.loss = {loss}")
        return self

    @model_validator(mode="after")
    def _parts_can_be_blended(self) -> "Recipe":
        names = [part.name for part in self.parts]
        if self.parts and (self.variants or len(set(names)) < 2):
            raise ValueError("a blend has two parts or more, of different names, and is no variant")
        if sum(part.config.model.name in OF_HISTORIES for part in self.parts) > 1:
            raise ValueError(
                f"a blend has one of {', '.join(OF_HISTORIES)} at most: each has an encoder, and a bundle holds one"
            )
        for part in self.parts:
            model, metric = part.config.model, part.config.train.metric
            if model.name not in BLENDED or model.loss == "mse" or metric != self.config.train.metric:
                raise ValueError(
                    f"part {part.name}: a part is one of {', '.join(BLENDED)}, chosen by the recipe's train.metric"
                )
        return self

    @model_validator(mode="after")
    def _variants_can_be_compared(self) -> "Recipe":
        names = [variant.name for variant in self.variants]
        if unknown := [name for name in self.against if name not in names]:
            raise ValueError(f"against {unknown[0]}: no variant has that name")
        if not names:
            return self
        if twice := [name for place, name in enumerate(names) if name in (POPULARITY, *names[:place])]:
            raise ValueError(f"variant {twice[0]}: another has that name")
        if {variant.config.train.metric for variant in self.variants} != {self.config.train.metric}:
            raise ValueError("variants are chosen by one metric: set train.metric for all of them")
        if self.folds or self.goal or set(self.metrics) & set(LOWER_IS_BETTER):
            raise ValueError("variants are compared by rankings of one dataset, without folds, goal or errors of ratings")
        return self

    @property
    def compared(self) -> tuple[Variant, ...]:
        """The variants, or the one model there is."""
        if self.parts:
            return (Variant(name="+".join(part.name for part in self.parts), config=self.config),)
        return self.variants or (Variant(name=self.config.model.name, config=self.config),)

    @property
    def trials(self) -> tuple[Asked, ...]:
        """Every seed, on every fold, of every variant."""
        folds = self.folds or (None,)
        return tuple(Asked(variant, seed, fold) for seed in self.seeds for fold in folds for variant in self.compared)

    def settings(self, asked: Asked, storage: Path, part: Variant | None = None) -> Config:
        """Those of one trial, or of a part of it. A seed changes what is drawn in training, never the split."""
        config = (part or asked.variant).config
        ks = {int(name.partition("@")[2]) for name in self.metrics if "@" in name}
        train = {"seed": asked.seed, "metric_ks": tuple(sorted({*config.train.metric_ks, *ks}))}
        changed = {
            "data": config.data.model_copy(update={"fold": asked.fold} if asked.fold else {}),
            "train": config.train.model_copy(update=train),
            "cluster": config.cluster.model_copy(update={"storage": str(storage)}),
        }
        return config.model_copy(update=changed)


def changed(config: Config) -> dict[str, Any]:
    """Settings that are not what the model has by default, by section.key."""
    told = config.model_dump(mode="json")
    usual = Config.model_validate({"model": {"name": config.model.name}}).model_dump(mode="json")
    usual["model"]["name"] = None
    return {
        f"{section}.{key}": value
        for section, keys in told.items()
        for key, value in keys.items()
        if value != usual[section][key]
    }


def all_recipes(folder: Path = RECIPES) -> list[Recipe]:
    """Every recipe of a folder, by name."""
    return [read_recipe(path) for path in sorted(folder.glob("*.toml"))]


def find_recipe(asked: str, folder: Path = RECIPES) -> Recipe:
    """A recipe by its name, or by the path of its file. Raises ConfigError with the nearest name where there is none."""
    if asked.endswith(".toml"):
        return read_recipe(Path(asked))
    path = folder / f"{asked}.toml"
    if not path.is_file():
        names = [path.stem for path in sorted(folder.glob("*.toml"))]
        hint = nearest(asked, names) if names else f" {folder} holds none: give the path of a file."
        raise ConfigError(f"{asked}: no such recipe.{hint}")
    return read_recipe(path)


def read_recipe(path: Path) -> Recipe:
    """Read a recipe's file. Raises ConfigError with the nearest name for an unknown key, or with what a value should be."""
    told = read_toml(path, "`recsys reproduce --list` shows the recipes.")
    sections = {name: told.pop(name) for name in Config.model_fields if name in told}
    trained = [name for name in MODEL_NAMES if name != "popularity"]  # which stands beside every figure
    config = _config(path, sections, trained)
    variants, parts = (_variants(path, told.pop(kind, []), sections, kind) for kind in ("variant", "part"))
    known = [name for name in Recipe.model_fields if name not in ("name", "config", "variants", "parts")]
    for name in told:
        if name not in known:
            raise ConfigError(f"{path}: no key {name}.{nearest(name, [*known, 'variant', 'part', *Config.model_fields])}")
    try:
        return Recipe.model_validate({**told, "name": path.stem, "config": config, "variants": variants, "parts": parts})
    except ValidationError as error:
        raise ConfigError(f"{path}: {_explain(error)}") from None


def _variants(path: Path, told: Any, sections: dict[str, dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Of each [[variant]] or [[part]] its name, and its sections over the recipe's."""
    if not (isinstance(told, list) and all(isinstance(one, dict) for one in told)):
        raise ConfigError(f"{path}: a {kind} is a table. Write [[{kind}]] above each.")
    return [_variant(path, one, sections, kind) for one in told]


def _variant(path: Path, told: dict[str, Any], sections: dict[str, dict[str, Any]], kind: str) -> dict[str, Any]:
    for name, value in told.items():
        if name != "name" and name not in VARIED:
            raise ConfigError(f"{path}: no key {kind}.{name}.{nearest(name, ['name', *VARIED])}")
        if name in VARIED and not isinstance(value, dict):
            raise ConfigError(f"{path}: {kind}.{name} is a section; write {name}.key = value.")
    own = {name: sections.get(name, {}) | told[name] for name in VARIED if name in told}
    named = {"name": told["name"]} if "name" in told else {}
    return {**named, "config": _config(path, sections | own, MODEL_NAMES)}


def _config(path: Path, sections: dict[str, Any], models: Sequence[str]) -> Config:
    config = config_of(sections, str(path))
    if config.model.name not in models:
        raise ConfigError(f"{path}: model.name = {config.model.name!r}: no such model.{nearest(config.model.name, models)}")
    check_model(config.model)
    return config


def _is_measured(metric: str, loss: str) -> bool:
    name, at, k = metric.partition("@")
    if metric in LOWER_IS_BETTER:
        return loss == "mse"
    return name in RANKING_METRICS and bool(at) and k.isdigit() and int(k) > 0


def _explain(error: ValidationError) -> str:
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")  # a misspelt key is also a missing one
    *parents, name = [str(part) for part in first["loc"]] or ["recipe"]
    if first["type"] == "extra_forbidden":
        parts: dict[str, type[BaseModel]] = {"source": RecipeSource, "goal": Goal, "published": Published}
        return f"no key {'.'.join([*parents, name])}.{nearest(name, list(parts[parents[0]].model_fields))}"
    return f"{'.'.join([*parents, name])}: {first['msg'].lower()}."
