"""Measures of a ranking and of predicted ratings: pure functions.

Shapes: B users, k places of a list, E held-out events. `relevant_BK` says which places of a user's list hold a held-out
item; `held_B` is how many held-out items he has, in the list or not.
"""

import torch
from torch import Tensor


def hr(relevant_BK: Tensor, held_B: Tensor) -> Tensor:
    """[B] hit rate: 1 if any held-out item is in the list."""
    return relevant_BK.any(1).double()


def recall(relevant_BK: Tensor, held_B: Tensor) -> Tensor:
    """[B] share of a user's held-out items that are in the list."""
    return relevant_BK.sum(1).double() / held_B.clamp(min=1)


def ndcg(relevant_BK: Tensor, held_B: Tensor) -> Tensor:
    """[B] discounted gain, as a share of what the best possible list of this length would gain.

    Järvelin & Kekäläinen 2002, with gain 1 for a held-out item and discount 1 / log2(place + 1).
    """
    discount_K = 1 / torch.arange(2, relevant_BK.shape[1] + 2, dtype=torch.float64, device=relevant_BK.device).log2()
    best_K = discount_K.cumsum(0)
    ideal_B = best_K[held_B.clamp(1, len(best_K)) - 1]
    return (relevant_BK * discount_K).sum(1) / ideal_B


def mrr(relevant_BK: Tensor, held_B: Tensor) -> Tensor:
    """[B] 1 / place of the first held-out item in the list, places counted from 1; 0 if there is none."""
    place_K = torch.arange(1, relevant_BK.shape[1] + 1, dtype=torch.float64, device=relevant_BK.device)
    return (relevant_BK / place_K).amax(1)


RANKING = {"hr": hr, "recall": recall, "ndcg": ndcg, "mrr": mrr}


def coverage(recommended_N: Tensor, eligible: int) -> float:
    """Share of the eligible items that are in anybody's list. recommended_N: bool, one an item."""
    return float(recommended_N.sum()) / max(eligible, 1)


def rmse(squared_error: float, events: int) -> float:
    """Root of the mean squared error, from the sum over events."""
    return float((squared_error / max(events, 1)) ** 0.5)


def mae(absolute_error: float, events: int) -> float:
    """Mean absolute error, from the sum over events."""
    return absolute_error / max(events, 1)
