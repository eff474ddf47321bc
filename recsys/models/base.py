"""What every model promises. Score of a user and an item = user vector · item vector."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.config import ModelConfig
from recsys.data.attributes import Attributes
from recsys.data.histories import Histories, Pairs
from recsys.models.owned import UserRanges

# Items up to which every trained one is a negative of every step, and how many negatives there are beyond.
ALL_UNTIL, OF_MANY = 20_000, 2048


Learns = Literal["gradients", "alternating", "subspace", "sampling"]
FoldsIn = Literal["ridge", "softmax", "sum", "onnx"]


@dataclass(frozen=True)
class Catalogue:
    """What a model must know of the data set before it sees an event.

    item_counts: [items] int64, train events of each item; mean_rating: over the train events.
    owned: users whose rows are this worker's; unset: all. attributes: what is known of the items, for models that look at it.
    """

    users: int
    items: int
    item_counts: NDArray[np.int64]
    mean_rating: float = 1.0
    owned: UserRanges | None = None
    attributes: Attributes | None = None

    @property
    def trained(self) -> int:
        """Items with a train event."""
        return int((self.item_counts > 0).sum())

    @property
    def density(self) -> float:
        """Train events over all pairs of a user and an item with a train event."""
        return float(self.item_counts.sum()) / max(self.users * self.trained, 1)

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


def listed_items(model: Any, item_counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[N] items that a model's lists are made of and an index holds: what it says itself, else those with a train event.

    item_counts: [N] train events.
    """
    trained: NDArray[np.bool_] = item_counts > 0
    return getattr(model, "listed", trained)


def padded_to_eight(vectors: Tensor) -> Tensor:
    """Zeros behind the dimensions, so that there is a multiple of 8 of them."""
    return F.pad(vectors, (0, -vectors.shape[1] % 8))


class Model(Protocol):
    """A trainable model (an nn.Module) that ends in dot products.

    One that can teach or be taught has, besides, `teacher` (`recsys.models.teacher.Teacher` or None) and `scored(batch)`.

    Shapes: B users, N items, D dimensions of an exported vector (a multiple of 8, biases folded in).
    """

    learns: ClassVar[Learns]
    """By gradients of `forward` in steps of a batch; or by passes over all events (`training.passes`): least squares, users and
    items in turn; towards singular vectors; draws of users and items in turn. The latter three are fed with no batch, and their
    parameters take no gradients."""

    batch: ClassVar[type[Pairs] | type[Histories]]
    """What the training loop feeds `forward`: Pairs, or for Histories the Sequences it makes of them, in windows of the
    model's `max_length`."""

    known_user: ClassVar[Literal["table", "history"]]
    """Where a known user's vector comes from when served."""

    reads_attributes: ClassVar[bool]
    """Whether it needs `catalogue.attributes`; a model that does not say so does not."""

    listed: NDArray[np.bool_]
    """[N] items that have a vector, and may be recommended. A model may leave it out that knows items by their events alone:
    then those with a train event are (`listed_items`)."""

    fold_in: FoldsIn
    """How a history becomes a vector when served: `recsys.retrieval.fold_in`, `.softmax_fold_in`, `.sum_fold_in` or
    `.encoder`."""

    def forward(self, batch: Any) -> Tensor:
        """The loss of this worker's part of a step: summed over events, divided by the step's global count."""
        ...

    def user_vectors(self, histories: Histories) -> Tensor:
        """[B, D]; given only what the model may know."""
        ...

    def item_vectors(self) -> Tensor:
        """[N, D]"""
        ...

    def served(self) -> nn.Module:
        """Only with fold_in = "onnx": [1, L, I] one history's inputs, oldest first → [1, D], as `user_vectors` ends. It is fed
        with rows of `item_vectors()`, or where a model has it, of `item_inputs()`: [N, I]."""
        ...

    def fold_in_parameters(self) -> dict[str, float]:
        """What the former two need to make this model's vectors from histories."""
        ...

    def tables(self) -> dict[str, nn.Parameter]:
        """Parameters with a row for each user ("user"), item ("item") or feature ("attribute", as `Attributes.names`): another
        dataset numbers these differently."""
        ...

    def row_tables(self) -> dict[str, nn.Parameter]:
        """Those of `tables` with sparse gradients, updated row by row: "user" (a row for each user of `catalogue.owned`, in its
        order) and "item" (replicated, touched rows exchanged). Every other parameter goes through DDP."""
        ...
