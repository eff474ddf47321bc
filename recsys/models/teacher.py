"""Learning from another model's scores (Hinton, Vinyals & Dean 2015): its softmax over a step's candidates as soft targets.

Shapes: B events, N negatives, D dimensions (the teacher's are others); b events of a block.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recsys.models.losses import Hits, blocks, compute_dtype

# What a negative that is the event's own positive scores, so that it has no share: exp of it is 0 in every precision.
NO_CANDIDATE = -1e4


class Scored(NamedTuple):
    """What the logits of a step are made of: sharpness · user [B, D] · positive [B, D] or negatives [N, D].

    hits: negatives that are the event's own positive.
    """

    user: Tensor
    positive: Tensor
    negatives: Tensor
    hits: Hits
    sharpness: float = 1.0

    def sharpened(self, by: float) -> "Scored":
        """The same logits times `by`, with what they are made of in the precision that is computed in."""
        dtype = compute_dtype(self.user)
        user = self.user * (self.sharpness * by)
        return Scored(user.to(dtype), self.positive.to(dtype), self.negatives.to(dtype), self.hits)

    def logits(self, rows: slice, hits: tuple[Tensor, Tensor]) -> Tensor:
        """[b, 1 + N] for some events, in float32 at least: of the positive, then of the negatives."""
        positive = (wide(self.user[rows]) * wide(self.positive[rows])).sum(1, keepdim=True)
        negatives = wide(self.user[rows] @ self.negatives.T)
        negatives[hits] = NO_CANDIDATE
        return torch.cat([positive, negatives], dim=1)


class Teacher:
    """A frozen model that a student of the same `batch` learns from. No module: it is no part of the student's weights.

    Both have `scored(batch)`: what their logits of a step are made of.
    """

    def __init__(self, model: nn.Module, *, weight: float, temperature: float) -> None:
        """weight: of the teacher's part of the loss, in [0, 1]; temperature: divides the logits of both."""
        self._model: Any = model.eval().requires_grad_(False)
        self._weight, self._temperature = weight, temperature

    def mixed(self, of_labels: Tensor, student: Scored, batch: Any) -> Tensor:
        """(1 − weight) · of_labels + weight · the loss by soft targets, both summed over the events."""
        with torch.no_grad():
            taught: Scored = self._model.scored(batch)
        return (1 - self._weight) * of_labels + self._weight * soft_targets(student, taught, self._temperature)


def soft_targets(student: Scored, teacher: Scored, temperature: float) -> Tensor:
    """T² · Σ_b −Σ_j p_bj log q_bj over the event's positive and the step's negatives, its own positive among them left out.

    p, q: softmax of the teacher's, the student's logits / T. T² keeps gradients as large whatever T is (Hinton et al., §2).
    No logQ: what sampling adds is the same on both sides.
    """
    loss: Tensor = _SoftTargets.apply(student.user, student.positive, student.negatives, student, teacher, temperature)
    return loss


class _SoftTargets(torch.autograd.Function):
    """The loss and its gradients in one pass over both models' logits, which are never held whole."""

    @staticmethod
    def forward(
        ctx: Any,
        user_BD: Tensor,
        positive_BD: Tensor,
        negative_ND: Tensor,
        student: Scored,
        teacher: Scored,
        temperature: float,
    ) -> Tensor:
        ours, theirs = (scored.sharpened(1 / temperature) for scored in (student, teacher))
        with torch.autocast(user_BD.device.type, enabled=False):
            loss, *gradients = _loss_and_gradients(ours, theirs)
        # By the user as he was, not as he was sharpened; T² of the loss, and each logit was divided by T.
        ctx.save_for_backward(*gradients)
        ctx.scales = student.sharpness * temperature, temperature**2, temperature**2
        return loss * temperature**2

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        made = zip(ctx.saved_tensors, ctx.scales, strict=True)
        return *(gradient * (upstream[0] * scale) for gradient, scale in made), None, None, None


def _loss_and_gradients(ours: Scored, theirs: Scored) -> tuple[Tensor, ...]:
    """The loss, and its gradients by `ours`: user, positive, negatives."""
    user, positive, negatives = (torch.zeros_like(wide(part)) for part in ours[:3])
    loss = user.new_zeros(())
    for rows, hits in blocks(ours.user, ours.negatives, ours.hits):
        log_q = ours.logits(rows, hits).log_softmax(1)
        wanted = theirs.logits(rows, hits).softmax(1)
        loss -= (wanted * log_q).sum()
        gradient = log_q.exp_().sub_(wanted)
        of_positive, of_negatives = gradient[:, :1], gradient[:, 1:].to(ours.user.dtype)
        user[rows] = of_positive * wide(ours.positive[rows]) + wide(of_negatives @ ours.negatives)
        positive[rows] = of_positive * wide(ours.user[rows])
        negatives += wide(of_negatives.T @ ours.user[rows])
    return loss, user, positive, negatives


def wide(tensor: Tensor) -> Tensor:
    """In float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
