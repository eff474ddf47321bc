"""A vector for a history that is a weighted sum of its items' vectors. NumPy only.

Shapes: N items, D dimensions.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class SumFoldIn:
    """(n + s)^-½ Σ (c_i + s)^-power v_i over the n items of a history, c_i being the events of item i."""

    def __init__(self, item_vectors: Floats, item_counts: NDArray[np.integer], parameters: Mapping[str, float]) -> None:
        """item_vectors: [N, D] as exported; item_counts: [N]; parameters: smoothing (s) and power."""
        self._vectors, self._smoothing = item_vectors, parameters["smoothing"]
        counts = np.asarray(item_counts, np.float64)
        self._weights = ((counts + self._smoothing) ** -parameters["power"]).astype(np.float32)

    def __call__(self, items: NDArray[np.integer]) -> Floats:
        """[D] for the items of a history, each once and with a train event."""
        items = np.sort(items)  # the order of a history must not move a rounding
        vector: Floats = (self._weights[items] @ self._vectors[items]) * np.float32((len(items) + self._smoothing) ** -0.5)
        return vector
