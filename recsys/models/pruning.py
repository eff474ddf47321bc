"""A smaller encoder: without the feed-forward units that say least. Nothing is trained anew.

Shapes: U units of a feed-forward layer, D dimensions.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from recsys.errors import ConfigError
from recsys.models.transformer import Block


@torch.no_grad()
def pruned(model: Any, share: float) -> Any:
    """A copy of a model, tables shared, without `share` of the units of each feed-forward layer: those of the smallest norms.

    A layer keeps one unit at least. Raises ConfigError where the model's encoder has no such layers.
    """
    tables = {id(parameter): parameter for parameter in model.tables().values()}
    smaller = copy.deepcopy(model, tables)
    blocks = [part for part in smaller.modules() if isinstance(part, Block)]
    if not blocks:
        raise ConfigError("encoder.pruned: this model has no feed-forward layers to prune. Leave it out.")
    for block in blocks:
        kept = _kept(block, share)
        block.widen, block.narrow = _rows(block.widen, kept), _columns(block.narrow, kept)
    return smaller


def _kept(block: Block, share: float) -> Tensor:
    """The units to keep, ascending, by what each can add: the norm of what it takes in times that of what it gives out.

    Filters by their norms are Li et al.'s (ICLR 2017); with both sides a unit that nobody reads goes first, too.
    """
    taken = torch.linalg.vector_norm(torch.cat([block.widen.weight, block.widen.bias[:, None]], dim=1), dim=1)
    worth_U = taken * torch.linalg.vector_norm(block.narrow.weight, dim=0)
    keep = max(1, math.ceil(len(worth_U) * (1 - share)))
    return torch.sort(torch.topk(worth_U, keep).indices).values


def _rows(layer: nn.Linear, kept: Tensor) -> nn.Linear:
    """[U, D] → [kept, D]"""
    smaller = nn.Linear(layer.in_features, len(kept))
    smaller.weight, smaller.bias = nn.Parameter(layer.weight[kept]), nn.Parameter(layer.bias[kept])
    return smaller


def _columns(layer: nn.Linear, kept: Tensor) -> nn.Linear:
    """[D, U] → [D, kept]"""
    smaller = nn.Linear(len(kept), layer.out_features)
    smaller.weight, smaller.bias = nn.Parameter(layer.weight[:, kept]), nn.Parameter(layer.bias.clone())
    return smaller
