"""The whole way, in order: prepare → train → export. Read this first.

Each step leaves a folder, so the way can be entered anywhere: the commands of `cli.py` call the same three functions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cluster.export import export
from cluster.prepare import prepare
from cluster.session import session
from cluster.trainer import RunResult, train
from recsys.config import Config
from recsys.data.dataset import DatasetManifest


class Watcher(Protocol):
    """Who is told how far the work is; `console.Progress` draws it."""

    def stage(self, name: str, done: int, total: int) -> None: ...

    def step(self, epoch: int, step: int, steps: int) -> None: ...

    def epoch(self, row: dict[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """What the three steps left behind."""

    dataset: Path
    manifest: DatasetManifest
    run: RunResult
    bundle: Path


def run_pipeline(
    sources: Sequence[str],
    workspace: Path,
    config: Config,
    watcher: Watcher,
    *,
    name: str | None = None,
    on_step: Callable[[str, Any], None] = lambda step, result: None,
) -> Outcome:
    """Raw files to a published bundle, under `workspace`: dataset/, runs/, bundles/<name>/.

    `on_step(step, result)` is called after prepare, train and export. Raises what they raise.
    """
    dataset, bundles = workspace / "dataset", workspace / "bundles"
    config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"storage": str(workspace / "runs")})})
    with session(config.cluster):
        manifest = prepare(sources, dataset, config, progress=watcher.stage)
        on_step("prepare", manifest)
        run = train(dataset, config, on_epoch=watcher.epoch, on_step=watcher.step, on_note=watcher.note)
        on_step("train", run)
        bundle = export(run.folder, bundles, name=name)
        on_step("export", bundle)
    return Outcome(dataset, manifest, run, bundle)
