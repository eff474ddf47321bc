"""A causal encoder over vectors of items: blocks behind learned positions, a final norm; and the transformer's block, pre-norm.

Shapes: B sequences, L places, D dimensions, H heads, K = D / H.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Of the positions to begin with.
POSITION_DEVIATION = 0.1


class Encoder(nn.Module):
    """[B, L, D] item vectors → [B, L, D]: at each place what is known of a user after it. Takes up to `length` places.

    No place sees a later one, so what comes behind a sequence's last item (padding) changes nothing before it.
    """

    def __init__(self, dim: int, blocks: Iterable[nn.Module], *, length: int, dropout: float) -> None:
        """blocks: [B, L, D] → [B, L, D] each, no place seeing a later one. dropout: after the input."""
        super().__init__()
        self.dropout, self.scale = dropout, dim**0.5
        self.position = nn.Parameter(torch.randn(length, dim) * POSITION_DEVIATION)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(dim)

    def forward(self, items_BLD: Tensor) -> Tensor:
        """Item vectors as they are exported, zeros for padding."""
        x = items_BLD * self.scale + self.position[: items_BLD.shape[1]]
        x = dropout(x, self.dropout if self.training else 0)
        for block in self.blocks:
            x = block(x)
        normed: Tensor = self.norm(x)
        return normed


class Block(nn.Module):
    """Attention, then a feed-forward layer, each on normed input and added to what came in."""

    def __init__(self, dim: int, heads: int, width: int, dropout: float) -> None:
        """width: of the feed-forward layer, as a multiple of dim. dropout: after each half."""
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attention_norm, self.feed_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        # No bias: that of the keys would have no gradient but rounding, which Adam takes for one.
        self.query_key_value, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        self.widen, self.narrow = nn.Linear(dim, width * dim), nn.Linear(width * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] → [B, L, D]"""
        rate = self.dropout if self.training else 0
        x = x + dropout(self._attended(self.attention_norm(x)), rate)
        return x + dropout(self.narrow(F.relu(self.widen(self.feed_norm(x)))), rate)

    def _attended(self, x: Tensor) -> Tensor:
        parts = self.query_key_value(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.out(causal_attention(*parts.unbind(0)).transpose(1, 2).flatten(2))
        return out


def causal_attention(query_BHLK: Tensor, key_BHLK: Tensor, value_BHLK: Tensor) -> Tensor:
    """[B, H, L, K] each place's mean of the values up to it, weighted by softmax of query · key / √K.

    Without dropout, which fused kernels lack. A GPU has the fused one. On a CPU its gradients take 2.5 to 5 times as long in
    bf16 as these plain products, which hold [L, L] (measured at L = 50 and 200, PyTorch 2.13).
    """
    if query_BHLK.is_cuda:
        return F.scaled_dot_product_attention(query_BHLK, key_BHLK, value_BHLK, is_causal=True)
    scores_BHLL = (query_BHLK * query_BHLK.shape[-1] ** -0.5) @ key_BHLK.transpose(-1, -2)
    later_LL = torch.full(scores_BHLL.shape[-2:], -torch.inf, dtype=scores_BHLL.dtype).triu(1)
    attended: Tensor = (scores_BHLL + later_LL).softmax(-1) @ value_BHLK
    return attended


def dropout(x: Tensor, rate: float) -> Tensor:
    """F.dropout; on a CPU with the rate rounded to 1/256, since a random byte costs a fifth of a random number."""
    if not rate or x.is_cuda:
        return F.dropout(x, rate, bool(rate))
    dropped = min(round(rate * 256), 255)
    bits = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 8),)).view(torch.uint8)[: x.numel()].view(x.shape)
    return x * (bits >= dropped).to(x.dtype).mul_(256 / (256 - dropped))
