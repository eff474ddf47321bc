"""What a resume tells of work that has to be done again."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster import resuming, runs
from recsys.training import checkpoint


def noted(folder: Path, progress: dict | None, epoch: int, step: int, saved_at: float = 100.0) -> dict:
    """After a resume at a step of an epoch (from 0), with such a word of progress left."""
    saved = folder / "checkpoint"
    saved.mkdir(exist_ok=True)
    (saved / checkpoint.STATE_FILE).write_text(json.dumps({"format_version": checkpoint.FORMAT_VERSION, "saved_at": saved_at}))
    if progress is not None:
        runs.write_json(folder / runs.PROGRESS, progress)
    resuming.note(folder, saved, SimpleNamespace(epoch=epoch, step=step))
    return runs.read_lines(folder / runs.RESUMES)[-1]


@pytest.mark.parametrize(
    ("progress", "epoch", "step", "steps", "seconds"),
    [
        ({"epoch": 2, "step": 250, "steps": 625, "at": 104.0}, 1, 200, 50, 4.0),
        ({"epoch": 2, "step": 250, "steps": 625, "at": 104.0}, 1, 0, 250, 4.0),
        ({"epoch": 3, "step": 10, "steps": 625, "at": 160.0}, 1, 600, 35, 60.0),
        ({"epoch": 1, "step": 620, "steps": 625, "at": 99.0}, 1, 0, 0, 0.0),
        (None, 1, 0, 0, 0.0),
    ],
    ids=["within the epoch", "since its begin", "of the one before", "nothing: stopped after an epoch", "no word of progress"],
)
def test_lost_is_what_lies_between_the_checkpoint_and_the_last_word(tmp_path, progress, epoch, step, steps, seconds):
    told = noted(tmp_path, progress, epoch, step)
    assert (told["lost_steps"], told["lost_seconds"]) == (steps, seconds)
    assert (told["down_seconds"] is None) == (progress is None)
    assert f"{steps} steps" in resuming.line(told)


def test_it_is_told_once(tmp_path):
    noted(tmp_path, {"epoch": 2, "step": 250, "steps": 625, "at": 104.0}, 1, 200)
    assert noted(tmp_path, None, 1, 200)["lost_steps"] == 0


def test_a_line_that_a_full_disk_has_cut_is_passed_over(tmp_path):
    path = tmp_path / "warnings.jsonl"
    path.write_text('{"warning": "one"}\n{"warn{"warning": "two"}\n{"warning": "three"}\n{"half')
    assert [line["warning"] for line in runs.read_lines(path)] == ["one", "three"]
