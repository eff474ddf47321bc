"""What each training worker does, from the first epoch to the result: train, evaluate, checkpoint, report."""

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import ray.train
import torch

from cluster import runs, tensorboard
from cluster.share import Share, Task
from recsys.data import schema
from recsys.data.histories import Histories
from recsys.evaluation.ranking import RankingSums
from recsys.models import Popularity, build
from recsys.training import checkpoint
from recsys.training.checkpoint import TrainState
from recsys.training.loop import bare, distribute, train_epoch
from recsys.training.negatives import Negatives, step_seed
from recsys.training.rows import sync_user_rows

PROGRESS_SECONDS = 0.5


def train_on_worker(settings: dict[str, Any]) -> None:
    """The function Ray Train runs on every worker. settings: {"task": Task}.

    Goes on from the run's last checkpoint, if there is one; ends with the best epoch restored, measured on test and saved.
    """
    share = Share(settings["task"])
    if share.leads:
        runs.note_hardware(share.task.folder, share.described())
    model = build(share.config.model, share.catalogue, share.config.train.seed)
    if isinstance(model, Popularity):
        _finish(share, model, None)
        return
    state = _resume_or_start(share, model)
    while not _is_over(share.task, state):
        _report(share, state, _run_epoch(share, state))
    state.restore_best()
    _finish(share, bare(state.model), state)


def _resume_or_start(share: Share, model: Any) -> TrainState:
    model = distribute(model.to(share.hardware.device))
    state = checkpoint.start(model, share.config, share.manifest.fingerprint, share.hardware)
    if (saved := ray.train.get_checkpoint()) is not None:
        with saved.as_directory() as folder:
            checkpoint.load(Path(folder), state)
    return state


def _is_over(task: Task, state: TrainState) -> bool:
    return state.epoch >= task.epochs or state.stopping.exhausted


def _run_epoch(share: Share, state: TrainState) -> dict[str, Any]:
    """Train one epoch and validate it. Returns its row for metrics.jsonl."""
    row = _train(share, state)
    began = time.perf_counter()
    sums = share.evaluate(bare(state.model), schema.VALID) if share.validates else None
    metrics, popularity = (sums.metrics(), sums.popularity_metrics()) if sums else ({}, {})
    row |= {"validation_seconds": time.perf_counter() - began, "metrics": metrics, "popularity": popularity}
    if share.validates:
        return row | {"best": state.finish_epoch(metrics)}
    state.epoch += 1
    return row


def _train(share: Share, state: TrainState) -> dict[str, Any]:
    config, epoch = share.config, state.epoch
    # Dropout and the like: each epoch and rank its own, whatever happened before.
    torch.manual_seed(step_seed(config.train.seed, epoch, share.rank))
    batch_type = bare(state.model).batch
    read_from = "memory" if share.source(batch_type is Histories).is_memory else "files"
    steps, batches = share.batches(epoch, batch_type)
    learns_order = config.model.loss != "mse"
    stats = train_epoch(
        state.model,
        batches,
        state.optimizers,
        hardware=share.hardware,
        scaler=state.scaler,
        negatives=Negatives(config.model, share.catalogue.item_counts, config.train.seed) if learns_order else None,
        clip_norm=config.train.clip_norm,
        epoch=epoch,
        on_step=_Progress(share, epoch + 1, steps) if share.leads else None,
    )
    sync_user_rows(state.user_rows(), share.owned_users())
    return {
        "epoch": epoch + 1,
        "loss": stats.loss,
        "learning_rate": state.optimizers[0].param_groups[0]["lr"],
        "events": stats.events,
        "steps": stats.steps,
        "skipped": stats.skipped,
        "grad_norm": stats.grad_norm,
        "seconds": stats.seconds,
        "events_per_second": stats.events / stats.seconds,
        "wait_share": stats.wait_seconds / stats.seconds,
        "read_from": read_from,
        "workers": share.world,
        "precision": share.hardware.precision,
    }


class _Progress:
    """Leaves word of how far an epoch is, now and then; the driver looks for it."""

    def __init__(self, share: Share, epoch: int, steps: int) -> None:
        self.path, self.epoch, self.steps = share.task.folder / runs.PROGRESS, epoch, steps
        self.told = time.monotonic()

    def __call__(self, step: int, events: int) -> None:
        if (now := time.monotonic()) - self.told >= PROGRESS_SECONDS:
            self.told = now
            runs.write_json(self.path, {"epoch": self.epoch, "step": step + 1, "steps": self.steps})


def _report(share: Share, state: TrainState, row: dict[str, Any]) -> None:
    """Hand the checkpoint to Ray, then tell the row: what is told is never lost."""
    state.history.append(row)
    told = {"epoch": row["epoch"], **row["metrics"]}
    if not share.leads:
        ray.train.report(told)
        return
    with tempfile.TemporaryDirectory(prefix="recsys-") as folder:
        checkpoint.save(Path(folder), state)
        ray.train.report(told, checkpoint=ray.train.Checkpoint.from_directory(folder))
    runs.write_rows(share.task.folder, state.history)
    tensorboard.write_epoch(share.task.folder, row)


def _finish(share: Share, model: Any, state: TrainState | None) -> None:
    """Measure the restored best epoch on test, once, and leave the result; `result.json` comes last."""
    rows = state.history if state else []
    valid = share.evaluate(model, schema.VALID) if share.validates else None
    test = share.evaluate(model, schema.TEST) if share.tests else None
    if not share.leads:
        return
    folder = share.task.folder
    if state is not None:
        from cluster.curves import draw_training  # matplotlib takes a while to load, and only one worker draws

        _save_best(folder, state)
        runs.write_rows(folder, rows)
        draw_training(rows, folder / runs.CURVES, title=folder.name, metric=share.config.train.metric)
    (folder / runs.PROGRESS).unlink(missing_ok=True)
    runs.write_json(folder / runs.RESULT, _result(share, state, valid, test))


def _save_best(folder: Path, state: TrainState) -> None:
    state.best = {}  # they are the model's own now
    staged = folder / f".{runs.BEST}"
    shutil.rmtree(staged, ignore_errors=True)
    checkpoint.save(staged, state)
    shutil.rmtree(folder / runs.BEST, ignore_errors=True)
    staged.rename(folder / runs.BEST)


def _result(share: Share, state: TrainState | None, valid: RankingSums | None, test: RankingSums | None) -> dict[str, Any]:
    epochs = state.epoch if state else 0
    return {
        "dataset": str(share.task.dataset),
        "fingerprint": share.manifest.fingerprint,
        "model": share.config.model.name,
        "config": share.config.model_dump(mode="json"),
        "refit": share.task.refit_epochs is not None,
        "epochs": epochs,
        "best_epoch": state.stopping.best_epoch + 1 if state and state.stopping.best_epoch >= 0 else epochs,
        "metrics": valid.metrics() if valid else {},
        "popularity": valid.popularity_metrics() if valid else {},
        "test": test.metrics() if test else {},
        "test_popularity": test.popularity_metrics() if test else {},
        "people": {name: sums.people() for name, sums in ((schema.VALID, valid), (schema.TEST, test)) if sums},
        "strangers": test.stranger_metrics() if test else {},
    }
