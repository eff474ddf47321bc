"""A planted bundle of its own for each test, and receipts that stay within it."""

import pytest

from tests.bundles import SUMMED, write_planted
from tests.encoders import ENCODED

KINDS = {"table": {}, "sum": SUMMED, "encoder": ENCODED}


@pytest.fixture(autouse=True)
def own_receipts(tmp_path, monkeypatch):
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "bundles"


@pytest.fixture
def bundle(root):
    return write_planted(root)


@pytest.fixture
def encoded(root):
    """A bundle without a table of users: their histories are encoded."""
    return write_planted(root, "encoded", **ENCODED)


@pytest.fixture(params=KINDS)
def any_bundle(request, root):
    return write_planted(root, **KINDS[request.param])


@pytest.fixture(scope="module", params=KINDS)
def shared_bundle(request, tmp_path_factory):
    return write_planted(tmp_path_factory.mktemp("shared"), **KINDS[request.param])
