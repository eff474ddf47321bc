"""The fused losses against plain autograd, and the sign of logQ against a case computed by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from recsys.models import losses

LOG_Q = (torch.linspace(-2, 0, 10, dtype=torch.float64), torch.linspace(-3, 0, 7, dtype=torch.float64))


def vectors(events: int, negatives: int, dims: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(events, dims), (events, dims), (negatives, dims)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def items(events: int, negatives: int, of: int = 6):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(of, (events,), generator=generator), torch.randint(of, (negatives,), generator=generator)


def plain_softmax(user, positive, negative, masked, temperature, log_q=None):
    """The same by the book: all logits at once, autograd."""
    positives, logits = (user * positive).sum(1) / temperature, user @ negative.T / temperature
    if log_q is not None:
        positives, logits = positives - log_q[0], logits - log_q[1]
    logits = logits.masked_fill(masked, -torch.inf)
    return F.cross_entropy(torch.cat([positives[:, None], logits], 1), torch.zeros(len(user)).long(), reduction="sum")


def plain_bpr(user, positive, negative, masked):
    margin = (user * positive).sum(1, keepdim=True) - user @ negative.T
    return (-F.logsigmoid(margin)).masked_fill(masked, 0).sum() / len(negative)


def gradients(loss, inputs):
    return torch.autograd.grad(loss, inputs)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    # 7 negatives: blocks of 3 events, so that the seams between blocks are tried as well.
    monkeypatch.setitem(losses.BLOCK_ELEMENTS, "cpu", 21)


@pytest.mark.parametrize("largest", [0.0, 64.0])  # with 0 no scores count as bounded, and maxima are taken off
@pytest.mark.parametrize("corrected", [False, True])
def test_softmax_and_its_gradients_are_those_of_the_plain_form(monkeypatch, largest, corrected):
    monkeypatch.setattr(losses, "LARGEST_EXPONENT", largest)
    inputs, (item, negatives) = vectors(10, 7), items(10, 7)
    log_q = (torch.rand(10, dtype=torch.float64), torch.rand(7, dtype=torch.float64)) if corrected else None
    hits = losses.accidental_hits(item, negatives)
    fused = losses.sampled_softmax(*inputs, hits, temperature=0.7, log_q=log_q)
    plain = plain_softmax(*inputs, item[:, None] == negatives, 0.7, log_q)
    torch.testing.assert_close(fused, plain)
    torch.testing.assert_close(gradients(fused * 3, inputs), gradients(plain * 3, inputs))


def test_bpr_and_its_gradients_are_those_of_the_plain_form():
    inputs, (item, negatives) = vectors(10, 7), items(10, 7)
    fused = losses.bpr(*inputs, losses.accidental_hits(item, negatives))
    plain = plain_bpr(*inputs, item[:, None] == negatives)
    torch.testing.assert_close(fused, plain)
    torch.testing.assert_close(gradients(fused, inputs), gradients(plain, inputs))


@pytest.mark.parametrize("largest", [0.0, 64.0])
@pytest.mark.parametrize(
    "loss",
    [
        lambda *inputs, **more: losses.sampled_softmax(*inputs, temperature=0.7, log_q=LOG_Q, **more),
        losses.bpr,
        lambda *inputs, **more: losses.ccl(*inputs, margin=0.3, weight=5.0, **more),
    ],
)
def test_biases_are_a_column_of_the_vectors(monkeypatch, loss, largest):
    monkeypatch.setattr(losses, "LARGEST_EXPONENT", largest)
    (user, positive, negative), (item, negatives) = vectors(10, 7), items(10, 7)
    biases = tuple(torch.randn(count, dtype=torch.float64).requires_grad_() for count in (10, 7))
    hits = losses.accidental_hits(item, negatives)
    apart = loss(user, positive, negative, hits, biases=biases)
    vectors_of_items = [torch.cat([rows, bias[:, None]], 1) for rows, bias in zip((positive, negative), biases, strict=True)]
    within = loss(torch.cat([user, torch.ones(10, 1, dtype=torch.float64)], 1), *vectors_of_items, hits)
    inputs = (user, positive, negative, *biases)
    torch.testing.assert_close(apart, within)
    torch.testing.assert_close(gradients(apart, inputs), gradients(within, inputs))


@pytest.mark.parametrize("size", [200.0, -95.0, -200.0])
def test_large_biases_neither_overflow_nor_vanish(size):
    user, positive, negative = vectors(4, 7, dtype=torch.float32)
    biases = (torch.full((4,), size), torch.full((7,), size + 1))
    nothing = losses.accidental_hits(torch.zeros(4).long(), torch.arange(1, 8))
    far = losses.sampled_softmax(user, positive, negative, nothing, temperature=1.0, biases=biases)
    near = losses.sampled_softmax(
        user, positive, negative, nothing, temperature=1.0, biases=(biases[0] - size, biases[1] - size)
    )
    torch.testing.assert_close(far, near, rtol=1e-4, atol=1e-4)
    inputs = (user, positive, negative)
    torch.testing.assert_close(gradients(far, inputs), gradients(near, inputs), rtol=1e-4, atol=1e-4)


def test_gbce_and_its_gradients_are_those_of_the_plain_form():
    inputs, (item, negatives) = vectors(10, 7), items(10, 7)
    fused = losses.gbce(*inputs, losses.accidental_hits(item, negatives), confidence=0.3)
    user, positive, negative = inputs
    pushed = F.softplus(user @ negative.T).masked_fill(item[:, None] == negatives, 0).sum()
    plain = (pushed - 0.3 * F.logsigmoid((user * positive).sum(1)).sum()) / 8
    torch.testing.assert_close(fused, plain)
    torch.testing.assert_close(gradients(fused * 3, inputs), gradients(plain * 3, inputs))


def test_ccl_and_its_gradients_are_those_of_the_plain_form():
    inputs, (item, negatives) = vectors(10, 7), items(10, 7)
    fused = losses.ccl(*inputs, losses.accidental_hits(item, negatives), margin=0.3, weight=5.0)
    user, positive, negative = inputs
    above = F.relu(user @ negative.T - 0.3).masked_fill(item[:, None] == negatives, 0)
    plain = (1 - (user * positive).sum(1)).sum() + 5 * above.sum() / 7
    assert 0 < (above > 0).sum() < above.numel()
    torch.testing.assert_close(fused, plain)
    torch.testing.assert_close(gradients(fused * 3, inputs), gradients(plain * 3, inputs))


def test_gbce_of_one_event_and_one_negative_is_as_by_hand():
    """Scores ln 3 and 0, β = ½: (−½ log ¾ − log ½) / 2."""
    user, positive, negative = torch.tensor([[1.0, 0.0]]), torch.tensor([[math.log(3), 0.0]]), torch.tensor([[0.0, 1.0]])
    nothing = losses.accidental_hits(torch.tensor([0]), torch.tensor([1]))
    loss = losses.gbce(user, positive, negative, nothing, confidence=0.5)
    assert loss.item() == pytest.approx((0.5 * math.log(4 / 3) + math.log(2)) / 2)


def test_the_confidence_of_gbce_goes_from_plain_cross_entropy_to_the_share_that_was_drawn():
    """256 negatives of 3,416 items: α = 256 / 3415."""
    assert losses.gbce_confidence(256, 3416, 0.0) == pytest.approx(1)
    assert losses.gbce_confidence(256, 3416, 1.0) == pytest.approx(256 / 3415)
    assert losses.gbce_confidence(256, 3416, 0.75) == pytest.approx(0.75 * 256 / 3415 + 0.25)


def test_large_scores_overflow_nothing():
    user, positive, negative = (tensor.detach() * 1000 for tensor in vectors(4, 7))
    nothing = losses.Hits(torch.zeros(0).long(), torch.zeros(0).long())
    loss = losses.sampled_softmax(user, positive, negative, nothing, temperature=0.01)
    torch.testing.assert_close(loss, plain_softmax(user, positive, negative, torch.zeros(4, 7).bool(), 0.01))
    assert loss.isfinite()


def test_logq_lifts_what_is_drawn_often_off_the_floor():
    # By hand: all scores 0; the positive is drawn with chance 1/2, the negative with 1/8. Corrected scores are log 2 and
    # log 8, so the loss is log(2 + 8) - log 2 = log 5. With the wrong sign it would be log(1/2 + 1/8) - log(1/2) = log 1.25.
    user, positive, negative = torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2)
    nothing = losses.Hits(torch.zeros(0).long(), torch.zeros(0).long())
    log_q = (torch.tensor([1 / 2]).log(), torch.tensor([1 / 8]).log())
    loss = losses.sampled_softmax(user, positive, negative, nothing, temperature=1.0, log_q=log_q)
    assert loss.item() == pytest.approx(math.log(5))


def test_accidental_hits_are_every_negative_that_is_the_events_positive():
    item, negatives = torch.tensor([3, 1, 4, 1]), torch.tensor([1, 5, 3, 1])
    hits = losses.accidental_hits(item, negatives)
    assert sorted(zip(hits.row.tolist(), hits.column.tolist(), strict=True)) == [(0, 2), (1, 0), (1, 3), (3, 0), (3, 3)]
    assert hits.row.tolist() == sorted(hits.row.tolist())


def test_an_event_all_of_whose_negatives_are_itself_costs_nothing():
    inputs = vectors(1, 3)
    hits = losses.accidental_hits(torch.tensor([2]), torch.tensor([2, 2, 2]))
    assert losses.sampled_softmax(*inputs, hits, temperature=1.0).item() == pytest.approx(0, abs=1e-12)


def test_no_events_give_no_loss_and_no_gradient():
    inputs = vectors(0, 7)
    loss = losses.sampled_softmax(*inputs, losses.accidental_hits(torch.zeros(0).long(), torch.arange(7)), temperature=1.0)
    assert loss.item() == 0
    assert gradients(loss, inputs)[2].abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("largest", [0.0, 64.0])
def test_half_precision_is_near(monkeypatch, dtype, largest):
    monkeypatch.setattr(losses, "LARGEST_EXPONENT", largest)
    units = [losses.unit(tensor).detach().requires_grad_() for tensor in vectors(10, 7, dtype=torch.float32)]
    item, negatives = items(10, 7)
    hits = losses.accidental_hits(item, negatives)
    exact = losses.sampled_softmax(*units, hits, temperature=0.1)
    with torch.autocast("cpu", dtype=dtype):
        rough = losses.sampled_softmax(*units, hits, temperature=0.1)
    assert rough.dtype == torch.float32
    assert rough != exact, "nothing was computed in half precision"
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0.02)
    for near, far in zip(gradients(rough, units), gradients(exact, units), strict=True):
        assert F.cosine_similarity(near.flatten(), far.flatten(), dim=0) > 0.999


def test_unit_is_normalize_and_so_is_its_gradient():
    (rows, other, _) = vectors(6, 1)
    fused, plain = (losses.unit(rows) * other).sum(), (F.normalize(rows, dim=1) * other).sum()
    torch.testing.assert_close(fused, plain)
    torch.testing.assert_close(gradients(fused, [rows]), gradients(plain, [rows]))


def test_unit_of_zeros_is_zeros():
    assert losses.unit(torch.zeros(2, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_squared_error_is_half_the_sum():
    assert losses.squared_error(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0])).item() == 2.0
