"""Losses of a step whose negatives all its events share: logits are one matrix product, made block by block.

Shapes: B events, N negatives, D dimensions; b events of a block. Every loss is the sum over the events.

`biases` of items are [B] of the positives and [N] of the negatives, added to u·v. A column of the vectors would say the
same, but products with 65 columns take up to 1.7 times those with 64.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# Elements of a block of logits: on a CPU it stays in the cache from the product to both gradients (measured: 2^19 to
# 2^21 are alike, one block of everything takes 1.5 times as long); a GPU wants few large kernels.
BLOCK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 27}

# exp(64) times a million negatives is far from the end of float32 and bfloat16, and so is exp(-64).
LARGEST_EXPONENT = 64.0

Biases = tuple[Tensor, Tensor]


class Hits(NamedTuple):
    """Accidental hits: (event, negative) couples in which the negative is the event's own positive. row is ascending."""

    row: Tensor
    column: Tensor


def accidental_hits(item_B: Tensor, negatives_N: Tensor) -> Hits:
    """Couples to leave out of the loss, without comparing every event with every negative."""
    ordered_N, place_N = torch.sort(negatives_N)
    first_B = torch.searchsorted(ordered_N, item_B)
    count_B = torch.searchsorted(ordered_N, item_B, right=True) - first_B
    row = torch.repeat_interleave(count_B)
    start_B = count_B.cumsum(0) - count_B
    column = place_N[torch.arange(len(row), device=row.device) - start_B[row] + first_B[row]]
    return Hits(row, column)


