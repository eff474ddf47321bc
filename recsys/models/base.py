"""What every model promises. Score of a user and an item = user vector · item vector."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.config import ModelConfig
from recsys.data.histories import Histories, Pairs
from recsys.models.owned import UserRanges

# Items up to which every trained one is a negative of every step, and how many negatives there are beyond.
ALL_UNTIL, OF_MANY = 20_000, 2048


@dataclass(frozen=True)
class Catalogue:
    """What a model must know of the data set before it sees an event.

    item_counts: [items] int64, train events of each item; mean_rating: over the train events.
    owned: users whose rows are this worker's; unset: all.
    """

    users: int
    items: int
    item_counts: NDArray[np.int64]
    mean_rating: float = 1.0
    owned: UserRanges | None = None

    @property
    def trained(self) -> int:
        """Items with a train event."""
        return int((self.item_counts > 0).sum())

    def log_chance(self) -> NDArray[np.float32]:
        """[N] log of how likely a negative by popularity, or a positive of a batch, is each item."""
        chance = np.maximum(self.item_counts, 1) / max(self.item_counts.sum(), 1)
        logarithm: NDArray[np.float32] = np.log(chance).astype(np.float32)
        return logarithm


def negatives_of(config: ModelConfig, trained: int) -> int:
    """How many negatives a step has, of so many items with a train event: as set; unset, all of a small catalogue."""
    if config.negatives is not None:
        return config.negatives
    return trained if trained <= ALL_UNTIL else OF_MANY


def padded_to_eight(vectors: Tensor) -> Tensor:
    """Zeros behind the dimensions, so that there is a multiple of 8 of them."""
    return F.pad(vectors, (0, -vectors.shape[1] % 8))


class Model(Protocol):
    """A trainable model (an nn.Module) that ends in dot products.

    One that can teach or be taught has, besides, `teacher` (`recsys.models.teacher.Teacher` or None) and `scored(batch)`.

    Shapes: B users, N items, D dimensions of an exported vector (a multiple of 8, biases folded in).
    """

    batch: ClassVar[type[Pairs] | type[Histories]]
    """What the training loop feeds `forward`: Pairs, or for Histories the Sequences it makes of them, in windows of the
    model's `max_length`."""

    known_user: ClassVar[Literal["table", "history"]]
    """Where a known user's vector comes from when served."""

    fold_in: ClassVar[Literal["ridge", "onnx"]]
    """How a history becomes a vector when served."""

    def forward(self, batch: Any) -> Tensor:
        """The loss of this worker's part of a step: summed over events, divided by the step's global count."""
        ...

    def user_vectors(self, histories: Histories) -> Tensor:
        """[B, D]; given only what the model may know."""
        ...

    def item_vectors(self) -> Tensor:
        """[N, D]"""
        ...

    def fold_in_parameters(self) -> dict[str, float]:
        """What `recsys.retrieval.fold_in.fold_in` needs to make this model's vectors from histories."""
        ...

    def tables(self) -> dict[str, nn.Parameter]:
        """Parameters with a row for each user ("user") or item ("item"): another dataset numbers these differently."""
        ...

    def row_tables(self) -> dict[str, nn.Parameter]:
        """Those of `tables` with sparse gradients, updated row by row: "user" (a row for each user of `catalogue.owned`, in its
        order) and "item" (replicated, touched rows exchanged). Every other parameter goes through DDP."""
        ...
