"""Two towers (Covington et al., RecSys 2016; Yi et al., RecSys 2019): items by id and attributes, users by history.

An id is left out of a step now and then (Volkovs et al., NeurIPS 2017), so that attributes learn to do without it: an item that
nobody trained on has no id of worth, and its vector is what its attributes say.

Shapes: R rows of items, T events to be told, N negatives, B users, L places, H heads, D dimensions, F features, E entries.
"""

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.config import ModelConfig
from recsys.data.attributes import Attributes
from recsys.data.seeds import seed_of
from recsys.models.base import Catalogue, padded_to_eight
from recsys.models.sequence import DEVIATION, LookedUp, SequenceModel, evaluating
from recsys.models.transformer import dropout

# Items whose vectors are made at once, where no gradients are.
AT_ONCE = 1 << 16


class TwoTower(SequenceModel):
    """score(u, i) = user tower(what u's items are) · item tower(what i is), or their cosine.

    What an item is: its id's row and the mean row of each column's categories, added up.
    """

    reads_attributes: ClassVar[bool] = True
    told: Tensor

    def __init__(self, config: ModelConfig, catalogue: Catalogue, seed: int) -> None:
        super().__init__(config, catalogue, seed)
        attributes = None if catalogue.attributes is None else catalogue.attributes.of(catalogue.item_counts > 0)
        self.described = None if attributes is None else Described(attributes, self._begun(attributes, seed))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "item tower"))
            self.item_tower = Tower(config.dim, config.width, config.dropout)
        told = np.zeros_like(self.listed) if attributes is None else attributes.told
        self.listed = self.listed | told
        self.register_buffer("told", torch.from_numpy(told), persistent=False)

    def made_encoder(self, config: ModelConfig) -> nn.Module:
        """The user tower."""
        return UserTower(config.dim, length=config.max_length, heads=config.heads, width=config.width, dropout=config.dropout)

    def look_up(self, item_T: Tensor, told_T: Tensor, negatives_N: Tensor) -> LookedUp:
        """Each item of the step goes through the tower once, wherever it stands; its id is there in all places or in none."""
        rows_R, place = torch.unique(torch.cat([item_T, told_T, negatives_N]), return_inverse=True)
        inputs_RD = self.inputs(rows_R)
        vectors_RD = self.directed(self.item_tower(inputs_RD))
        fed, told, negatives = place.split([len(item_T), len(told_T), len(negatives_N)])
        return LookedUp(F.embedding(fed, inputs_RD), F.embedding(told, vectors_RD), F.embedding(negatives, vectors_RD))

    def inputs(self, item_T: Tensor) -> Tensor:
        """[T, D] what items are: without the ids of those that nobody trained on, and in training of some drawn at random, if
        anything else is known of them."""
        kept_T = self.trained[item_T]
        if self.training and self.config.id_dropout:
            drawn_T = torch.rand(len(item_T), device=item_T.device) < self.config.id_dropout
            kept_T = kept_T & ~(drawn_T & self.told[item_T])
        ids_TD = F.embedding(item_T, self.item_table, sparse=not self.touches_all) * kept_T[:, None]
        return ids_TD if self.described is None else ids_TD + self.described(item_T)

    @torch.no_grad()
    def item_vectors(self) -> Tensor:
        """[N, D]; zero for an item without a train event of which nothing is known."""
        return padded_to_eight(self._of_all(lambda inputs: self.directed(self.item_tower(inputs))))

    @torch.no_grad()
    def item_inputs(self) -> Tensor:
        """[N, D] what the user tower is fed of each item."""
        return self._of_all(lambda inputs: inputs)

    def tables(self) -> dict[str, nn.Parameter]:
        """The items', and the features' where there are any."""
        return super().tables() | ({} if self.described is None else {"attribute": self.described.table})

    def _of_all(self, made: Callable[[Tensor], Tensor]) -> Tensor:
        listed = self._tensor(self.listed)
        with evaluating(self):
            parts = [made(self.inputs(rows)) for rows in torch.arange(len(listed), device=listed.device).split(AT_ONCE)]
        return torch.cat([torch.zeros(0, self.config.dim, device=listed.device), *parts]) * listed[:, None]

    def _begun(self, attributes: Attributes, seed: int) -> Tensor:
        """[F, D] rows to begin with: zero for a feature that no item has here, which nothing will ever be learnt of."""
        generator = torch.Generator().manual_seed(seed_of(seed, "attributes"))
        rows = torch.randn(len(attributes.names), self.config.dim, generator=generator) * DEVIATION
        learnt = np.zeros(len(rows), bool)
        learnt[attributes.feature] = True
        return rows * torch.from_numpy(learnt)[:, None]


