"""What every model promises. Score of a user and an item = user vector · item vector."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from recsys.data.histories import Histories, Pairs
from recsys.models.owned import UserRanges


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


class Model(Protocol):
    """A trainable model (an nn.Module) that ends in dot products.

    Shapes: B users, N items, D dimensions of an exported vector (a multiple of 8, biases folded in).
    """

    batch: ClassVar[type[Pairs] | type[Histories]]
    """What the training loop feeds `forward`."""

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

    def row_tables(self) -> dict[str, nn.Parameter]:
        """Tables with sparse gradients, updated row by row: "user" (a row for each user of `catalogue.owned`, in its
        order) and "item" (replicated, touched rows exchanged). Every other parameter goes through DDP."""
        ...
