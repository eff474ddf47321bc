"""How busy a worker is: nearly not while it sleeps, a thread's share while one thread works."""

import time
from types import SimpleNamespace

import pytest
import torch

from recsys.training import utilisation
from recsys.training.hardware import Hardware
from recsys.training.utilisation import Utilisation


def share_of(work, threads: int) -> float:
    busy = Utilisation(Hardware(torch.device("cpu"), torch.float32, threads))
    work()
    busy.sample()  # asks a GPU only
    share = busy.share()
    assert share is not None
    return share


def spin() -> None:
    used = time.process_time()
    while time.process_time() - used < 0.2:
        pass


def test_sleeping_is_not_being_busy():
    assert share_of(lambda: time.sleep(0.2), threads=1) < 0.5


def test_one_thread_that_works_is_at_most_a_quarter_of_four():
    assert 0 < share_of(spin, threads=4) <= 0.3


@pytest.mark.parametrize(("threads", "share"), [(1, 0.4), (4, 0.1)])
def test_it_is_seconds_of_the_process_over_those_of_its_threads(monkeypatch, threads, share):
    clocks = SimpleNamespace(perf_counter=lambda: 3.0, process_time=lambda: 1.0)
    monkeypatch.setattr(utilisation, "time", clocks)
    busy = Utilisation(Hardware(torch.device("cpu"), torch.float32, threads))
    clocks.perf_counter, clocks.process_time = lambda: 13.0, lambda: 5.0
    assert busy.share() == pytest.approx(share)


def test_a_gpu_is_asked_and_one_that_refuses_ends_nothing(monkeypatch):
    class RefusalError(Exception):
        """As NVML raises them: of no kind that torch knows."""

    answers = iter([40, RefusalError(), 60])

    def utilization(_):
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    busy = Utilisation(Hardware(torch.device("cuda"), torch.float32, 1))
    assert busy.share() is None
    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    for _ in range(3):
        busy.sample()
    assert busy.share() == 0.5
