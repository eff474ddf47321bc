"""A planted bundle of its own for each test, and receipts that stay within it."""

import pytest

from tests.bundles import write_planted


@pytest.fixture(autouse=True)
def own_receipts(tmp_path, monkeypatch):
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "bundles"


@pytest.fixture
def bundle(root):
    return write_planted(root)


@pytest.fixture(scope="module")
def shared_bundle(tmp_path_factory):
    return write_planted(tmp_path_factory.mktemp("shared"))