class Described(nn.Module):
    """[R] items → [R, D] the sum over columns of the mean row of their categories."""

    offsets: Tensor
    feature: Tensor
    weight: Tensor

    def __init__(self, attributes: Attributes, rows_FD: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(rows_FD)
        for name in ("offsets", "feature", "weight"):
            self.register_buffer(name, torch.from_numpy(getattr(attributes, name)), persistent=False)

    def forward(self, item_R: Tensor) -> Tensor:
        """An item's entries lie one after the other from its offset on."""
        first_R = self.offsets[item_R]
        length_R = self.offsets[item_R + 1] - first_R
        start_R = length_R.cumsum(0) - length_R
        entry = torch.arange(int(length_R.sum()), device=item_R.device) + torch.repeat_interleave(first_R - start_R, length_R)
        return F.embedding_bag(
            self.feature[entry].long(), self.table, start_R, mode="sum", per_sample_weights=self.weight[entry]
        )


class Tower(nn.Module):
    """[…, D] → […, D]: what comes in, and what two layers add to it, which to begin with is nothing."""

    def __init__(self, dim: int, width: int, dropout: float) -> None:
        """width: of the inner layer, as a multiple of dim."""
        super().__init__()
        self.dropout = dropout
        self.norm, self.widen, self.narrow = nn.LayerNorm(dim), nn.Linear(dim, width * dim), nn.Linear(width * dim, dim)
        nn.init.zeros_(self.narrow.weight)
        nn.init.zeros_(self.narrow.bias)

    def forward(self, x: Tensor) -> Tensor:
        """A residual layer on normed input."""
        added = self.narrow(F.relu(self.widen(self.norm(x))))
        return x + dropout(added, self.dropout if self.training else 0)


class UserTower(nn.Module):
    """[B, L, D] what items are → [B, L, D]: at each place what is known of a user after it. Takes up to `length` places.

    Each head is a mean of all items so far, weighted by what they are and by how many events ago they came; its weights halve
    within a number of events that is learnt. No place sees a later one.
    """

    age: Tensor

    def __init__(self, dim: int, *, length: int, heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout, self.scale = dropout, dim**0.5
        # From looking at all events to looking at the last few.
        self.half_life = nn.Parameter(torch.logspace(1, 0, heads, base=max(2.0, float(length))).log())
        # No bias: weights that all grow alike change no mean, and it would have no gradient but rounding.
        self.gate = nn.Linear(dim, heads, bias=False)
        self.mix = nn.Linear(heads * dim, dim)
        self.tower, self.norm = Tower(dim, width, dropout), nn.LayerNorm(dim)
        place = torch.arange(length)
        self.register_buffer("age", (place[:, None] - place).float(), persistent=False)

    def forward(self, items_BLD: Tensor) -> Tensor:
        """Items' inputs, zeros for padding."""
        length = items_BLD.shape[1]
        x = dropout(items_BLD * self.scale, self.dropout if self.training else 0)
        weight_BHL1 = self.gate(x).sigmoid().transpose(1, 2)[..., None]
        age_LL = self.age[:length, :length]
        faded_HLL = torch.exp2(-age_LL.clamp(min=0) * torch.exp(-self.half_life)[:, None, None]) * (age_LL >= 0)
        pooled_BHLD = (faded_HLL @ (weight_BHL1 * x[:, None])) / (faded_HLL @ weight_BHL1 + 1e-6)
        normed: Tensor = self.norm(self.tower(self.mix(pooled_BHLD.transpose(1, 2).flatten(2))))
        return normed
