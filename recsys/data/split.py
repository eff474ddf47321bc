"""Which events are trained on, which validate and which test: pure functions on arrays of events.

Shapes: E events, U users (numbered from 0), N items. A user's events stand together, first those of earlier published
roles, then in time order.

Nothing here lets a later segment change an earlier one. An event is *fresh* if it is its user's first on that item.
Splits that count (`leave_last_out`, `users`, the carved validation) count fresh events only, so that a repeat never
moves a border, and `repeats` keeps an item in the segment where it was first seen.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

TRAIN, VALID, TEST = 0, 1, 2
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Events:
    """Sorted events. user: [E] numbers 0..U-1, ascending; item: [E]; time: [E] Unix seconds; role: [E] published segment;
    fresh: [E] whether it is the user's first event on the item (always, where repeats are kept)."""

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    rating: NDArray[np.float32]
    time: NDArray[np.int64]
    role: NDArray[np.int8]
    fresh: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> "Events":
        """Some events, by number or mask."""
        return Events(*(getattr(self, column.name)[rows] for column in fields(self)))


def fresh_events(user: NDArray[np.int32], item: NDArray[np.int32]) -> NDArray[np.bool_]:
    """[E] whether an event is the first of its user on its item; in the order given."""
    order, first = _grouped(user, item)
    fresh = np.zeros(len(user), bool)
    fresh[order[first]] = True
    return fresh


def fresh_counts(events: Events, users: int) -> tuple[Ints, Ints]:
    """[E] fresh events of the user up to and with this one, and [U] of the user in all."""
    totals = np.bincount(events.user[events.fresh], minlength=users)
    before = np.concatenate([[0], np.cumsum(totals)])[:-1]
    return np.cumsum(events.fresh) - before[events.user], totals


def by_time(events: Events, valid_time: int, test_time: int) -> NDArray[np.int8]:
    """[E] segments: validation begins at valid_time, test at test_time, for everybody."""
    return (events.time >= valid_time).astype(np.int8) + (events.time >= test_time)


def leave_last_out(events: Events, users: int) -> NDArray[np.int8]:
    """[E] segments: the last item tests, the last but one validates; users with fewer than 3 items only train."""
    count, totals = fresh_counts(events, users)
    total = totals[events.user]
    segment = (count >= total - 1).astype(np.int8) + (count >= total)
    return np.where(total < 3, TRAIN, segment).astype(np.int8)


def by_shown(events: Events, users: int, shown_fraction: float, held: NDArray[np.int8]) -> NDArray[np.int8]:
    """[E] segments of held-out users: the first `shown_fraction` of their items (at least one) is what the model is shown.

    held: [U] the segment that the rest of a user's events goes to; TRAIN for users who train.
    """
    count, totals = fresh_counts(events, users)
    shown = np.maximum(1, np.floor(totals * shown_fraction))
    return np.where(count > shown[events.user], held[events.user], TRAIN).astype(np.int8)


def by_item(events: Events, held: NDArray[np.int8]) -> NDArray[np.int8]:
    """[E] segments of cold items: all events on an item go to its segment. held: [N]."""
    return held[events.item]


def given(events: Events, users: int, valid_fraction: float) -> NDArray[np.int8]:
    """[E] published segments, with the last `valid_fraction` of each user's train items (rounded) carved for validation.

    One item at least stays to train on. valid_fraction: 0 where the publisher gave a validation set.
    """
    train = events.role == TRAIN
    count, _ = fresh_counts(events, users)
    totals = np.bincount(events.user[events.fresh & train], minlength=users)
    carved = np.minimum(np.floor(totals * valid_fraction + 0.5), np.maximum(totals - 1, 0))
    late = train & (count > (totals - carved)[events.user])
    return np.where(late, VALID, events.role).astype(np.int8)


def kept(events: Events, segment: NDArray[np.int8], repeats: str) -> NDArray[np.bool_]:
    """[E] which events stay under `repeats` (last, first or keep).

    last: of a user's events on an item, the last one within the segment that holds the first one.
    """
    if repeats == "keep":
        return np.ones(len(events), bool)
    if repeats == "first" or events.fresh.all():
        return events.fresh
    order, first = _grouped(events.user, events.item)
    group = np.cumsum(first) - 1
    same = segment[order] == segment[order[first]][group]
    following = np.append(same[1:] & (group[1:] == group[:-1]), False)
    keep = np.zeros(len(events), bool)
    keep[order[same & ~following]] = True
    return keep


def core_users(events: Events, alive: NDArray[np.bool_], users: int, core: int) -> NDArray[np.bool_]:
    """[U] users with at least `core` fresh events on items that are alive ([N])."""
    counted = events.fresh & alive[events.item]
    return np.bincount(events.user[counted], minlength=users) >= max(core, 1)


def held_out(uniform: NDArray[np.float64], valid_fraction: float, test_fraction: float) -> NDArray[np.int8]:
    """Segments for users or items by a number in [0, 1) drawn for each: the lowest test, the next validate."""
    return np.where(uniform < test_fraction, TEST, np.where(uniform < test_fraction + valid_fraction, VALID, TRAIN)).astype(
        np.int8
    )


def _grouped(user: NDArray[np.int32], item: NDArray[np.int32]) -> tuple[Ints, NDArray[np.bool_]]:
    """Event numbers ordered by (user, item), earlier ones first, and where each group begins."""
    if not len(user):
        return np.zeros(0, np.int64), np.zeros(0, bool)
    key = user.astype(np.int64) * (int(item.max()) + 1) + item
    order = np.argsort(key, kind="stable")
    return order, np.append(True, np.diff(key[order]) != 0)
