"""Vectors in soft clusters, as cosine models learn them."""

from collections.abc import Sequence

import numpy as np

CLUSTERS = 50


def clustered(rng: np.random.Generator, counts: Sequence[int], dim: int) -> list[np.ndarray]:
    """[count, dim] of length 1 for each count, round the same centres."""
    centres = rng.standard_normal((CLUSTERS, dim))
    return [unit(centres[rng.integers(0, CLUSTERS, n)] + rng.standard_normal((n, dim))) for n in counts]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Each row of length 1."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
