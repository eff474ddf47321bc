"""Events as they come over HTTP: checked whole, then kept."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from recsys.retrieval.catalogue import Catalogue
from serve import problems, schemas
from serve.batching import Overloaded
from serve.events.event import LiveEvent, StoreError
from serve.events.feed import Feed
from serve.problems import Problem

NAMED = 10  # of the bad events of one body, those that an answer names
DAY = 86_400
"""Seconds by which a clock may be wrong: one event of a far year would be the newest for ever."""


async def keep(feed: Feed | None, value: Any, catalogues: Sequence[Catalogue]) -> dict[str, Any]:
    """Take one event, or with `events` several: `schemas.Kept` as plain data. Raises Problem where nothing was kept.

    catalogues: of all that is served; an item that none of them has is refused.
    """
    events = _events(value, catalogues)
    if feed is None:
        raise Problem("events_off", "Start it with events=auto, or with the address of a Redis.")
    try:
        new = await feed.append(events)
    except Overloaded as full:
        raise problems.overloaded(full.retry_after_s) from None
    except StoreError:
        detail = "Whether they were kept is not known: send them again, under the same ids. The service's log says why."
        raise Problem("no_events", detail, {"Retry-After": "1"}) from None
    return {"kept": sum(new), "repeated": len(new) - sum(new), "ids": [event.id for event in events]}


def _events(value: Any, catalogues: Sequence[Catalogue]) -> list[LiveEvent]:
    several = isinstance(value, dict) and "events" in value
    sent = problems.checked(schemas.NewEvents, value).events if several else [problems.checked(schemas.NewEvent, value)]
    unknown = [place for place, event in enumerate(sent) if all(items.number(event.item) is None for items in catalogues)]
    _refuse(unknown, several, "item", "is not in the catalogue")
    latest = int(time.time()) + DAY
    early = [place for place, event in enumerate(sent) if event.time is not None and event.time > latest]
    _refuse(early, several, "time", "is more than a day ahead: send Unix seconds, not milliseconds")
    return [_named(event) for event in sent]


def _refuse(places: Sequence[int], several: bool, field: str, what: str) -> None:
    """Raises Problem for the events in these places, if there are any."""
    where = [f"events[{place}].{field}" if several else field for place in places[:NAMED]]
    if where:
        raise problems.invalid([{"where": each, "what": f"{what}; nothing was kept"} for each in where])


def _named(sent: schemas.NewEvent) -> LiveEvent:
    when = int(time.time()) if sent.time is None else sent.time
    return LiveEvent(sent.id or uuid.uuid4().hex, sent.user, sent.item, sent.rating, sent.kind, when)
