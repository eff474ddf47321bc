"""Models by name."""

import difflib
from typing import Any

from recsys.config import ModelConfig, check_model
from recsys.errors import ConfigError
from recsys.models.base import Catalogue, Model
from recsys.models.bpmf import BPMF
from recsys.models.ials import IALS
from recsys.models.mf import MF
from recsys.models.popularity import Popularity
from recsys.models.sasrec import SASRec
from recsys.models.spectral import Spectral
from recsys.models.two_tower import TwoTower

MODELS: dict[str, type[Any]] = {
    "popularity": Popularity,
    "mf": MF,
    "ials": IALS,
    "spectral": Spectral,
    "bpmf": BPMF,
    "sasrec": SASRec,
    "two_tower": TwoTower,
}
PERSONALISED = tuple(name for name in MODELS if name != "popularity")

__all__ = ["MODELS", "PERSONALISED", "Catalogue", "Model", "Popularity", "build"]


def build(config: ModelConfig, catalogue: Catalogue, seed: int) -> Any:
    """A fresh model, its weights drawn from `seed`; a `Popularity` has none.

    Raises ConfigError for an unknown name, or settings that the model cannot have.
    """
    if config.name not in MODELS:
        close = difflib.get_close_matches(config.name, MODELS, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(MODELS)}."
        raise ConfigError(f"model.name = {config.name!r}: no such model. {hint}")
    if config.name == "popularity":
        return Popularity(catalogue.item_counts)
    check_model(config)
    return MODELS[config.name](config, catalogue, seed)
