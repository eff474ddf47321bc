"""A causal transformer over vectors of items: pre-norm blocks, learned positions, a final norm.

Shapes: B sequences, L places, D dimensions, H heads, K = D / H.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Of the positions to begin with; the vectors of items have 1 beside it.
POSITION_DEVIATION = 0.1


class Encoder(nn.Module):
    """[B, L, D] item vectors → [B, L, D]: at each place what is known of a user after it. Takes up to `length` places.

    No place sees a later one, so what comes behind a sequence's last item (padding) changes nothing before it.
    """

    def __init__(self, dim: int, *, length: int, blocks: int, heads: int, width: int, dropout: float) -> None:
        """width: of the feed-forward layers, as a multiple of dim. dropout: after the input and each half of a block."""
        super().__init__()
        self.dropout, self.scale = dropout, dim**0.5
        self.position = nn.Parameter(torch.randn(length, dim) * POSITION_DEVIATION)
        self.blocks = nn.ModuleList(Block(dim, heads, width, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(dim)

    def forward(self, items_BLD: Tensor) -> Tensor:
        """Item vectors of length about 1, as they are exported."""
        x = items_BLD * self.scale + self.position[: items_BLD.shape[1]]
        x = F.dropout(x, self.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        normed: Tensor = self.norm(x)
        return normed


class Block(nn.Module):
    """Attention, then a feed-forward layer, each on normed input and added to what came in."""

    def __init__(self, dim: int, heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attention_norm, self.feed_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query_key_value, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.widen, self.narrow = nn.Linear(dim, width * dim), nn.Linear(width * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] → [B, L, D]"""
        x = x + F.dropout(self._attended(self.attention_norm(x)), self.dropout, self.training)
        fed = self.narrow(F.relu(self.widen(self.feed_norm(x))))
        return x + F.dropout(fed, self.dropout, self.training)

    def _attended(self, x: Tensor) -> Tensor:
        # No dropout on the attention itself: fused kernels, which never hold its [L, L], have none on a CPU.
        parts = self.query_key_value(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed_BHLK = F.scaled_dot_product_attention(*parts.unbind(0), is_causal=True)
        out: Tensor = self.out(mixed_BHLK.transpose(1, 2).flatten(2))
        return out
