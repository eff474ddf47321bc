"""One epoch: what a step does, what it counts, and when it refuses to go on."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from recsys.config import TrainConfig
from recsys.data.histories import Pairs
from recsys.errors import RecsysError
from recsys.training import hardware, loop
from recsys.training.hardware import Hardware
from recsys.training.micro_batch import MicroBatch


class Tiny(nn.Module):
    """Two tables and a dense layer: loss = Σ w·(u∘v) / total, whose gradients are known by hand."""

    def __init__(self, dense: bool = False) -> None:
        super().__init__()
        self.user, self.item = nn.Parameter(torch.ones(4, 2)), nn.Parameter(torch.full((5, 2), 2.0))
        self.dense = nn.Parameter(torch.ones(2)) if dense else None

    def forward(self, batch: Pairs) -> torch.Tensor:
        product = F.embedding(batch.user, self.user, sparse=True) * F.embedding(batch.item, self.item, sparse=True)
        scores = (product if self.dense is None else product * self.dense).sum(1)
        return (scores * batch.rating).sum() / batch.total

    def row_tables(self) -> dict[str, nn.Parameter]:
        return {"user": self.user, "item": self.item}


def pairs(user: list[int], item: list[int], rating: list[float] | None = None, total: int | None = None) -> Pairs:
    values = torch.tensor(rating or [1.0] * len(user))
    return Pairs(torch.tensor(user, dtype=torch.int32), torch.tensor(item, dtype=torch.int32), values, total=total)


def plain(precision: str = "fp32") -> Hardware:
    return Hardware(torch.device("cpu"), hardware.DTYPES[precision], threads=1)


def train(model: Tiny, batches: list[Pairs], precision: str = "fp32", rate: float = 0.1, **more) -> loop.EpochStats:
    optimizers = more.pop("optimizers", None) or loop.make_optimizers(model, TrainConfig(learning_rate=rate))
    return loop.train_epoch(model, batches, optimizers, hardware=plain(precision), **more)


def test_only_what_a_batch_touches_moves():
    model = Tiny()
    train(model, [pairs([1, 1], [0, 3])])
    assert (model.user != 1).any(1).tolist() == [False, True, False, False]
    assert (model.item != 2).any(1).tolist() == [True, False, False, True, False]


def test_stats_are_of_all_events():
    model = Tiny()
    stats = train(model, [pairs([0, 1, 2], [0, 1, 2]), pairs([3], [3])], rate=1e-9)
    # Every event's score is 1·2 + 1·2.
    assert stats.loss == pytest.approx(4.0)
    assert (stats.events, stats.steps, stats.skipped) == (4, 2, 0)
    assert stats.seconds == pytest.approx(stats.wait_seconds + stats.compute_seconds)
    assert set(stats.as_dict()) >= {"loss", "events", "seconds", "wait_seconds", "compute_seconds", "grad_norm"}


def test_the_norm_is_of_all_gradients_together():
    # One event: by the user (2, 2), by the item (1, 1), by the dense layer (2, 2).
    assert train(Tiny(), [pairs([0], [0])]).grad_norm == pytest.approx(math.sqrt(8 + 2))
    assert train(Tiny(dense=True), [pairs([0], [0])]).grad_norm == pytest.approx(math.sqrt(8 + 2 + 8))


def test_duplicates_are_summed_before_the_norm_is_taken():
    # Twice the same event: each half of the loss, so the gradients are as of one.
    assert train(Tiny(), [pairs([0, 0], [0, 0])]).grad_norm == pytest.approx(math.sqrt(8 + 2))


@pytest.mark.parametrize("dense", [False, True])
def test_clipping_bounds_the_norm_of_rows_and_dense_gradients_together(dense):
    model = Tiny(dense)
    captured = []

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            captured.append(loop.gradient_norm(model).item())

    train(model, [pairs([0, 1], [0, 3])], optimizers=[Spy(model.parameters(), lr=0.1)], clip_norm=0.5)
    assert captured == [pytest.approx(0.5)]
    train(model, [pairs([0, 1], [0, 3])], optimizers=[Spy(model.parameters(), lr=0.1)], clip_norm=1000.0)
    assert captured[1] > 1


def test_an_empty_batch_counts_for_nothing():
    # As a worker takes it that has run out of events while others have not.
    model = Tiny(dense=True)
    before = [parameter.clone() for parameter in model.parameters()]
    stats = train(model, [pairs([], [], total=8)])
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert (stats.loss, stats.events, stats.steps) == (0.0, 0, 1)


def test_the_loss_is_divided_by_the_steps_events_over_all_workers():
    stats = train(Tiny(), [pairs([0, 1], [0, 1], total=8)])
    assert stats.grad_norm == pytest.approx(math.sqrt(2 * (8 + 2)) / 8)


def test_a_loss_that_is_no_number_stops_with_advice():
    with pytest.raises(RecsysError, match=r"epoch 1, step 2: the loss is nan.*learning_rate"):
        train(Tiny(), [pairs([0], [0]), pairs([1], [1], rating=[math.nan]), pairs([2], [2])])


def test_fp16_skips_a_step_that_overflows_and_goes_on():
    model = Tiny(dense=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = [parameter.clone() for parameter in model.parameters()]
    stats = train(model, [pairs([0], [0])], precision="fp16", scaler=scaler)
    assert stats.skipped == 1
    assert scaler.get_scale() == 2.0**126
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    stats = train(model, [pairs([0], [0])] * 3, precision="fp16", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    assert stats.skipped == 0
    assert stats.grad_norm == pytest.approx(math.sqrt(18), rel=0.2), "the scale is taken off"


def test_dense_parameters_get_an_optimizer_of_their_own():
    assert len(loop.make_optimizers(Tiny(), TrainConfig())) == 1
    row_wise, dense = loop.make_optimizers(Tiny(dense=True), TrainConfig(optimizer="adagrad"))
    assert type(row_wise).__name__ == "RowAdagrad"
    assert dense.param_groups[0]["params"][0].shape == (2,)


def test_a_worker_alone_is_not_wrapped():
    model = Tiny(dense=True)
    assert loop.distribute(model) is model is loop.bare(model)


def test_steps_are_told_and_begin_where_the_epoch_is_resumed():
    told, batches = [], [pairs([0], [0]), pairs([1, 2], [1, 2])]
    train(Tiny(), batches, first_step=5, on_step=lambda step, stats: told.append((step, stats().events)))
    assert told == [(5, 1), (6, 3)]


def test_waiting_for_data_is_told_from_computing(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])

    def slow():
        for user in range(3):
            now[0] += 2.0
            yield pairs([user], [user])

    stats = train(Tiny(), slow())
    assert stats.wait_seconds == 6.0
    assert stats.compute_seconds == 0.0


@pytest.mark.parametrize("dense", [False, True])
def test_a_batch_gone_through_in_pieces_gives_the_same_update(dense):
    batch = [pairs([0, 1, 2, 3, 1], [0, 1, 2, 3, 4], [1.0, 2.0, 3.0, 4.0, 5.0])]
    whole, pieces = Tiny(dense), Tiny(dense)
    expected = train(whole, batch, clip_norm=0.5)
    stats = train(pieces, batch, clip_norm=0.5, micro_batch=MicroBatch(2))
    assert (stats.loss, stats.grad_norm) == pytest.approx((expected.loss, expected.grad_norm))
    for one, other in zip(whole.parameters(), pieces.parameters(), strict=True):
        torch.testing.assert_close(one, other)


class Hungry(Tiny):
    """Has memory for so many events at once."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.tried = most, []

    def forward(self, batch: Pairs) -> torch.Tensor:
        self.tried.append(len(batch))
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("out of memory, as planted")
        return super().forward(batch)


