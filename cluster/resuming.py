"""What a resumed run had to do again: from the last word of its progress to the checkpoint it went on from."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import runs

if TYPE_CHECKING:
    from recsys.training.checkpoint import TrainState


def note(folder: Path, saved: Path, state: "TrainState") -> None:
    """Add a line to the run's `resumes.jsonl`: lost, work to do again; down, from the last word to now."""
    from recsys.training import checkpoint  # it loads torch, which telling of it can do without

    word = runs.read_json(folder / runs.PROGRESS)
    reached = (word["epoch"], word["step"]) if word else (0, 0)
    behind = reached > (state.epoch + 1, state.step)
    epochs, steps = (reached[0] - state.epoch - 1, reached[1] - state.step) if behind else (0, 0)
    seconds = max(0.0, word["at"] - checkpoint.read_state(saved)["saved_at"]) if word and behind else 0.0
    (folder / runs.PROGRESS).unlink(missing_ok=True)  # told once
    runs.add_line(
        folder / runs.RESUMES,
        {
            "at": time.time(),
            "epoch": state.epoch + 1,
            "step": state.step,
            "lost_steps": steps + epochs * (word["steps"] if word else 0),
            "lost_seconds": round(seconds, 2),
            "down_seconds": round(time.time() - word["at"], 2) if word else None,
        },
    )


def line(resume: dict[str, Any]) -> str:
    """For people."""
    where = f"epoch {resume['epoch']}" + (f", step {resume['step']:,}" if resume["step"] else "")
    return f"resumed at {where}: {resume['lost_steps']:,} steps, {resume['lost_seconds']:.0f} s of work to do again"
