"""Bayesian matrix factorisation of ratings (Salakhutdinov & Mnih, ICML 2008), with who rated what as side information.

Shapes: B users, R rows of a table, N items, M chains, D dimensions, W = D + 1: a vector and its bias.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.config import ModelConfig
from recsys.data.histories import Histories
from recsys.data.seeds import seed_of
from recsys.models.base import Catalogue, FoldsIn, Learns, padded_to_eight
from recsys.models.owned import RowOfUser, UserRanges

# Of the vectors to begin with.
DEVIATION = 0.1


class BPMF(nn.Module):
    """score(u, i) = x_u·y_i + user bias + item bias + mean rating, of rows that are means over draws from their posterior.

    A row is drawn around what its neighbours say: a user's around m + Σ_i z_i / √n over the n items he rated, an item's around
    m' + Σ_u w_u / √n' over those who rated it (the implicit feedback of SVD++, Koren, KDD 2008, on both sides, as a prior:
    Simm et al., "Macau", 2017). How far rows are from that, and ratings from scores, is drawn as well: no penalty to tune.
    `recsys.training.sampling` draws, in chains that know nothing of one another; scores are their mean, which the vectors
    side by side serve. A chain's columns of a table are the latest draw, the mean of its draws, the row's z or w.
    """

    learns: ClassVar[Learns] = "sampling"
    known_user: ClassVar[Literal["table", "history"]] = "table"
    fold_in: FoldsIn = "ridge"
    rates: ClassVar[bool] = True
    item_counts: Tensor
    ridge: Tensor

    def __init__(self, config: ModelConfig, catalogue: Catalogue, seed: int) -> None:
        super().__init__()
        self.config, self.mean_rating = config, float(catalogue.mean_rating)
        self.owned = UserRanges.of([(0, catalogue.users)]) if catalogue.owned is None else catalogue.owned
        self.row_of_user = RowOfUser(self.owned)
        self.user_table = nn.Parameter(self._initial_users(seed), requires_grad=False)
        self.item_table = nn.Parameter(self._initial(catalogue.items, seed_of(seed, "items")), requires_grad=False)
        self.register_buffer("item_counts", torch.tensor(catalogue.item_counts), persistent=False)
        # What holds a folded-in vector near the average user, by the latest draws.
        self.register_buffer("ridge", torch.tensor(1.0))

    def user_vectors(self, histories: Histories) -> Tensor:
        """[B, D'] for the users of `histories`; D' a multiple of 8. The average user where there are no train events."""
        user = torch.from_numpy(histories.user).long().to(self.user_table.device)
        known = torch.from_numpy(histories.valid_from > 0).to(user.device)
        vector, bias = self._means(self.user_table[self.row_of_user(user)] * known[:, None])
        return padded_to_eight(torch.cat([vector, bias + self.mean_rating, torch.ones_like(bias)], dim=1))

    def item_vectors(self) -> Tensor:
        """[N, D']; what was learnt of an item without a train event is zero."""
        vector, bias = self._means(self.item_table * (self.item_counts > 0)[:, None])
        return padded_to_eight(torch.cat([vector / self.config.chains, torch.ones_like(bias), bias], dim=1))

    def fold_in_parameters(self) -> dict[str, float]:
        """For `recsys.retrieval.fold_in.fold_in`. A user's vectors of all chains vary together, hence the smaller ridge."""
        config, ridge = self.config, float(self.ridge) / self.config.chains
        return {"free": config.chains * config.dim + 1, "weight": 0.0, "ridge": ridge, "mean": self.mean_rating, "bias": 1.0}

    def tables(self) -> dict[str, nn.Parameter]:
        """Users' and items'."""
        return {"user": self.user_table, "item": self.item_table}

    def row_tables(self) -> dict[str, nn.Parameter]:
        """Both; nothing else is learnt, and neither by gradients."""
        return self.tables()

    def _means(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """[R, M · D] vectors, and [R, 1] the mean of the chains' biases."""
        mean_RMW = rows.detach().unflatten(1, (self.config.chains, 3, -1))[:, :, 1]
        return mean_RMW[:, :, :-1].flatten(1), mean_RMW[:, :, -1].mean(1, keepdim=True)

    def _initial_users(self, seed: int) -> Tensor:
        """Each range by a seed of its own, so that a user begins alike whoever owns him."""
        parts = [self._initial(last - first, seed_of(seed, "users", first)) for first, last in self.owned.ranges]
        return torch.cat(parts) if parts else self._initial(0, 0)

    def _initial(self, rows: int, seed: int) -> Tensor:
        """[R, M · 3 · W]"""
        chains, dim = self.config.chains, self.config.dim
        vectors = torch.randn(rows, chains, 1, dim, generator=torch.Generator().manual_seed(seed)) * DEVIATION
        draw = F.pad(vectors, (0, 1))
        return torch.cat([draw, draw, torch.zeros_like(draw)], dim=2).flatten(1)
