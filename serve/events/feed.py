"""Between the service and its store of events: writes of many callers in one transaction, reads for a batch, and what happens
when the store is away.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

from recsys.bundle import store
from recsys.errors import ConfigError
from recsys.retrieval.catalogue import Catalogue
from recsys.retrieval.requests import Event, Request
from serve.args import MAX_EVENT_BODIES
from serve.batching import Batcher
from serve.events.event import EventStore, LiveEvent, StoreError
from serve.events.sqlite import SqliteEvents

log = logging.getLogger("serve")

FILE = "events.sqlite"
URL = "RECSYS_REDIS_URL"
MOST_AT_ONCE = 64
MOST_QUEUED = MAX_EVENT_BODIES - MOST_AT_ONCE
"""Bodies, of up to a thousand events each, that are one transaction, and that may wait."""
REST_S = 1.0
"""After a failure the store is not asked for so long, or every request would wait for it."""
ItemsFor = Callable[[str | None], Catalogue]

AWAY = "events since the bundle cannot be read at the moment"


def open_store(told: str, bundles: Path, name: str | None = None) -> EventStore | None:
    """`auto`: a file beside the versions of the bundle that is served; `none`; `redis`: where $RECSYS_REDIS_URL says; an
    address; or a file's path. bundles, name: as the service has them.

    Raises ConfigError where it is none of these, or the Redis loses what it has acknowledged, BundleError for no bundle.
    """
    if told == "none":
        return None
    if told != "auto" and not is_address(told):
        if "://" in told:
            raise ConfigError(
                f"events: {told}: give a file's path, or an address that begins with redis://, rediss:// or unix://."
            )
        if not Path(told).resolve().parent.is_dir():
            raise ConfigError(
                f"events: {told} cannot be made: no folder {Path(told).resolve().parent}. Make it, or give another."
            )
        return SqliteEvents(Path(told))
    folder = store.resolve(bundles, name).parent
    return SqliteEvents(folder / FILE) if told == "auto" else open_redis(told, folder.name)


def is_address(told: str) -> bool:
    """Whether a Redis is meant."""
    return told == "redis" or told.startswith(("redis://", "rediss://", "unix://"))


def open_redis(told: str, name: str) -> EventStore:
    """The events of one name's bundles in a Redis. Raises ConfigError."""
    try:
        from serve.events.redis import RedisEvents
    except ImportError:
        raise ConfigError("events: Redis needs a package more: pip install 'recsys-cluster[redis]'.") from None
    url = os.environ.get(URL, "") if told == "redis" else told
    if not url:
        raise ConfigError(f"events=redis: set {URL} to its address, such as redis://host:6379/0, where replicas run.")
    return RedisEvents(url, name)


class Feed:
    """Takes events, and adds those of the users who ask to what they ask with."""

    def __init__(self, kept_in: EventStore) -> None:
        self._store, self._not_before = kept_in, 0.0
        self._writer: Batcher[Sequence[LiveEvent], list[bool] | StoreError] = Batcher(
            self._append, max_batch=MOST_AT_ONCE, max_queued=MOST_QUEUED, executor=ThreadPoolExecutor(1, "events")
        )

    @property
    def is_remote(self) -> bool:
        """Whether asking it takes so long that nobody should wait for it who need not."""
        return self._store.is_remote

    async def append(self, events: Sequence[LiveEvent]) -> list[bool]:
        """All or none; for each whether it is new; on disk when it comes back. Raises StoreError, and Overloaded where too
        many wait."""
        (reply,) = await self._writer.submit([events])
        if isinstance(reply, StoreError):
            raise reply
        return reply

    def of(self, users: Sequence[str]) -> dict[str, list[Event]] | None:
        """Events of some users, as a history is sent; None while the store is away."""
        if not users:
            return {}
        if time.monotonic() < self._not_before:
            return None
        try:
            found = self._store.of(users)
        except StoreError as error:
            log.error("events cannot be read: %s", error)
            self._not_before = time.monotonic() + REST_S
            return None
        return {user: [Event(event.item, event.rating, event.time) for event in events] for user, events in found.items()}

    def forget(self, user: str) -> int:
        """Keep nothing of a user. Returns how many events he had. Raises StoreError."""
        try:
            return self._store.forget(user)
        except StoreError as error:
            log.error("events cannot be forgotten: %s", error)
            raise

    def added(self, requests: Sequence[Request], items_for: ItemsFor) -> tuple[list[Request], bool]:
        """The requests with what their users have done since, and whether the store could be asked.

        items_for: the catalogue that a user is answered from; what came of items that it does not have is passed over.
        """
        found = self.of([request.user for request in requests if request.user is not None])
        if not found:
            return list(requests), found is not None
        return [_with(request, found.get(request.user or "", ()), items_for) for request in requests], True

    def _append(self, bodies: Sequence[Sequence[LiveEvent]]) -> Sequence[list[bool] | StoreError]:
        try:
            new = iter(self._store.append([event for body in bodies for event in body]))
        except StoreError as error:  # not tried again one by one: it is the store's fault
            log.error("events cannot be kept: %s", error)
            return [error] * len(bodies)
        return [list(islice(new, len(body))) for body in bodies]


def _with(request: Request, since: Sequence[Event], items_for: ItemsFor) -> Request:
    if not since:
        return request
    items = items_for(request.user)
    known = [event for event in since if items.number(event.item) is not None]
    return request if not known else replace(request, history=(*known, *(request.history or ())))
