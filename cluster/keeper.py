"""What keeps a run's work: checkpoints after epochs and within them, word of how far it is, an ear for being asked to stop."""

import contextlib
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import CheckpointUploadMode

from cluster import runs, tensorboard
from cluster.share import Epoch, Share
from recsys.data.plan import Leg
from recsys.training import checkpoint, collective
from recsys.training.checkpoint import TrainState
from recsys.training.loop import EpochStats
from recsys.training.utilisation import Utilisation

PROGRESS_SECONDS = 0.5
KEPT = 2
"""Checkpoints of a run that are kept."""
AGREE_STEPS = 8
"""Workers agree on whether to write a checkpoint or to stop every so many steps: a message costs a small step's time."""
PREEMPTION_SECONDS = 5.0
RAYS_LIST = "checkpoint_manager_snapshot.json"
"""In which Ray Train keeps the names of a run's checkpoints."""
CHECKPOINT = "checkpoint_"
NAME = re.compile(rf"{CHECKPOINT}(\d{{5,}})_(\d{{7,}})")


class Stopped(Exception):  # noqa: N818 - not a failure
    """The run was asked to stop, and has left a checkpoint."""


class Keeper:
    """Called after each step, on every worker."""

    def __init__(self, share: Share, state: TrainState, saved: Path | None, *, told: str) -> None:
        """saved: the checkpoint that the run goes on from; told: the name of the newest that Ray knows of, "" for none. All
        workers make theirs."""
        self.share, self.state = share, state
        self.folder, self.cluster = share.task.folder, share.config.cluster
        self.saved = self.told = self.asked = time.monotonic()
        self.preempted = False
        self.unsaid: list[str] = []
        if share.leads:
            _remove_later(self.folder, saved.name if saved else "")
            if self.cluster.in_process:  # a Ray Train to come would not start where any that it knows of is missing
                (self.folder / RAYS_LIST).unlink(missing_ok=True)
            elif not told:  # it would never remove what it does not know
                _remove_earlier(self.folder, 1)
        if saved is not None and saved.name != told:
            self._report(saved, {"epoch": state.epoch, "step": state.step})

    def begin(self, epoch: Epoch, busy: Utilisation) -> None:
        """An epoch begins, or goes on; busy: to be sampled meanwhile."""
        self.begin_whole(epoch.steps, busy)
        self.epoch, self.legs, self.before = epoch, list(self.state.legs), self.state.so_far
        self.own = self.legs.pop().steps if self.legs and self.legs[-1].world_size == self.share.world else 0

    def begin_whole(self, steps: int, busy: Utilisation) -> None:
        """An epoch begins that has a checkpoint at its end and none before; `word` is called after each of its steps."""
        self.busy, self.steps = busy, steps

    def word(self, step: int) -> None:
        """The worker is alive, and so far."""
        self.share.alive()
        if self.share.leads:
            self._tell(step)

    def __call__(self, step: int, stats: Callable[[], EpochStats]) -> None:
        """step: of the epoch, just taken; stats: of the steps since `begin`; asks all workers."""
        self.word(step)
        taken = step + 1 - self.epoch.done
        if step + 1 == self.epoch.steps:
            return  # the epoch's own checkpoint is next
        due, stop = self._agreed(taken)
        if due or stop:
            self.state.legs = [*self.legs, Leg(self.share.world, self.own + taken)]
            self.state.so_far = stats() if self.before is None else self.before + stats()
            self._save({"epoch": self.state.epoch, "step": step + 1})
            if stop:
                raise Stopped

    def keep(self, row: dict[str, Any]) -> None:
        """An epoch is over: hand its checkpoint to Ray, then tell the row, so that what is told is never lost."""
        self.share.alive()
        self.state.history.append(row)
        self._save({"epoch": row["epoch"], **row["metrics"]})
        if self.share.leads:
            try:
                runs.write_rows(self.folder, self.state.history)
            except OSError as error:  # the next epoch writes them all again
                self.unsaid.append(f"{runs.METRICS}: not written after epoch {row['epoch']} ({error}). Make room on the disk.")
            tensorboard.write_epoch(self.folder, row)
        (stop,) = collective.any_rank(runs.asked_to_stop(self.folder))
        if stop and row["epoch"] < self.share.task.epochs:
            raise Stopped

    def _agreed(self, taken: int) -> tuple[bool, bool]:
        """Whether all workers now write a checkpoint, and whether they stop after it."""
        by_steps = self.cluster.checkpoint_steps is not None and taken % self.cluster.checkpoint_steps == 0
        if taken % AGREE_STEPS and not by_steps:
            return False, False
        now = time.monotonic()
        due, stop, ask = collective.any_rank(
            self.share.leads and now - self.saved > self.cluster.checkpoint_seconds,
            self.share.leads and runs.asked_to_stop(self.folder),
            self.share.leads and now - self.asked > PREEMPTION_SECONDS,
        )
        return by_steps or due or (ask and self._is_preempted()), stop

    def _is_preempted(self) -> bool:
        """Whether a node is about to be taken away; says so once. All workers must ask."""
        self.asked = time.monotonic()
        if self.preempted or ray.train.get_preemption_info() is None:
            return False
        self.preempted = True
        return True

    def _save(self, told: dict[str, Any]) -> None:
        """Write a checkpoint into the run folder and tell Ray. Where the disk is full the one before stays, and the run goes
        on: there will be another."""
        name = _name(self.state.epoch, self.state.step)
        try:
            checkpoint.save(self.folder / name, self.state)
        except OSError as error:
            self._failed(name, error)
            return
        self.saved = time.monotonic()
        self._report(self.folder / name, told)

    def _report(self, saved: Path, told: dict[str, Any]) -> None:
        """Tell Ray of a checkpoint, so that it removes those before it, and this one in its turn."""
        ray.train.report(
            told,
            checkpoint=ray.train.Checkpoint.from_directory(str(saved)),
            checkpoint_dir_name=saved.name,
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )
        if self.cluster.in_process:  # nobody is there who would
            _remove_earlier(self.folder, KEPT)

    def _failed(self, name: str, error: OSError) -> None:
        self.saved = time.monotonic()  # not again at the next step
        if self.share.leads:
            shutil.rmtree(self.folder / name, ignore_errors=True)
            self.unsaid.append(f"{name}: not written, the checkpoint before it stays ({error}). Make room on the disk.")

    def _tell(self, step: int) -> None:
        """Leave word of how far the epoch is, now and then; the driver looks for it."""
        if (now := time.monotonic()) - self.told >= PROGRESS_SECONDS:
            self.told = now
            self.busy.sample()
            content = {"epoch": self.state.epoch + 1, "step": step + 1, "steps": self.steps, "at": time.time()}
            with contextlib.suppress(OSError):  # a disk that is full: training is worth more than word of it
                runs.write_json(self.folder / runs.PROGRESS, content)
                while self.unsaid:
                    runs.warn(self.folder, self.unsaid[0])
                    self.unsaid.pop(0)