def test_out_of_memory_is_tried_once_more_with_half_and_goes_on_so():
    batches = [pairs([0, 1, 2, 3], [0, 1, 2, 3])] * 2
    model, expected = Hungry(2), Tiny()
    train(model, batches)
    train(expected, batches)
    assert model.tried == [4, 2, 2, 2, 2]
    torch.testing.assert_close(model.user, expected.user)


def test_out_of_memory_twice_stops_with_advice():
    with pytest.raises(RecsysError, match=r"4 events at once, and again with 2 .*train\.micro_batch=1"):
        train(Hungry(1), [pairs([0, 1, 2, 3], [0, 1, 2, 3])])


def test_an_epoch_in_two_goes_adds_up_to_one():
    batches = [pairs([0, 1, 2], [0, 1, 2], [1.0, 2.0, 3.0]), pairs([3], [3], [4.0]), pairs([1, 2], [4, 4])]
    whole = train(Tiny(), batches)
    model = Tiny()
    optimizers = loop.make_optimizers(model, TrainConfig(learning_rate=0.1))
    both = train(model, batches[:1], optimizers=optimizers) + train(model, batches[1:], optimizers=optimizers, first_step=1)
    assert (both.loss, both.grad_norm) == pytest.approx((whole.loss, whole.grad_norm))
    assert (both.events, both.steps, both.skipped) == (whole.events, whole.steps, whole.skipped)
