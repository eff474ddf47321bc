"""A vector for a history: the closed-form answer to "which user would have watched this?". NumPy only.

Shapes: B histories (compressed rows), E events of all of them, N items, D dimensions, F of them free.
"""

import itertools
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

AT_ONCE = 1 << 16  # vectors that are multiplied together: ten million in double precision are 5 GB


def gram_of(item_vectors: Floats, items: NDArray[np.integer]) -> NDArray[np.float64]:
    """G = VᵀV over the vectors of `items` (those with a train event). Returns [D, D]."""
    gram = np.zeros((item_vectors.shape[1],) * 2)
    for first in range(0, len(items), AT_ONCE):
        vectors = item_vectors[items[first : first + AT_ONCE]].astype(np.float64)
        gram += vectors.T @ vectors
    return gram


def fold_in(
    item_vectors: Floats,
    offsets: NDArray[np.int64],
    items: NDArray[np.integer],
    ratings: Floats,
    gram: NDArray[np.float64],
    parameters: Mapping[str, float],
) -> Floats:
    """The user vectors of B histories, to be multiplied with `item_vectors` like any user's.

    item_vectors: [N, D] as exported; offsets: [B + 1] into items [E] and ratings [E]; gram: [D, D] of `gram_of`.
    parameters, as a model's `fold_in_parameters()` gives them:
      free    leading dimensions that are solved for; the others keep the average user's value
      weight  of the Gram term: how much every item not in the history counts as a miss (Hu, Koren & Volinsky 2008)
      ridge   pulls towards the average user
      power, unseen  where given, the ridge is times (E + unseen)^power for a history of E events (`recsys.models.ials`)
      mean    only for models of ratings: the average user's last free dimension; his rating is taken off those given
      bias    1 if item vectors hold a bias in the dimension after the free ones: every user's value there is 1
      unit    1 if vectors are compared by cosine: the free dimensions get length 1
    Returns [B, D] float32: q₀ + u, where q₀ is the average user, u = (weight·G + VᵀV + ridge·I)⁻¹ Vᵀt over the free
    dimensions of the history's V, and t is 1, or with `mean` the rating less q₀·v. A history without events gets q₀.
    """
    free, dims = int(parameters["free"]), item_vectors.shape[1]
    average = _average_user(dims, free, parameters)
    weighted, unit = parameters["weight"] * gram[:free, :free], np.eye(free)
    users = np.tile(average, (len(offsets) - 1, 1))
    for row, (first, last) in enumerate(itertools.pairwise(offsets)):
        if first == last:
            continue
        vectors = item_vectors[items[first:last]].astype(np.float64)
        targets = ratings[first:last] - vectors @ average if "mean" in parameters else np.ones(len(vectors))
        watched = vectors[:, :free]
        ridge = parameters["ridge"] * (len(vectors) + parameters.get("unseen", 0.0)) ** parameters.get("power", 0.0)
        users[row, :free] += np.linalg.solve(weighted + ridge * unit + watched.T @ watched, watched.T @ targets)
    if parameters.get("unit"):
        users[:, :free] /= np.maximum(np.linalg.norm(users[:, :free], axis=1, keepdims=True), 1e-12)
    return users.astype(np.float32)


def _average_user(dims: int, free: int, parameters: Mapping[str, float]) -> NDArray[np.float64]:
    """[D]: zero but for the mean rating and the factor of the items' biases."""
    average = np.zeros(dims)
    if "mean" in parameters:
        average[free - 1] = parameters["mean"]
    if parameters.get("bias"):
        average[free] = 1.0
    return average