def sampled_softmax(
    user_BD: Tensor,
    positive_BD: Tensor,
    negative_ND: Tensor,
    hits: Hits,
    *,
    temperature: float,
    biases: Biases | None = None,
    log_q: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Cross-entropy of the positive against itself and the negatives: Σ_b log Σ_j exp(s_bj) − s_b.

    s = (u·v + bias) / temperature − log q(item), for the positive as for the negatives (Bengio & Senécal 2008; for batches of
    positives Yi et al., RecSys 2019): without it items drawn often would be pushed down for being drawn.
    log_q: ([B] of the positives, [N] of the negatives), each up to the same constant.
    """
    task = _Task(hits, _softmax_block, 1 / temperature, log_q)
    if _bound(user_BD, positive_BD, negative_ND, biases, task) < LARGEST_EXPONENT:
        task = task._replace(rule=_bounded_softmax_block)
    return _applied(user_BD, positive_BD, negative_ND, biases, task)


def bpr(user_BD: Tensor, positive_BD: Tensor, negative_ND: Tensor, hits: Hits, *, biases: Biases | None = None) -> Tensor:
    """Σ_b mean_n −log σ(s_b − s_bn), s = u·v + bias (Rendle et al., UAI 2009), each event against every shared negative."""
    return _applied(user_BD, positive_BD, negative_ND, biases, _Task(hits, _bpr_block))


def gbce(
    user_BD: Tensor, positive_BD: Tensor, negative_ND: Tensor, hits: Hits, *, confidence: float, temperature: float = 1.0
) -> Tensor:
    """Σ_b (−β log σ(s_b) − Σ_n log(1 − σ(s_bn))) / (N + 1), s = u·v / temperature, β = `confidence` (Petrov & Macdonald, RecSys
    2023)."""
    rule = partial(_gbce_block, confidence=confidence)
    return _applied(user_BD, positive_BD, negative_ND, None, _Task(hits, rule, 1 / temperature))


def ccl(
    user_BD: Tensor,
    positive_BD: Tensor,
    negative_ND: Tensor,
    hits: Hits,
    *,
    margin: float,
    weight: float,
    biases: Biases | None = None,
) -> Tensor:
    """Σ_b (1 − s_b + weight · mean_n max(0, s_bn − margin)), s = u·v + bias, u and v of length 1 (Mao et al., SimpleX, CIKM
    2021)."""
    rule = partial(_ccl_block, margin=margin, weight=weight)
    return _applied(user_BD, positive_BD, negative_ND, biases, _Task(hits, rule))


def gbce_confidence(negatives: int, items: int, calibration: float) -> float:
    """β of gBCE: α (t (1 − 1/α) + 1/α), with α the share of the other items that are negatives, t the calibration.

    t = 0 is plain binary cross-entropy, β = 1; t = 1 takes off all of what sampling adds to the scores, β = α.
    """
    share = min(1.0, negatives / max(items - 1, 1))
    return share * (calibration * (1 - 1 / share) + 1 / share)


def unit(rows: Tensor) -> Tensor:
    """Each row divided by its length; a row of zeros stays one. [R, D] → [R, D], with a lean gradient."""
    return _Unit.apply(rows)  # type: ignore[no-any-return]


def squared_error(predicted_B: Tensor, rating_B: Tensor) -> Tensor:
    """Σ_b ½ (predicted − rating)²."""
    return (predicted_B - rating_B).square().sum() / 2


class Block(NamedTuple):
    """What a block's logits come to. The gradient of the loss by a logit is weights [b, N] · scale [b]."""

    loss: Tensor
    weights: Tensor
    scale: Tensor
    positive_gradient: Tensor


Rule = Callable[[Tensor, Tensor, tuple[Tensor, Tensor]], Block]


def _softmax_block(logits_bN: Tensor, positive_b: Tensor, hits: tuple[Tensor, Tensor]) -> Block:
    # float16 has no room for small exponentials; bfloat16 has float32's range.
    logits_bN = logits_bN.float() if logits_bN.dtype == torch.float16 else logits_bN
    shift_b = torch.maximum(logits_bN.amax(1), positive_b.to(logits_bN.dtype))
    return _softmax_of_exp(logits_bN.sub_(shift_b[:, None]).exp_(), positive_b - shift_b, hits)


def _bounded_softmax_block(logits_bN: Tensor, positive_b: Tensor, hits: tuple[Tensor, Tensor]) -> Block:
    if logits_bN.dtype == torch.float16:
        return _softmax_block(logits_bN, positive_b, hits)
    return _softmax_of_exp(logits_bN.exp_(), positive_b, hits)


def _softmax_of_exp(exp_bN: Tensor, positive_b: Tensor, hits: tuple[Tensor, Tensor]) -> Block:
    exp_bN[hits] = 0
    positive_exp_b = positive_b.exp()
    sum_b = exp_bN.sum(1, dtype=positive_b.dtype) + positive_exp_b
    return Block((sum_b.log() - positive_b).sum(), exp_bN, 1 / sum_b, positive_exp_b / sum_b - 1)


def _bpr_block(logits_bN: Tensor, positive_b: Tensor, hits: tuple[Tensor, Tensor]) -> Block:
    margin_bN = logits_bN.to(positive_b.dtype).sub_(positive_b[:, None])
    margin_bN[hits] = -torch.inf
    weight_bN, share = margin_bN.sigmoid(), 1 / max(logits_bN.shape[1], 1)
    loss = F.softplus(margin_bN).sum() * share
    return Block(loss, weight_bN, torch.full_like(positive_b, share), -weight_bN.sum(1) * share)


def _gbce_block(logits_bN: Tensor, positive_b: Tensor, hits: tuple[Tensor, Tensor], *, confidence: float) -> Block:
    logits_bN = logits_bN.to(positive_b.dtype)
    logits_bN[hits] = -torch.inf
    share = 1 / (logits_bN.shape[1] + 1)
    loss = (F.softplus(logits_bN).sum() + confidence * F.softplus(-positive_b).sum()) * share
    pull_b = torch.sigmoid(-positive_b) * (-confidence * share)
    return Block(loss, logits_bN.sigmoid_(), torch.full_like(positive_b, share), pull_b)


def _ccl_block(logits_bN: Tensor, positive_b: Tensor, hits: tuple[Tensor, Tensor], *, margin: float, weight: float) -> Block:
    logits_bN[hits] = -torch.inf
    above_bN = logits_bN.sub_(margin).clamp_(min=0)
    share = weight / max(logits_bN.shape[1], 1)
    loss = (1 - positive_b).sum() + above_bN.sum(dtype=positive_b.dtype) * share
    return Block(loss, above_bN.sign(), torch.full_like(positive_b, share), torch.full_like(positive_b, -1.0))


class _Task(NamedTuple):
    """What besides the vectors makes up the logits: sharpness · (u·v + bias) − log_q, and the rule that makes them a loss."""

    hits: Hits
    rule: Rule
    sharpness: float = 1.0
    log_q: tuple[Tensor, Tensor] | None = None


def _applied(user_BD: Tensor, positive_BD: Tensor, negative_ND: Tensor, biases: Biases | None, task: _Task) -> Tensor:
    return _SharedNegatives.apply(user_BD, positive_BD, negative_ND, *(biases or (None, None)), task)  # type: ignore[no-any-return]


class _SharedNegatives(torch.autograd.Function):
    """The loss and its gradients in one pass over the logits, which are never held whole."""

    @staticmethod
    def forward(
        ctx: Any,
        user_BD: Tensor,
        positive_BD: Tensor,
        negative_ND: Tensor,
        bias_B: Tensor | None,
        bias_N: Tensor | None,
        task: _Task,
    ) -> Tensor:
        dtype, biases = compute_dtype(user_BD), None if bias_B is None or bias_N is None else (bias_B, bias_N)
        with torch.autocast(user_BD.device.type, enabled=False):
            loss, *gradients = _loss_and_gradients(user_BD, positive_BD, negative_ND, biases, task, dtype)
        ctx.has_biases = biases is not None
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        # In place, to save copies: this graph is gone through once.
        gradients = [gradient.mul_(upstream[0]) for gradient in ctx.saved_tensors]
        return *(gradients if ctx.has_biases else [*gradients[:3], None, None]), None


def _loss_and_gradients(
    user_BD: Tensor, positive_BD: Tensor, negative_ND: Tensor, biases: Biases | None, task: _Task, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    positive_B, offset_N = _offsets((user_BD * positive_BD).sum(1).mul_(task.sharpness), biases, task)
    user, negative = (user_BD * task.sharpness).to(dtype), negative_ND.to(dtype)
    offset = None if offset_N is None else offset_N.to(dtype)
    user_gradient, negative_gradient = torch.empty_like(user_BD), torch.zeros_like(negative_ND)
    bias_gradient_N = negative_ND.new_zeros(len(negative_ND))
    positive_gradient_B, loss = torch.empty_like(positive_B), positive_B.new_zeros(())
    for rows, hits in blocks(user, negative, task.hits):
        logits = F.linear(user[rows], negative, offset)
        block = task.rule(logits, positive_B[rows], hits)
        weights = block.weights.to(dtype)
        scale_b = block.scale * task.sharpness
        torch.mul(weights @ negative, scale_b[:, None], out=user_gradient[rows])
        negative_gradient += weights.T @ (user_BD[rows] * scale_b[:, None]).to(dtype)
        if biases is not None:
            bias_gradient_N += scale_b.to(dtype) @ weights
        positive_gradient_B[rows] = block.positive_gradient * task.sharpness
        loss += block.loss
    user_gradient.addcmul_(positive_BD, positive_gradient_B[:, None])
    positive_gradient = user_BD * positive_gradient_B[:, None]
    return loss, user_gradient, positive_gradient, negative_gradient, positive_gradient_B, bias_gradient_N


def _offsets(positive_B: Tensor, biases: Biases | None, task: _Task) -> tuple[Tensor, Tensor | None]:
    """[B] scores of the positives with what is added to u·v, and [N] what is added for the negatives, if anything is."""
    offset_N = None
    if biases is not None:
        positive_B, offset_N = positive_B + biases[0] * task.sharpness, biases[1] * task.sharpness
    if task.log_q is not None:
        positive_B, offset_N = positive_B - task.log_q[0], -task.log_q[1] if offset_N is None else offset_N - task.log_q[1]
    return positive_B, offset_N


class _Unit(torch.autograd.Function):
    """The gradient of a direction is what is left of it after its part along the row is taken off, over the length."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        shorten = 1 / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min_(1e-12)
        directions: Tensor = rows * shorten
        ctx.save_for_backward(directions, shorten)
        return directions

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        directions, shorten = ctx.saved_tensors
        along = (upstream[0] * directions).sum(1, keepdim=True)
        across: Tensor = torch.addcmul(upstream[0], directions, along, value=-1)
        return across.mul_(shorten)


@torch.no_grad()
def _bound(user_BD: Tensor, positive_BD: Tensor, negative_ND: Tensor, biases: Biases | None, task: _Task) -> float:
    """What no score is beyond, either way, by the vectors' lengths. A GPU is not asked: it would have to stop for the answer.

    Where it is small, exp can neither overflow nor make all of a row zero, and two passes over the logits are saved: to find
    each row's maximum and to take it off.
    """
    if user_BD.is_cuda or not len(user_BD) or not len(negative_ND):
        return math.inf
    users, *others = (float(torch.linalg.vector_norm(rows, dim=1).max()) for rows in (user_BD, positive_BD, negative_ND))
    rarest = min(float(log_q.min()) for log_q in task.log_q) if task.log_q else 0.0
    largest = max(float(bias.abs().max()) for bias in biases) if biases else 0.0
    return (users * max(others) + largest) * task.sharpness - rarest


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """What matrix products of it are computed in."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def blocks(user: Tensor, negative: Tensor, hits: Hits) -> Iterator[tuple[slice, tuple[Tensor, Tensor]]]:
    """Slices of the events, with the accidental hits in each, counted from its start."""
    rows = max(1, BLOCK_ELEMENTS.get(user.device.type, 1 << 27) // max(len(negative), 1))
    starts = list(range(0, len(user), rows))
    bounds = torch.searchsorted(hits.row, torch.tensor([*starts, len(user)], device=user.device)).tolist()
    for start, first, last in zip(starts, bounds, bounds[1:], strict=False):
        yield slice(start, start + rows), (hits.row[first:last] - start, hits.column[first:last])
