"""The whole way walked once on the generated sample, for all tests of this folder."""

import os
from pathlib import Path

import pytest

from recsys.data.sources.sample import write_sample
from tests.commands import QUICK, Recsys, run_recsys


@pytest.fixture(scope="session")
def recsys() -> Recsys:
    return run_recsys


@pytest.fixture(scope="session")
def real_data() -> Path:
    """$RECSYS_DATA, or a visible skip."""
    folder = os.environ.get("RECSYS_DATA")
    if not folder:
        pytest.skip("RECSYS_DATA is not set: no real ratings to try this on")
    return Path(folder)


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated films with planted tastes."""
    folder = tmp_path_factory.mktemp("raw") / "sample"
    write_sample(folder, users=600, films=200)
    return folder


@pytest.fixture(scope="session")
def way(tmp_path_factory: pytest.TempPathFactory, sample: Path, recsys: Recsys) -> dict[str, Path]:
    """Folders of dataset, run and bundles, made by the commands."""
    root = tmp_path_factory.mktemp("way")
    recsys("prepare", sample, root / "dataset")
    recsys("train", root / "dataset", *QUICK, "--set", f"cluster.storage={root / 'runs'}", "--name", "first")
    recsys("export", root / "runs" / "first", root / "bundles", "--name", "films")
    return {"root": root, "dataset": root / "dataset", "run": root / "runs" / "first", "bundles": root / "bundles"}
