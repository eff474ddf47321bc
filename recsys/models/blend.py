"""Several finished models as one: their scores, weighed and added up, are one dot product of vectors side by side.

Shapes: B users, N items, D dimensions of all parts together.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recsys.data.histories import Histories
from recsys.models.base import listed_items


class Part(NamedTuple):
    """How a part folds in, and where it stands: dimensions [first, last), of users times weight. known: `Model.known_user`."""

    kind: str
    parameters: dict[str, float]
    first: int
    last: int
    weight: float
    known: str


class Blend(nn.Module):
    """score(u, i) = Σ weight · score of a part. Nothing is learnt here but the weights, which were chosen on validation."""

    known_user: ClassVar[Literal["table", "history"]] = "table"
    fold_in: ClassVar[str] = "parts"

    def __init__(self, parts: Sequence[Any], weights: Sequence[float], item_counts: NDArray[np.int64]) -> None:
        """item_counts: [N] train events."""
        super().__init__()
        self.held = nn.ModuleList(parts)
        self.parts, self.weights = list[Any](parts), tuple(weights)
        self.listed: NDArray[np.bool_] = np.all([listed_items(part, item_counts) for part in parts], axis=0)

    def item_vectors(self) -> Tensor:
        """[N, D]"""
        return torch.cat([part.item_vectors().float() for part in self.parts], dim=1)

    def user_vectors(self, histories: Histories) -> Tensor:
        """[B, D], each part's times its weight."""
        return self.side_by_side([part.user_vectors for part in self.parts], histories)

    def table_vectors(self, histories: Histories) -> Tensor:
        """[B, D] of the parts that keep a table of users; zeros for those that know users by their histories."""
        makers = [part.user_vectors if part.known_user == "table" else _nothing(part) for part in self.parts]
        return self.side_by_side(makers, histories)

    def side_by_side(self, makers: Sequence[Callable[[Histories], Tensor]], histories: Histories) -> Tensor:
        """[B, D] of what makes each part's user vectors."""
        # What is folded in comes from NumPy.
        device = next((parameter.device for parameter in self.held.parameters()), torch.device("cpu"))
        vectors = [make(histories).float().to(device) * weight for make, weight in zip(makers, self.weights, strict=True)]
        return torch.cat(vectors, dim=1)

    def folds(self) -> list[Part]:
        """How a history becomes a vector: part by part."""
        ends = np.cumsum([part.item_vectors().shape[1] for part in self.parts]).tolist()
        return [
            Part(part.fold_in, parameters(part), first, last, weight, part.known_user)
            for part, first, last, weight in zip(self.parts, [0, *ends], ends, self.weights, strict=False)
        ]


def encoder_of(parts: Sequence[Any]) -> Any:
    """The part that has an encoder, or None."""
    return next((part for part in parts if part.fold_in == "onnx"), None)


def parameters(model: Any) -> dict[str, float]:
    """What folding in needs of a model, an encoder's window included."""
    told: dict[str, float] = model.fold_in_parameters()
    return told | {"max_length": model.max_length} if model.fold_in == "onnx" else told


def _nothing(part: Any) -> Callable[[Histories], Tensor]:
    width = part.item_vectors().shape[1]
    return lambda histories: torch.zeros(len(histories), width)
