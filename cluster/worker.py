"""What each training worker does, from the first epoch to the result: train, evaluate, checkpoint, report."""

import contextlib
import shutil
import time
from pathlib import Path
from typing import Any

import ray.train

from cluster import alternation, resuming, runs, teaching, trends, warm, watchdog
from cluster.keeper import Keeper, Stopped, newest
from cluster.measuring import by_means, measured, popular_lately
from cluster.share import Share
from cluster.task import Task
from recsys.data import schema
from recsys.evaluation.ranking import RankingSums
from recsys.models import Popularity, build
from recsys.training import checkpoint, collective
from recsys.training.averaging import averaged
from recsys.training.checkpoint import TrainState
from recsys.training.loop import bare, distribute, train_epoch
from recsys.training.negatives import Negatives
from recsys.training.stopping import set_rate
from recsys.training.utilisation import Utilisation


def train_on_worker(settings: dict[str, Any]) -> None:
    """The function Ray Train runs on every worker. settings: {"task": Task}.

    Goes on from the run's last checkpoint, if there is one, in the middle of an epoch too; ends with the best epoch restored,
    measured on test and saved. Asked to stop (`runs.ask_to_stop`) it leaves a checkpoint and ends without a result.
    """
    share = Share(settings["task"])
    if share.leads:
        runs.note_hardware(share.task.folder, share.described())
    known = ray.train.get_checkpoint()
    told = Path(known.path).name if known else ""
    saved = newest(share.task.folder, told)
    if saved is None and share.batch is not None:
        share.begin(0, (), share.batch)
    model = build(share.config.model, share.catalogue, share.config.train.seed)
    if isinstance(model, Popularity):
        _finish(share, model, None)
        return
    state = _resume_or_start(share, model, saved)
    if share.task.teacher is not None:
        learnt_from = (share.task.teacher, share.task.dataset, share.config, share.hardware.device)
        bare(state.model).teacher = teaching.teacher(*learnt_from)
    if share.batch is not None:
        share.find_micro_batch(state)
    with watchdog.watching(share.task.folder, share.rank, share.config.cluster.stall_seconds) as share.alive:
        keeper = Keeper(share, state, saved, told=told)
        try:
            while not _is_over(share.task, state):
                keeper.keep(_run_epoch(share, state, keeper))
        except Stopped:
            return
        finally:
            share.close()
        state.restore_best()
        if share.batch is None:
            alternation.settle(share, bare(state.model))
        _finish(share, bare(state.model), state)


def _resume_or_start(share: Share, model: Any, saved: Path | None) -> TrainState:
    model = distribute(model.to(share.hardware.device))
    state = checkpoint.start(model, share.config, share.manifest.fingerprint, share.hardware)
    if saved is not None:
        checkpoint.load(saved, state)
        if share.leads:
            with contextlib.suppress(OSError):  # a full disk
                resuming.note(share.task.folder, saved, state)
    elif share.task.begin_from is not None:
        known = warm.begin(share.task.begin_from, share, state)
        if share.leads:
            runs.note(share.task.folder, {"begun_from": str(share.task.begin_from), "known_to_rank_0": known})
    return state


def _is_over(task: Task, state: TrainState) -> bool:
    return state.epoch >= task.epochs or state.stopping.exhausted


def _run_epoch(share: Share, state: TrainState, keeper: Keeper) -> dict[str, Any]:
    """Train one epoch, or the rest of it, and validate it. Returns its row for metrics.jsonl."""
    row = (alternation.train if share.batch is None else _train)(share, state, keeper)
    if share.batch is not None and state.epoch + 1 < share.task.epochs:  # read on while validating
        share.begin(state.epoch + 1, (), share.batch)
    began = time.perf_counter()
    with averaged(state.optimizers):
        sums = share.evaluate(bare(state.model), schema.VALID) if share.validates else None
    metrics, popularity = (sums.metrics(), sums.popularity_metrics()) if sums else ({}, {})
    row |= {"validation_seconds": time.perf_counter() - began, "metrics": metrics, "popularity": popularity}
    if sums and (by_chance := sums.random_metrics()):
        row["random"] = by_chance
    if share.validates:
        return row | {"best": state.finish_epoch(metrics)}
    state.next_epoch()
    return row


def _train(share: Share, state: TrainState, keeper: Keeper | None = None) -> dict[str, Any]:
    config, number, before = share.config, state.epoch, state.so_far
    if share.task.refit_rates is not None:
        set_rate(state.optimizers, share.task.refit_rates[number])
    epoch = share.epoch(number, state.legs, bare(state.model).batch)
    learns_order, busy = config.model.loss != "mse", Utilisation(share.hardware)
    if keeper is not None:
        keeper.begin(epoch, busy)
    with contextlib.closing(epoch.parts):
        stats = train_epoch(
            state.model,
            epoch.batches,
            state.optimizers,
            hardware=share.hardware,
            scaler=state.scaler,
            negatives=Negatives(config.model, share.catalogue.item_counts, config.train.seed) if learns_order else None,
            clip_norm=config.train.clip_norm,
            epoch=number,
            first_step=epoch.done,
            micro_batch=state.micro_batch,
            seed=config.train.seed,
            on_step=keeper,
        )
    stats = stats if before is None else before + stats
    return {
        "epoch": number + 1,
        "loss": stats.loss,
        "learning_rate": state.optimizers[0].param_groups[0]["lr"],
        "events": stats.events,
        "steps": stats.steps,
        "skipped": stats.skipped,
        "grad_norm": stats.grad_norm,
        "seconds": stats.seconds,
        "events_per_second": stats.events / stats.seconds,
        "wait_share": stats.wait_seconds / stats.seconds,
        "read_from": epoch.read_from,
        "micro_batch": state.micro_batch.events,
        "utilisation": busy.share(),
        "peak_bytes": share.peak_bytes(),
        "workers": share.world,
        "precision": share.hardware.precision,
    }


def _finish(share: Share, model: Any, state: TrainState | None) -> None:
    """Measure the restored best epoch on test, once, if that is asked; leave the result: `result.json` comes last."""
    rows = state.history if state else []
    trend, told = trends.choose(share, model)
    valid = share.evaluate(model, schema.VALID, trend=trend) if share.validates else None
    test = share.evaluate(model, schema.TEST, trend=trend) if share.tests else None
    segments = [segment for segment, sums in ((schema.VALID, valid), (schema.TEST, test)) if sums is not None]
    lines = popular_lately(share, model, trend, *segments)
    lines |= by_means(share, *segments) if getattr(model, "rates", False) else {}
    folder = share.task.folder
    if state is not None:
        share.alive()
        _save_best(folder, state)
    if not share.leads:
        return
    if state is not None:
        runs.write_rows(folder, rows)
    (folder / runs.PROGRESS).unlink(missing_ok=True)
    runs.write_json(folder / runs.RESULT, _result(share, state, valid, test) | lines | {"trend": told})


def _save_best(folder: Path, state: TrainState) -> None:
    """Every worker writes its users' rows; the first puts the whole in its place."""
    state.best = {}  # they are the model's own now
    staged = folder / f".{runs.BEST}"
    if collective.rank() == 0:
        shutil.rmtree(staged, ignore_errors=True)
    collective.any_rank(False)  # nobody writes before that is gone
    checkpoint.save(staged, state)
    if collective.rank() == 0:
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
        "trained_until": share.task.border,
        "teacher": str(share.task.teacher) if share.task.teacher else None,
        "epochs": epochs,
        "best_epoch": state.stopping.best_epoch + 1 if state and state.stopping.best_epoch >= 0 else epochs,
        **measured(valid, test),
    }
