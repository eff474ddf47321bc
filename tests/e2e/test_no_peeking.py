"""Invariant 9: test events move no parameter and no user vector as evaluated."""

import csv
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.commands import QUICK, Recsys

pytestmark = pytest.mark.ray


def test_changing_test_events_leaves_every_parameter_as_it_was(
    recsys: Recsys, sample: Path, way: dict[str, Path], tmp_path: Path
) -> None:
    change_last_events(sample, tmp_path / "sample")
    recsys("prepare", tmp_path / "sample", tmp_path / "dataset")
    where = ("--set", "cluster.num_workers=0", "--set", f"cluster.storage={tmp_path / 'runs'}")
    told = recsys("train", tmp_path / "dataset", *QUICK, *where, "--name", "second")
    assert "local mode" not in told.stderr and "starting Ray" not in told.stdout + told.stderr  # which nobody needs here
    first, second = parameters(way["run"] / "best"), parameters(tmp_path / "runs" / "second" / "best")
    assert first.keys() == second.keys() and first
    assert all(np.array_equal(first[name], second[name]) for name in first)


def change_last_events(source: Path, target: Path) -> None:
    """The same ratings, but each user's last film is another one he has not seen, with another rating."""
    target.mkdir()
    (target / "movies.csv").write_bytes((source / "movies.csv").read_bytes())
    with (source / "ratings.csv").open(newline="") as file:
        header, *rows = list(csv.reader(file))
    films = sorted({row[1] for row in rows})
    seen: dict[str, set[str]] = {}
    last: dict[str, int] = {}
    for n, (user, film, _, time) in enumerate(rows):
        seen.setdefault(user, set()).add(film)
        if user not in last or int(time) >= int(rows[last[user]][3]):
            last[user] = n
    for user, n in last.items():
        rows[n][1] = next(film for film in films if film not in seen[user])
        rows[n][2] = "0.5"
    with (target / "ratings.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def parameters(checkpoint: Path) -> dict[str, np.ndarray]:
    """Every tensor of the model in a checkpoint folder."""
    files = sorted(checkpoint.glob("*.safetensors"))
    return {f"{file.name}:{name}": value for file in files for name, value in load_file(file).items()}
