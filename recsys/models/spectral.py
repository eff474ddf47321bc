"""Spectral: what of a history lies in the leading directions of all histories, counts evened out (a truncated SVD).

Shapes: B users, N items, E events, D dimensions.
"""

from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.config import ModelConfig
from recsys.data.histories import Histories
from recsys.data.seeds import seed_of
from recsys.models.base import Catalogue, FoldsIn, Learns, padded_to_eight


class Spectral(nn.Module):
    """score(u, i) = (n_u + s)^-½ Σ_{j watched by u} (c_j + s)^-½ q_j · q_i (c_i + s)^p

    The columns of q are the D leading right singular vectors of the users × items matrix with (n_u + s)^-½ (c_i + s)^-½ where u
    watched i: n and c are counts of events, s and p settings. p = ½ is the ideal low-pass filter of GF-CF (Shen et al., CIKM
    2021), with s = 0; that counts want something added is from SVD-GCN (Peng et al., CIKM 2022). Every singular vector weighs
    the same, so what counts is the space they span: `recsys.training.subspace` finds it.

    A user is nothing but his history: there is no table of users.
    """

    learns: ClassVar[Learns] = "subspace"
    known_user: ClassVar[Literal["table", "history"]] = "history"
    fold_in: FoldsIn = "sum"
    trained: Tensor
    item_counts: Tensor

    def __init__(self, config: ModelConfig, catalogue: Catalogue, seed: int) -> None:
        super().__init__()
        self.config = config
        average = float(catalogue.item_counts.sum()) / max(catalogue.users, 1)
        self.smoothing = config.smoothing if config.smoothing is not None else max(average, 1.0)
        generator = torch.Generator().manual_seed(seed_of(seed, "items"))
        # Of about the length that a singular vector has, so that a warm start mixes new rows with old ones of their size.
        begun = torch.randn(catalogue.items, config.dim, generator=generator) / max(catalogue.items, 1) ** 0.5
        self.item_table = nn.Parameter(begun, requires_grad=False)
        counts = torch.from_numpy(catalogue.item_counts.astype(np.float32))
        self.register_buffer("item_counts", counts, persistent=False)
        self.register_buffer("trained", counts > 0, persistent=False)

    def evened(self, counts: Tensor) -> Tensor:
        """The weight of a row or column with so many events."""
        weight: Tensor = (counts.float() + self.smoothing) ** -0.5
        return weight

    def user_vectors(self, histories: Histories) -> Tensor:
        """[B, D] from all events given, each item once; zeros for a user without an event on a trained item."""
        known = self.trained.cpu().numpy()[histories.item]
        rows = np.repeat(np.arange(len(histories)), histories.lengths)[known]
        # Ascending, as serving sums them: the order of a history moves no rounding.
        pairs = np.unique(rows * np.int64(len(self.trained)) + histories.item[known])
        row, item = (torch.from_numpy(part).to(self.item_table.device) for part in np.divmod(pairs, len(self.trained)))
        counts = torch.bincount(row, minlength=len(histories))
        weight_E = self.evened(self.item_counts)[item]
        sums = F.embedding_bag(item, self.item_table, counts.cumsum(0) - counts, mode="sum", per_sample_weights=weight_E)
        return padded_to_eight(sums * self.evened(counts)[:, None])

    def item_vectors(self) -> Tensor:
        """[N, D]; zeros for an item without a train event."""
        weight_N = (self.item_counts + self.smoothing) ** self.config.popularity_power * self.trained
        return padded_to_eight(self.item_table * weight_N[:, None])

    def fold_in_parameters(self) -> dict[str, float]:
        """For `recsys.retrieval.sum_fold_in`: how an item counts in a history, by its vector as exported."""
        return {"smoothing": self.smoothing, "power": self.config.popularity_power + 0.5}

    def tables(self) -> dict[str, nn.Parameter]:
        """The items'."""
        return {"item": self.item_table}

    def row_tables(self) -> dict[str, nn.Parameter]:
        """The same; it takes no gradients."""
        return self.tables()
