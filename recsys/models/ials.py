"""iALS: implicit-feedback matrix factorisation by alternating least squares (Hu, Koren & Volinsky, ICDM 2008).

Shapes: B users, U users of this worker, N items, D dimensions.
"""

from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from recsys.config import ModelConfig
from recsys.data.histories import Histories
from recsys.data.seeds import seed_of
from recsys.models.base import Catalogue, FoldsIn, Learns, padded_to_eight
from recsys.models.owned import RowOfUser, UserRanges

# Times 1/√dim: of the entries of a vector to begin with, as in Rendle et al., RecSys 2022.
DEVIATION = 0.1

# Times the density of the events, and 1 at most: α where none is set (docs/log.md). Of the four that the authors publish it is
# near two: .07 where they have .1 (ML20M), .03 for .02 (MSD), but 1 for .3 (ml-1m) and .05 for .007 (Pinterest).
UNOBSERVED = 20.0

# Over the events of a user on average: λ where none is set and ν is 1 (docs/log.md). Of the authors' settings it is near two:
# .002 for .003 (ML20M), .0025 for .002 (MSD), but .001 for .007 (ml-1m) and .006 for .02 (Pinterest).
PENALTY = 0.15


class IALS(nn.Module):
    """score(u, i) = x_u·y_i. With S the events, n how many of them a row has, and α, λ, ν settings, what is least at the end is

        Σ_S (x·y − 1)² + α Σ_u Σ_i (x·y)² + λ [Σ_u (n_u + αN)^ν |x_u|² + Σ_i (n_i + αU)^ν |y_i|²]

    with N items that have a train event, and U users (Rendle, Krichene, Zhang & Koren, "Revisiting the performance of iALS on
    item recommendation benchmarks", RecSys 2022). `recsys.training.alternating` solves for the items, then for the users.
    """

    learns: ClassVar[Learns] = "alternating"
    known_user: ClassVar[Literal["table", "history"]] = "table"
    fold_in: FoldsIn = "ridge"
    trained: Tensor
    item_ridge: Tensor

    def __init__(self, config: ModelConfig, catalogue: Catalogue, seed: int) -> None:
        super().__init__()
        self.config, self.trained_items = config, catalogue.trained
        self.weight = config.unobserved_weight or min(1.0, UNOBSERVED * catalogue.density)
        self.ridge = config.ridge or self._usual_ridge(catalogue)
        self.owned = UserRanges.of([(0, catalogue.users)]) if catalogue.owned is None else catalogue.owned
        self.row_of_user = RowOfUser(self.owned)
        self.user_table = nn.Parameter(self._initial_users(seed), requires_grad=False)
        self.item_table = nn.Parameter(self._initial(catalogue.items, seed_of(seed, "items")), requires_grad=False)
        counts = torch.from_numpy(catalogue.item_counts.astype(np.float32))
        self.register_buffer("trained", counts > 0, persistent=False)
        self.register_buffer("item_ridge", self._ridge(counts, catalogue.users), persistent=False)

    def user_ridge(self, counts: Tensor) -> Tensor:
        """[B] the factor of |x_u|², by how many events each user has."""
        return self._ridge(counts.float(), self.trained_items)

    def user_vectors(self, histories: Histories) -> Tensor:
        """[B, D] from the table, for the users of `histories`; D a multiple of 8. Zeros for a user without train events."""
        user = torch.from_numpy(histories.user).long().to(self.user_table.device)
        known = torch.from_numpy(histories.valid_from > 0).to(self.user_table.device)
        return padded_to_eight(self.user_table.detach()[self.row_of_user(user)] * known[:, None])

    def item_vectors(self) -> Tensor:
        """[N, D]; zeros for an item without a train event."""
        return padded_to_eight(self.item_table.detach() * self.trained[:, None])

    def fold_in_parameters(self) -> dict[str, float]:
        """For `recsys.retrieval.fold_in.fold_in`: exactly what a user's row is solved from."""
        config = self.config
        frequency = {"power": config.frequency_power, "unseen": self.weight * self.trained_items}
        return {"free": config.dim, "weight": self.weight, "ridge": self.ridge, **frequency}

    def tables(self) -> dict[str, nn.Parameter]:
        """Users' and items'."""
        return {"user": self.user_table, "item": self.item_table}

    def row_tables(self) -> dict[str, nn.Parameter]:
        """Both; nothing else is learnt, and neither by gradients."""
        return self.tables()

    def _ridge(self, counts: Tensor, others: int) -> Tensor:
        return self.ridge * (counts + self.weight * others) ** self.config.frequency_power

    def _usual_ridge(self, catalogue: Catalogue) -> float:
        """The same penalty for a user of average length, whatever ν is."""
        average = max(catalogue.item_counts.sum(), 1) / max(catalogue.users, 1)
        usual: float = (average + self.weight * catalogue.trained) ** (1 - self.config.frequency_power)
        return float(PENALTY / average * usual)

    def _initial_users(self, seed: int) -> Tensor:
        """Each range by a seed of its own, so that a user begins alike whoever owns him."""
        parts = [self._initial(last - first, seed_of(seed, "users", first)) for first, last in self.owned.ranges]
        return torch.cat(parts) if parts else self._initial(0, 0)

    def _initial(self, rows: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(rows, self.config.dim, generator=generator).mul_(DEVIATION * self.config.dim**-0.5)
