"""From a history to a vector: by the one way of a bundle's model, or part by part where it is a blend of several.

Shapes: E events of a history, N items, L learnt dimensions, P of them of a part.
"""

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recsys.bundle.manifest import FoldInPart
from recsys.bundle.read import Bundle
from recsys.data import schema
from recsys.retrieval.encoder import Encoder
from recsys.retrieval.filters import Items, contains
from recsys.retrieval.fold_in import fold_in
from recsys.retrieval.softmax_fold_in import SoftmaxFoldIn
from recsys.retrieval.sum_fold_in import SumFoldIn

Floats = NDArray[np.float32]


class History:
    """Events in order, in the forms that models want them."""

    def __init__(self, bundle: Bundle, items: Items, ratings: Floats) -> None:
        """items, ratings: [E], oldest first."""
        self._bundle, self._items, self._ratings = bundle, items, ratings

    @cached_property
    def in_order(self) -> Items:
        """As trained: where the dataset keeps no repeats, an item that comes again moves to its last place."""
        last = _last_of_each(self._items)
        return self._items[np.sort(last)] if self._bundle.manifest.exclude_seen else self._items

    @cached_property
    def as_set(self) -> tuple[Items, Floats]:
        """Each item that the index holds once, with its last rating, ascending: order cannot move a rounding."""
        assert self._bundle.indexed is not None
        last = _last_of_each(self._items)
        items, ratings = self._items[last], self._ratings[last]
        usable = contains(self._bundle.indexed, items)
        return items[usable], ratings[usable]


class Part(NamedTuple):
    """Of a vector the dimensions `dims`. known: where a known user's come from, the table or his history."""

    dims: slice
    known: str
    weight: np.float32
    fold: Callable[[History], Floats | None]

    def vector(self, history: History) -> Floats | None:
        """[P] times the weight; None where the history says nothing."""
        found = self.fold(history)
        return None if found is None else found if self.weight == 1 else found * self.weight

    @property
    def nothing(self) -> Floats:
        """[P]"""
        return np.zeros(self.dims.stop - self.dims.start, np.float32)


def parts_of(bundle: Bundle) -> list[Part]:
    """Of a blend its parts, of another model itself; none without vectors. Raises BundleError where an encoder does not fit."""
    told, manifest = bundle.manifest.fold_in, bundle.manifest
    if told.kind == "none":
        return []
    if told.kind != "parts":
        return [Part(slice(0, manifest.learnt), manifest.known_user, np.float32(1), _fold(bundle, manifest.whole_part))]
    return [Part(slice(p.first, p.last), p.known, np.float32(p.weight), _fold(bundle, p)) for p in told.parts]


def _fold(bundle: Bundle, part: FoldInPart) -> Callable[[History], Floats | None]:
    dims, parameters = slice(part.first, part.last), part.parameters
    if part.kind == "onnx":
        encoder = Encoder(bundle)
        return lambda history: encoder(history.in_order)
    vectors, indexed = bundle.learnt_vectors[:, dims], bundle.indexed
    assert indexed is not None
    if part.kind == "softmax":
        return _of_set(SoftmaxFoldIn(vectors, indexed, parameters))
    if part.kind == "sum":
        return _of_set(SumFoldIn(vectors, bundle.items.column(schema.COUNT).to_numpy(), parameters))
    assert bundle.gram is not None
    gram = bundle.gram[dims, dims]

    def solved(history: History) -> Floats | None:
        items, ratings = history.as_set
        return fold_in(vectors, np.array([0, len(items)]), items, ratings, gram, parameters)[0] if len(items) else None

    return solved


def _of_set(make: Callable[[Items], Floats]) -> Callable[[History], Floats | None]:
    """Where neither ratings count nor their order."""
    return lambda history: make(history.as_set[0]) if len(history.as_set[0]) else None


def _last_of_each(items: Items) -> NDArray[np.intp]:
    """Where each item is for the last time, by ascending item."""
    from_end: NDArray[np.intp] = np.unique(items[::-1], return_index=True)[1]
    return len(items) - 1 - from_end
