"""A finished run opened again, without Ray: its result, its dataset, the model of its best epoch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cluster import runs
from cluster.reading import add_recent
from recsys.config import Config
from recsys.data import schema
from recsys.data.attributes import Attributes, attributes_of
from recsys.data.dataset import DatasetManifest, UserFile, read_items, read_manifest
from recsys.data.histories import Histories
from recsys.data.recent import RecentCounts
from recsys.errors import DataError
from recsys.models import MODELS, Catalogue, Popularity, build
from recsys.models.blend import Blend
from recsys.models.owned import UserRanges
from recsys.models.trend import Trend
from recsys.retrieval.fold_in import fold_in, gram_of
from recsys.retrieval.softmax_fold_in import SoftmaxFoldIn
from recsys.training import checkpoint

PARTS = "parts"
"""Of result.json: the runs that a blend is made of, with their weights."""


def helping(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Of a blend's result its parts that have a weight: one that did not help would only take up time and room."""
    return [part for part in result[PARTS] if part["weight"]]


@dataclass(frozen=True)
class Finished:
    """A run that has a result, and the dataset it learnt from."""

    folder: Path
    result: dict[str, Any]
    config: Config
    dataset: Path
    manifest: DatasetManifest

    def model(self, counts: NDArray[np.int64]) -> Any:
        """The model of its best epoch, or the blend of those it is made of. counts: [N] events of each item it learnt from."""
        if PARTS not in self.result:
            return best_model(self.folder, self.config, self.dataset, self.manifest, counts)
        told = helping(self.result)
        parts = [open_finished(self.part(part["run"]), self.dataset) for part in told]
        return Blend([part.model(counts) for part in parts], [part["weight"] for part in told], counts).eval()

    def part(self, run: str) -> Path:
        """Where it lay, or beside the blend: a folder of runs may have moved."""
        return Path(run) if Path(run).is_dir() else self.folder.parent / Path(run).name

    def trend(self, files: Sequence[UserFile], border: str, counts: NDArray[np.int64]) -> Trend | None:
        """What its lists lean to, of the events before a border. files: of `trained_until`; counts: [N] of these events."""
        told = self.result.get("trend")
        if told is None:
            return None
        recent = RecentCounts(self.manifest.items, (told["half_life_days"],))
        for _ in add_recent(recent, self.dataset, files, border):
            pass
        return Trend(told["half_life_days"], told["weight"], recent.lately(told["half_life_days"], counts))

    @property
    def border(self) -> str:
        """What the run trained on ends here: valid, or for a refit test or end; end where an older refit does not say."""
        if not self.result["refit"]:
            return schema.VALID
        return schema.TEST if self.result.get("trained_until") == schema.TEST else schema.END


def open_finished(run: Path, dataset: Path | None = None) -> Finished:
    """Open a run folder. dataset: where its dataset lies now; unset: where it lay.

    Raises DataError for a run that is not finished, or where the dataset is not the one it learnt from.
    """
    run = Path(run).resolve()
    result = runs.read_json(run / runs.RESULT)
    if result is None:
        if not (run / runs.CONFIG).is_file():
            what = "a dataset, and no run" if (run / schema.DATASET_FILE).is_file() else "no run folder"
            raise DataError(f"{run}: {what}. `recsys train DATASET` makes one and prints where it is.")
        raise DataError(f"{run}: this run is not finished. The command that trained it last goes on with it.")
    dataset = Path(dataset or result["dataset"])
    manifest = read_manifest(dataset)
    if manifest.fingerprint != result["fingerprint"]:
        raise DataError(
            f"{dataset}: not the dataset that {run.name} learnt from, {result['dataset']}, or prepared anew since. "
            "Give that one, or train on this one."
        )
    return Finished(run, result, Config.model_validate(result["config"]), dataset, manifest)


def catalogue_of(
    dataset: Path,
    manifest: DatasetManifest,
    config: Config,
    counts: NDArray[np.int64],
    owned: UserRanges | None = None,
) -> Catalogue:
    """What a model must know before it sees an event: of its items no more than it looks at. counts: [N] train events.

    Raises ConfigError where `model.attributes` names what items.parquet does not have.
    """
    reads = getattr(MODELS[config.model.name], "reads_attributes", False)
    attributes = features_of(dataset, config) if reads else None
    return Catalogue(manifest.users, manifest.items, counts, manifest.mean_rating, owned, attributes)


def features_of(dataset: Path, config: Config) -> Attributes:
    """What is known of a dataset's items, as the settings have it read. Raises ConfigError as `catalogue_of` does."""
    return attributes_of(read_items(dataset), config.model.attributes, least=config.model.attribute_items)


def best_model(folder: Path, config: Config, dataset: Path, manifest: DatasetManifest, counts: NDArray[np.int64]) -> Any:
    """The model of a run folder's best epoch, all users' rows, on the CPU. counts: [N] events of each item it learnt from.

    Raises DataError where the weights are not of this release's model.
    """
    if config.model.name == "popularity":
        return Popularity(counts)
    model = build(config.model, catalogue_of(dataset, manifest, config, counts), config.train.seed)
    best = folder / runs.BEST
    try:
        model.load_state_dict(checkpoint.read_weights(best))
    except RuntimeError as error:
        raise DataError(f"{best}: not of this release's {config.model.name}. Train again.\n{error}") from None
    return model.eval()


def folded_in(model: Any, counts: NDArray[np.int64]) -> Callable[[Histories], torch.Tensor] | None:
    """Vectors of users the model never trained on, as they are made when served; None where the model makes them itself."""
    if isinstance(model, Popularity) or model.known_user == "history":
        return None
    if isinstance(model, Blend):
        makers = [folded_in(part, counts) or part.user_vectors for part in model.parts]
        return partial(model.side_by_side, makers)
    items = model.item_vectors().float().cpu().numpy()
    trained, parameters = np.flatnonzero(counts), model.fold_in_parameters()
    if model.fold_in == "softmax":
        descent = SoftmaxFoldIn(items, trained, parameters)

        def descended(known: Histories) -> torch.Tensor:
            histories = np.split(known.item, known.offsets[1:-1])
            return torch.from_numpy(np.stack([descent(history[counts[history] > 0]) for history in histories]))

        return descended
    gram = gram_of(items, trained)

    def solved(known: Histories) -> torch.Tensor:
        return torch.from_numpy(fold_in(items, known.offsets, known.item, known.rating, gram, parameters))

    return solved


def cutoffs(config: Config) -> tuple[int, ...]:
    """The k of every ranking metric that is reported, with that of the one that chooses the best epoch."""
    chosen = config.train.metric.partition("@")[2]
    return tuple(sorted({*config.train.metric_ks, *([int(chosen)] if chosen else [])}))
