"""SASRec (Kang & McAuley, ICDM 2018): a user is what a causal encoder makes of his events; items are one table.

Shapes: T events to be told, N negatives, D dimensions.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.config import ModelConfig
from recsys.models.base import padded_to_eight
from recsys.models.hstu import HstuBlock
from recsys.models.sequence import LookedUp, SequenceModel
from recsys.models.transformer import Block, Encoder


class SASRec(SequenceModel):
    """score(u, i) = encoder(items of u's history) · v_i, or their cosine. The vectors v are the encoder's input, too."""

    def made_encoder(self, config: ModelConfig) -> nn.Module:
        """A causal encoder."""
        blocks = (_block(config) for _ in range(config.blocks))  # drawn behind the positions, as they always were
        return Encoder(config.dim, blocks, length=config.max_length, dropout=config.dropout)

    def look_up(self, item_T: Tensor, told_T: Tensor, negatives_N: Tensor) -> LookedUp:
        """Rows of the one table."""
        return LookedUp(*(self.inputs(item) for item in (item_T, told_T, negatives_N)))

    def inputs(self, item_T: Tensor) -> Tensor:
        """[T, D] the items' vectors."""
        return self.directed(F.embedding(item_T, self.item_table, sparse=not self.touches_all))

    @torch.no_grad()
    def item_vectors(self) -> Tensor:
        """[N, D]; zero for an item without a train event."""
        return padded_to_eight(self.directed(self.item_table) * self.trained[:, None])


def _block(config: ModelConfig) -> nn.Module:
    if config.block == "hstu":
        return HstuBlock(config.dim, config.heads, config.dropout, config.max_length)
    return Block(config.dim, config.heads, config.width, config.dropout)
