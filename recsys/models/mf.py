"""Matrix factorisation: a table of user vectors, a table of item vectors.

Shapes: B events of a step, U users, N items (in forward: negatives), D dimensions, W columns of a table.
"""

from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.config import ModelConfig
from recsys.data.histories import Histories, Pairs
from recsys.data.seeds import seed_of
from recsys.models import losses
from recsys.models.base import Catalogue, FoldsIn, Learns, padded_to_eight
from recsys.models.owned import RowOfUser, UserRanges


class MF(nn.Module):
    """score(u, i) = u·v, or their cosine, + item bias; with loss `mse` also + user bias + mean rating.

    A table's columns are the vector and, where biases are learnt, the bias as the last.
    """

    learns: ClassVar[Learns] = "gradients"
    batch: ClassVar[type[Pairs]] = Pairs
    known_user: ClassVar[Literal["table", "history"]] = "table"
    trained: Tensor
    log_q: Tensor

    def __init__(self, config: ModelConfig, catalogue: Catalogue, seed: int) -> None:
        super().__init__()
        self.config = config
        self.rates = config.loss == "mse"
        self.fold_in: FoldsIn = "ridge" if self.rates else "softmax"
        self.cosine = (config.cosine or config.loss == "ccl") and not self.rates
        # Of uniform negatives all are equally likely, and the correction would cancel.
        self.corrects = config.logq and config.negative_source != "uniform"
        self.mean_rating = float(catalogue.mean_rating)
        self.owned = UserRanges.of([(0, catalogue.users)]) if catalogue.owned is None else catalogue.owned
        self.row_of_user = RowOfUser(self.owned)
        self.user_table = nn.Parameter(self._initial_users(self.owned, seed))
        self.item_table = nn.Parameter(self._initial(catalogue.items, seed_of(seed, "items"), bias=True))
        if config.biases and not self.rates:
            self.item_table.data[:, -1] = self._popularity(catalogue.item_counts)
        events = max(int(catalogue.item_counts.sum()), 1)
        self.l2 = [config.l2 * min(1.0, (rows / events) ** 0.5) for rows in (catalogue.users, catalogue.items)]
        self.register_buffer("trained", torch.from_numpy(catalogue.item_counts > 0), persistent=False)
        self.register_buffer("log_q", torch.from_numpy(catalogue.log_chance()), persistent=False)

    def forward(self, batch: Pairs) -> Tensor:
        """The loss of a step's local events, summed and divided by the step's global count."""
        user_BW = F.embedding(self.row_of_user(batch.user), self.user_table, sparse=True)
        item_BW = F.embedding(batch.item, self.item_table, sparse=True)
        loss = self._rating_loss(user_BW, item_BW, batch) if self.rates else self._order_loss(user_BW, item_BW, batch)
        if self.config.l2:
            loss = loss + self.l2[0] * self._penalised(user_BW) + self.l2[1] * self._penalised(item_BW)
        return loss / (batch.total if batch.total is not None else len(batch))

    def user_vectors(self, histories: Histories) -> Tensor:
        """[B, D] from the table, for the users of `histories`; D a multiple of 8."""
        user = torch.from_numpy(histories.user).long().to(self.user_table.device)
        user_BW = self.user_table.detach()[self.row_of_user(user)]
        if not self.rates:
            return padded_to_eight(self._users(user_BW))
        # Nothing was learnt of a user without train events: he gets the mean rating and the items' biases.
        known = torch.from_numpy(histories.valid_from > 0).to(user_BW.device)
        user_BD, bias_B1 = self._split(user_BW * known[:, None])
        return padded_to_eight(torch.cat([user_BD, bias_B1 + self.mean_rating, torch.ones_like(bias_B1)], dim=1))

    def item_vectors(self) -> Tensor:
        """[N, D]; what was learnt of an item without a train event is zero."""
        item_NW = self.item_table.detach() * self.trained[:, None]
        if not self.rates:
            return padded_to_eight(self._items(item_NW))
        item_ND, bias_N1 = self._split(item_NW)
        return padded_to_eight(torch.cat([item_ND, torch.ones_like(bias_N1), bias_N1], dim=1))

    def fold_in_parameters(self) -> dict[str, float]:
        """For `recsys.retrieval.fold_in.fold_in`, or where an order is learnt `recsys.retrieval.softmax_fold_in`."""
        ridge, dim = self.config.fold_in_ridge, self.config.dim
        if self.rates:
            return {"free": dim + 1, "weight": 0.0, "ridge": ridge, "mean": self.mean_rating, "bias": 1.0}
        # The other losses have no temperature: these give their vectors scores of the usual spread.
        temperature = {"softmax": self.config.temperature, "ccl": 0.1}.get(self.config.loss, 1.0)
        more = {"free": dim, "unit": float(self.cosine), "bias": float(self.config.biases)}
        return {"temperature": temperature, "ridge": ridge} | more

    def tables(self) -> dict[str, nn.Parameter]:
        """Users' and items'."""
        return {"user": self.user_table, "item": self.item_table}

    def row_tables(self) -> dict[str, nn.Parameter]:
        """Both; nothing else is learnt."""
        return self.tables()

    def _order_loss(self, user_BW: Tensor, item_BW: Tensor, batch: Pairs) -> Tensor:
        negative_NW = F.embedding(batch.negatives, self.item_table, sparse=True)
        item_BD, bias_B1 = self._split(item_BW)
        negative_ND, bias_N1 = self._split(negative_NW)
        user, item, negatives = (losses.unit(rows) if self.cosine else rows for rows in (user_BW, item_BD, negative_ND))
        hits = losses.accidental_hits(batch.item, batch.negatives)
        biases = (bias_B1.squeeze(1), bias_N1.squeeze(1)) if self.config.biases else None
        if self.config.loss == "bpr":
            return losses.bpr(user, item, negatives, hits, biases=biases)
        if self.config.loss == "ccl":
            margin, weight = self.config.margin, self.config.negative_weight
            return losses.ccl(user, item, negatives, hits, margin=margin, weight=weight, biases=biases)
        log_q = (self.log_q[batch.item], self.log_q[batch.negatives]) if self.corrects else None
        temperature = self.config.temperature
        return losses.sampled_softmax(user, item, negatives, hits, temperature=temperature, biases=biases, log_q=log_q)

    def _rating_loss(self, user_BW: Tensor, item_BW: Tensor, batch: Pairs) -> Tensor:
        user_BD, user_bias_B1 = self._split(user_BW)
        item_BD, item_bias_B1 = self._split(item_BW)
        biases_B = (user_bias_B1 + item_bias_B1).squeeze(1)
        return losses.squared_error((user_BD * item_BD).sum(1) + biases_B + self.mean_rating, batch.rating)

    def _penalised(self, rows: Tensor) -> Tensor:
        """Σ of squares; an item's bias in a model of order is free, as it says how often the item is watched."""
        return (rows if self.rates else rows[:, : self.config.dim]).square().sum()

    def _users(self, rows: Tensor) -> Tensor:
        """[u, 1]: what is multiplied with [v, item bias]."""
        rows = losses.unit(rows) if self.cosine else rows
        return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1) if self.config.biases else rows

    def _items(self, rows: Tensor) -> Tensor:
        """[v, item bias]"""
        if not self.cosine:
            return rows
        vectors, bias = self._split(rows)
        directions = losses.unit(vectors)
        return torch.cat([directions, bias], dim=1) if self.config.biases else directions

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors and their biases as a column, zero where none are learnt."""
        if not self.config.biases:
            return rows, rows.new_zeros(len(rows), 1)
        return rows[:, : self.config.dim], rows[:, self.config.dim :]

    def _popularity(self, item_counts: NDArray[np.int64]) -> Tensor:
        """[N] biases to begin with: what uniform negatives would teach after many steps, log of an item's events."""
        share = torch.from_numpy(np.maximum(item_counts, 1) / max(item_counts.mean(), 1e-9)).float()
        # A cosine has no room for them under ccl: there they begin at zero.
        return share.log() * {"softmax": self.config.temperature, "ccl": 0.0}.get(self.config.loss, 1.0)

    def _initial_users(self, owned: UserRanges, seed: int) -> Tensor:
        """Each range by a seed of its own, so that a user begins alike whoever owns him."""
        parts = [self._initial(last - first, seed_of(seed, "users", first), bias=self.rates) for first, last in owned.ranges]
        return torch.cat(parts) if parts else self._initial(0, 0, bias=self.rates)

    def _initial(self, rows: int, seed: int, *, bias: bool) -> Tensor:
        # Length 1 where only the direction counts, so that a step turns a vector by about the learning rate.
        scale = self.config.dim**-0.5 if self.cosine else 0.1
        vectors = torch.randn(rows, self.config.dim, generator=torch.Generator().manual_seed(seed)).mul_(scale)
        return F.pad(vectors, (0, 1)) if bias and self.config.biases else vectors