def newest(folder: Path, told: str) -> Path | None:
    """The checkpoint to go on from: the newest whole one, as rank 0 sees it. All workers ask.

    told: the name of the newest that Ray knows of, "" for none; it counts where rank 0 sees no whole one. Ray asks its workers
    for what they reported now and then (`RAY_TRAIN_HEALTH_CHECK_INTERVAL_S`), so one that was written just before a worker died
    is whole, and unknown to it.
    """
    whole = filter(None, (_place(path.parent.name) for path in folder.glob(f"{CHECKPOINT}*/{checkpoint.STATE_FILE}")))
    place = max(whole, default=_place(told) or (-1, -1))
    epoch, step = collective.from_first(torch.tensor(place)).tolist()
    return folder / _name(epoch, step) if epoch >= 0 else None


def _place(name: str) -> tuple[int, int] | None:
    """The epoch and step in a checkpoint's name. None for what is named otherwise, like somebody's copy."""
    match = NAME.fullmatch(name)
    return match and (int(match[1]), int(match[2]))


def _name(epoch: int, step: int) -> str:
    return f"{CHECKPOINT}{epoch:05d}_{step:07d}"


def _remove_later(folder: Path, saved: str) -> None:
    """Checkpoints after the one that is gone on from ("": none): they were never written to the end. Somebody's copies stay."""
    last = _place(saved) or (-1, -1)
    for place, path in _checkpoints(folder):
        if place > last:
            shutil.rmtree(path, ignore_errors=True)


def _remove_earlier(folder: Path, kept: int) -> None:
    """All checkpoints but the last so many."""
    for _, path in _checkpoints(folder)[:-kept]:
        shutil.rmtree(path, ignore_errors=True)


def _checkpoints(folder: Path) -> list[tuple[tuple[int, int], Path]]:
    """By epoch and step."""
    return sorted((place, path) for path in folder.glob(f"{CHECKPOINT}*/") if (place := _place(path.name)))
