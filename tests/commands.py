"""Running the real `recsys` command in a process of its own, as a person does."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECSYS = Path(sys.executable).with_name("recsys")
QUICK = ("--set", "train.epochs=3", "--set", "train.batch_size=512", "--set", "model.dim=16")

Recsys = Callable[..., subprocess.CompletedProcess[str]]


def run_recsys(
    *args: str | Path, rc: int = 0, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `recsys args…`, check its exit code, and return what it printed. No traceback may be shown for a known error."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"COLUMNS": "200"} | (env or {})  # wide enough for tables not to break titles
    command = [str(RECSYS), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=280, check=False)
    told = f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    assert done.returncode == rc, f"exit code {done.returncode}, expected {rc}\n{told}"
    assert "Traceback" not in done.stderr, told
    return done


def lines_of_json(text: str) -> list[Any]:
    """Every line of a command's standard output as JSON."""
    return [json.loads(line) for line in text.splitlines() if line.strip()]
