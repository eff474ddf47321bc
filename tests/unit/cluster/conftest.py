"""What the tests of `prepare` share."""

import pytest

from cluster import prepare_steps


@pytest.fixture
def in_process(monkeypatch):
    """The mapping without Ray; the real one is tried in tests/integration."""

    def stream(job, stage, function, entries):
        for number in reversed(range(len(entries))):  # results may come in any order
            yield number, function(entries[number])

    monkeypatch.setattr(prepare_steps, "stream", stream)
