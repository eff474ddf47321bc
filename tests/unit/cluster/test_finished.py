"""What can be opened as a finished run, and what is said of everything else."""

import json
from pathlib import Path

import pytest

from cluster.finished import open_finished
from recsys.errors import DataError


@pytest.mark.parametrize(
    ("file", "what"),
    [
        (None, "no run folder. `recsys train DATASET` makes one"),
        ("dataset.json", "a dataset, and no run. `recsys train DATASET` makes one"),
        ("config.json", "this run is not finished. The command that trained it last goes on with it"),
    ],
)
def test_what_is_no_finished_run_is_told_apart(tmp_path: Path, file: str | None, what: str) -> None:
    if file is not None:
        (tmp_path / file).write_text(json.dumps({}))
    with pytest.raises(DataError) as refused:
        open_finished(tmp_path)
    assert f"{tmp_path}: {what}" in str(refused.value)
