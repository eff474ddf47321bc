"""A block of hierarchical sequential transduction units: attention without softmax, gated, in place of a feed-forward layer.

Zhai et al., "Actions Speak Louder than Words", ICML 2024: relative positions without times. Shapes: B sequences, L places, D
dimensions, H heads, K = D / H.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.models.transformer import dropout


class HstuBlock(nn.Module):
    """x + W (norm(a v) · u) with u, v, q, k = silu(W' norm(x)) and a = silu(q · k / √K + how far back) / events up to there.

    The mean over the events up to a place, where the paper divides by the longest history: so a vector does not depend on
    how long others are.
    """

    def __init__(self, dim: int, heads: int, dropout: float, length: int) -> None:
        """length: of the longest sequence."""
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm, self.attended_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.project, self.out = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(dim, dim)
        self.distance = nn.Parameter(torch.zeros(heads, length))

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] → [B, L, D]"""
        gate, *parts = F.silu(self.project(self.norm(x))).chunk(4, -1)
        value, query, key = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        attended = (self._weights(query, key) @ value).transpose(1, 2).flatten(2)
        return x + dropout(self.out(self.attended_norm(attended) * gate), self.dropout if self.training else 0)

    def _weights(self, query_BHLK: Tensor, key_BHLK: Tensor) -> Tensor:
        """[B, H, L, L] what each place takes of those up to it."""
        place_L = torch.arange(query_BHLK.shape[2], device=query_BHLK.device)
        back_LL = (place_L[:, None] - place_L).clamp(min=0)
        scores = (query_BHLK * query_BHLK.shape[-1] ** -0.5) @ key_BHLK.transpose(-1, -2)
        share_LL = (place_L[:, None] >= place_L) / (place_L[:, None] + 1)
        weights: Tensor = F.silu(scores + self.distance[:, back_LL].to(scores.dtype)) * share_LL.to(scores.dtype)
        return weights
