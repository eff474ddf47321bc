"""Another cut of the same histories: by user, the first part of each is shown and the rest scored."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from recsys.data.histories import Histories

SHOWN = 0.8
LEAST_EVENTS = 5  # fewer leave nothing to score


class Recut(NamedTuple):
    """histories: users with events enough, [0, test_from) shown, the rest test. too_few: users left out. trained: scored
    events that lay in the users' train segments, so that the item vectors have learnt from them."""

    histories: Histories
    too_few: int
    trained: int


def by_user(histories: Histories, *, trains: bool) -> Recut:
    """Show the first 80% of each history in time order, and score the last 20%.

    Events of the same time stay in their order. trains: whether the train segments of these users were trained on.
    """
    enough = histories.lengths >= LEAST_EVENTS
    kept = histories.take(enough)
    row = np.repeat(np.arange(len(kept)), kept.lengths)
    trained = np.arange(len(row)) < (kept.offsets[:-1] + kept.valid_from)[row]
    order = np.lexsort((kept.time, row))  # stable
    shown = np.maximum(1, np.floor(kept.lengths * SHOWN)).astype(np.int32)
    scored = np.arange(len(row)) >= (kept.offsets[:-1] + shown)[row]
    cut = replace(
        kept,
        item=kept.item[order],
        rating=kept.rating[order],
        time=kept.time[order],
        valid_from=shown,
        test_from=shown,
    )
    return Recut(cut, int((~enough).sum()), int((trained[order] & scored).sum()) if trains else 0)
