"""What is chosen, and that auto goes by measurement."""

import pytest
import torch

from recsys.config import TrainConfig
from recsys.training import hardware

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def threads_restored():
    threads = torch.get_num_threads()
    hardware.fastest.cache_clear()
    yield
    torch.set_num_threads(threads)
    hardware.fastest.cache_clear()


@pytest.mark.parametrize(("bf16_seconds", "chosen"), [(0.5, torch.bfloat16), (0.95, torch.float32), (2.0, torch.float32)])
def test_a_cpu_takes_bf16_only_where_it_measures_clearly_faster(monkeypatch, bf16_seconds, chosen):
    seconds = {torch.float32: 1.0, torch.bfloat16: bf16_seconds}
    monkeypatch.setattr(hardware, "gemm_seconds", lambda *dtypes: [seconds[dtype] for dtype in dtypes])
    assert hardware.choose(TrainConfig(threads=1), device=CPU).dtype == chosen


def test_it_is_measured_once(monkeypatch):
    calls = []
    monkeypatch.setattr(hardware, "gemm_seconds", lambda *dtypes: calls.append(dtypes) or [1.0, 1.0])
    for _ in range(3):
        hardware.choose(TrainConfig(threads=1), device=CPU)
    assert calls == [(torch.float32, torch.bfloat16)]


def test_a_measurement_takes_time_and_leaves_the_threads_alone():
    torch.set_num_threads(2)
    assert all(seconds > 0 for seconds in hardware.gemm_seconds(torch.float32, torch.bfloat16))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("precision", hardware.DTYPES)
def test_what_is_asked_for_is_taken(precision):
    chosen = hardware.choose(TrainConfig(precision=precision, threads=1), device=CPU)
    assert chosen.precision == precision
    with chosen.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == hardware.DTYPES[precision]
    assert chosen.scaler().is_enabled() == (precision == "fp16")
    assert not chosen.pin_memory


def test_threads_are_the_workers_share_of_the_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert hardware.choose(TrainConfig(precision="fp32"), device=CPU, workers_on_host=4).threads == 2
    assert torch.get_num_threads() == 2
    assert hardware.choose(TrainConfig(precision="fp32"), device=CPU, workers_on_host=16).threads == 1
    assert hardware.choose(TrainConfig(precision="fp32", threads=3), device=CPU).threads == 3


def test_arithmetic_is_as_before_after_a_training_in_a_process_that_goes_on():
    before = torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    with pytest.raises(KeyError), hardware.kept_as_it_was():
        torch.set_num_threads(before[0] + 1)
        torch.set_float32_matmul_precision("medium")
        torch.backends.cudnn.benchmark = not before[2]
        raise KeyError
    assert before == (torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark)
    assert not torch.cuda.is_initialized()
