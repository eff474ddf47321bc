"""`recsys reproduce`: a recipe's figures made again, for every seed, fold and variant.

prepare → train, which chooses the epoch on validation → refit on train and validation → score test, once. No training here
measures test: it is read when a refit is done and nothing is left to choose. What is finished is not done again.
"""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster import evaluate_report, runs
from cluster.blending import blend, blend_of_refits
from cluster.evaluate import evaluate
from cluster.finished import PARTS
from cluster.pipeline import Watcher
from cluster.prepare import prepare
from cluster.recipe import Asked, Recipe
from cluster.recipe_source import find_source
from cluster.session import session
from cluster.trainer import RunResult, train
from recsys.config import Config, settled, with_trend
from recsys.data import schema
from recsys.data.dataset import DatasetManifest
from recsys.errors import ConfigError, DataError
from recsys.evaluation import metrics
from recsys.evaluation.sums import RankingSums
from recsys.training import machine

STAGE = "reproduce: trials"


@dataclass(frozen=True)
class Prepared:
    """A dataset of a recipe: of one of its folds, or the only one."""

    folder: Path
    manifest: DatasetManifest


def reproduce(recipe: Recipe, work: Path, watcher: Watcher, seeds: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """Make what is missing of some seeds (unset: all the recipe's), under `<work>/<recipe>`. Returns all trials that are done,
    those of other seeds too, in the recipe's order: each what `trials/<name>.json` says, and its variant. Where variants are
    compared, `worth` is what the lists were worth to each user: of each metric [2, U], the model's and popularity's.

    Raises what preparing, training and evaluating raise, ConfigError for a seed that the recipe has not.
    """
    if unknown := [seed for seed in seeds or () if seed not in recipe.seeds]:
        raise ConfigError(f"--seeds {unknown[0]}: {recipe.name} has the seeds {', '.join(map(str, recipe.seeds))}.")
    source, folder = find_source(recipe.source, watcher.stage), work / recipe.name
    wanted = [asked for asked in recipe.trials if seeds is None or asked.seed in seeds]
    with session(recipe.config.cluster):
        of_folds = {asked.fold: asked for asked in recipe.trials}
        datasets = {fold: _prepared(recipe, source, folder, asked, watcher) for fold, asked in of_folds.items()}
        for place, asked in enumerate(wanted):
            watcher.stage(STAGE, place, len(wanted))
            _Trial(recipe, folder, asked, datasets[asked.fold], watcher, f"{place + 1} of {len(wanted)}").make()
        watcher.stage(STAGE, len(wanted), len(wanted))
    trials = (_Trial(recipe, folder, asked, datasets[asked.fold], watcher, "") for asked in recipe.trials)
    return [done for trial in trials if (done := trial.done()) is not None]


def _prepared(recipe: Recipe, source: str, folder: Path, asked: Asked, watcher: Watcher) -> Prepared:
    """The dataset of a trial: of its fold, the same for every seed and variant."""
    dataset = folder / (f"dataset-{asked.fold}" if asked.fold else "dataset")
    folder.mkdir(parents=True, exist_ok=True)
    manifest = prepare([source], dataset, recipe.settings(asked, folder), watcher.stage)
    for segment in (schema.VALID, schema.TEST):
        if not manifest.segments[segment]:
            raise DataError(f"{dataset}: no events held out for {segment}. Mend [data] of the recipe {recipe.name}.")
    return Prepared(dataset, manifest)


@dataclass(frozen=True)
class _Trial:
    """One model, with one seed, on one dataset."""

    recipe: Recipe
    folder: Path
    asked: Asked
    data: Prepared
    watcher: Watcher
    which: str

    @property
    def configs(self) -> list[Config]:
        """Those of the choosing run, or of each part's."""
        settings = [self.recipe.settings(self.asked, self.folder / "runs", part) for part in self.recipe.parts or (None,)]
        manifest = self.data.manifest
        return [settled(config, manifest.users, manifest.items, manifest.events) for config in settings]

    @property
    def name(self) -> str:
        """Of the choosing run, or of the blend of those."""
        names = [runs.default_name(self.data.manifest, each, unusual={"measure_test": False}) for each in self.configs]
        return names[0] if len(names) == 1 else f"blend-{'-'.join(names)}"

    @property
    def path(self) -> Path:
        """Named by what the choosing run is named by, and by what is then asked of test."""
        return self.folder / "trials" / f"{self.name}-{self.recipe.protocol}.json"

    def done(self) -> dict[str, Any] | None:
        """What came of it; None before."""
        told = runs.read_json(self.path)
        if told is None:
            return None
        told["variant"] = self.asked.variant.name
        if not self.recipe.variants:
            return told
        return told | {"worth": _worth(self.worth)} if self.worth.is_file() else None

    @property
    def worth(self) -> Path:
        """What the lists were worth to each user, where variants are compared."""
        return self.path.with_suffix(".npz")

    def make(self) -> None:
        """Choose, refit and score, if that has not been done."""
        if self.done() is not None:
            return
        chosen, blended = [self._chosen(config) for config in self.configs], None
        if self.recipe.parts:
            self._say("weighing the parts on validation")
            told: dict[str, Any] = {"note": self.watcher.note, "progress": self.watcher.stage}
            folders = [each.folder for each in chosen]
            blended = blend(folders, self.folder / "runs", name=self.name, measure_test=False, **told)
        result = runs.read_json(blended / runs.RESULT) if blended else None
        used = [bool(part["weight"]) for part in result[PARTS]] if result else [True]
        refits = [self._refit(*each) for each in itertools.compress(zip(self.configs, chosen, strict=True), used)]
        refit = blend_of_refits(blended, refits, f"{self.name}-refit") if blended else refits[0]
        found = evaluate(refit, protocol=self.recipe.protocol, segment=schema.TEST, progress=self.watcher.stage)
        report = {name: told for name, told in evaluate_report.as_json(found).items() if name != found.kind}
        self.path.parent.mkdir(exist_ok=True)
        if self.recipe.variants:
            _keep_worth(self.worth, found.sums)
        runs.write_json(self.path, self._told(chosen, refits, blended or chosen[0].folder, report))
        figures = ", ".join(f"{name} {report['metrics'][name]['value']:.4f}" for name in self.recipe.metrics)
        self._say(f"test {figures}")

    def _chosen(self, config: Config) -> RunResult:
        self._say(f"choosing {config.model.name} on validation")
        return self._train(config)

    def _refit(self, config: Config, chosen: RunResult) -> Path:
        self._say(f"refit of {config.model.name} on train and validation, {chosen.best_epoch} epochs")
        rates = runs.learning_rates(chosen.folder, chosen.best_epoch)
        config = with_trend(config, chosen.trend)
        return self._train(config, refit_epochs=chosen.best_epoch, refit_until="test", refit_rates=rates).folder

    def _train(self, config: Config, **refit: Any) -> RunResult:
        """Never measures test."""
        told: dict[str, Any] = {"on_epoch": self.watcher.epoch, "on_step": self.watcher.step, "on_note": self.watcher.note}
        return train(self.data.folder, config, measure_test=False, **refit, **told)

    def _say(self, what: str) -> None:
        variant, seed, fold = self.asked
        name = f", {variant.name}" if self.recipe.variants else ""
        of_fold = f", fold {fold}" if fold else ""
        self.watcher.note(f"{self.recipe.name}{name}, seed {seed}{of_fold} ({self.which}): {what}")

    def _told(
        self, chosen: Sequence[RunResult], refits: Sequence[Path], measured: Path, report: dict[str, Any]
    ) -> dict[str, Any]:
        """measured: the run that says what the trial is worth on validation."""
        result, found = runs.read_json(measured / runs.RESULT) or {}, machine.found()
        choosing = sum(_seconds(each.folder) for each in chosen) + result.get("weighing_seconds", 0.0)
        seconds = {"choosing": choosing, "refit": sum(map(_seconds, refits)), "scoring": report["seconds"]}
        epochs = {"epochs": [each.epochs for each in chosen], "best_epoch": [each.best_epoch for each in chosen]}
        return {
            "seed": self.asked.seed,
            "fold": self.asked.fold,
            "fingerprint": self.data.manifest.fingerprint,
            "chosen": measured.name,
            "refit": [folder.name for folder in refits] if self.recipe.parts else refits[0].name,
            # A number, and of a blend one for each part.
            **{name: of_parts if self.recipe.parts else of_parts[0] for name, of_parts in epochs.items()},
            "validation": result["metrics"],
            "trend": result.get("trend"),
            **({"parts": [part | {"run": Path(part["run"]).name} for part in result[PARTS]]} if self.recipe.parts else {}),
            "test": report,
            "seconds": seconds,
            "machine": {"name": found.name, "processor": asdict(found.processor), "memory": found.memory.total},
            "environment": runs.read_json(refits[0] / runs.ENVIRONMENT),
        }


def _seconds(run: Path) -> float:
    """Training and validation, whatever it was interrupted by; without the starts of Ray."""
    return float(sum(row["seconds"] + row["validation_seconds"] for row in runs.read_rows(run)))


def _keep_worth(path: Path, sums: RankingSums) -> None:
    """Written whole, and before the trial's JSON, which is what says that a trial is done."""
    users, ks = sums.users(), range(len(sums.ks))
    both: dict[str, Any] = {
        f"{name}@{sums.ks[k]}": np.stack([users.model[row, k], users.popularity[row, k]])
        for row, name in enumerate(metrics.RANKING)
        for k in ks
    }
    begun = path.with_suffix(".begun")
    with begun.open("wb") as file:
        np.savez_compressed(file, **both)
    begun.replace(path)


def _worth(path: Path) -> dict[str, NDArray[np.float64]]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)
