"""The micro-batch is found by trying: planted speeds and memories."""

import pytest
import torch

from recsys.errors import RecsysError
from recsys.training import micro_batch
from recsys.training.micro_batch import MicroBatch, search


def found_on(seconds_of, most: int, memory: int = 1 << 30):
    """On a machine whose gradients take so long, with memory for so many events."""
    now = [0.0]

    def gradients(events: int) -> None:
        if events > memory:
            raise torch.OutOfMemoryError("planted")
        now[0] += seconds_of(events)

    return search(gradients, most, clock=lambda: now[0])


def test_it_grows_while_a_call_costs_more_than_its_events():
    found, trials = found_on(lambda events: 0.005, most=4096)
    assert found == 4096 and [trial.events for trial in trials] == [256, 512, 1024, 2048, 4096]


def test_it_stops_where_the_rate_stops_growing():
    found, trials = found_on(lambda events: max(events, 512) * 2e-5, most=1 << 20)
    assert found == 512 and [trial.events for trial in trials] == [256, 512, 1024, 2048]


def test_it_stops_where_memory_ends():
    found, trials = found_on(lambda events: 0.005, most=8000, memory=1500)
    assert found == 1024 and (trials[-1].events, trials[-1].events_per_second) == (2048, None)


def test_a_small_batch_is_one_piece():
    assert found_on(lambda events: 0.001, most=100)[0] == 100


def test_without_memory_for_the_smallest_it_says_what_to_do():
    with pytest.raises(RecsysError, match=r"256 events.*train\.micro_batch"):
        found_on(lambda events: 1.0, most=1000, memory=100)


def test_halving_begins_at_the_batch_and_never_ends_at_nothing():
    micro = MicroBatch()
    halves = []
    for _ in range(4):
        micro.halve(6)
        halves.append(micro.events)
    assert halves == [3, 1, 1, 1]


def test_what_was_found_is_remembered_and_a_broken_memory_is_none(tmp_path):
    path = tmp_path / "cache" / "micro.json"
    assert micro_batch.remembered(path, "a") is None
    micro_batch.remember(path, "a", 512)
    micro_batch.remember(path, "b", 1024)
    assert (micro_batch.remembered(path, "a"), micro_batch.remembered(path, "b")) == (512, 1024)
    path.write_text("[]")
    assert micro_batch.remembered(path, "a") is None
    path.write_text("{cut")
    assert micro_batch.remembered(path, "a") is None
    micro_batch.remember(path, "a", 256)  # and it does not stop a training
