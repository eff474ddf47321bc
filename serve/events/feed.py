"""Between the service and its store of events: writes of many callers in one transaction, reads for a batch, and what happens
when the store is away.
"""

import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from recsys.bundle.manifest import MANIFEST_FILE
from recsys.errors import ConfigError
from recsys.retrieval.requests import Event, Request
from serve.batching import Batcher
from serve.events.event import EventStore, LiveEvent, StoreError
from serve.events.sqlite import SqliteEvents

log = logging.getLogger("serve")

FILE = "events.sqlite"
URL = "RECSYS_REDIS_URL"
MOST_AT_ONCE, MOST_QUEUED = 1000, 10_000
REST_S = 1.0
"""After a failure the store is not asked for so long, or every request would wait for it."""
AWAY = "events since the bundle cannot be read at the moment"


def open_store(told: str, bundles: Path) -> EventStore | None:
    """`auto`: a file beside the bundles; `none`; `redis`: where $RECSYS_REDIS_URL says; an address; or a file's path.

    Raises ConfigError where it is none of these, or the Redis loses what it has acknowledged.
    """
    if told == "none":
        return None
    if told == "auto":
        return SqliteEvents((bundles.parent if (bundles / MANIFEST_FILE).exists() else bundles) / FILE)
    if told == "redis" or told.startswith(("redis://", "rediss://", "unix://")):
        return _redis(os.environ.get(URL, "") if told == "redis" else told)
    return SqliteEvents(Path(told))


def _redis(url: str) -> EventStore:
    try:
        from serve.events.redis import RedisEvents
    except ImportError:
        raise ConfigError("events: Redis needs a package more: pip install 'recsys-cluster[redis]'.") from None
    if not url:
        raise ConfigError(f"events=redis: set {URL} to its address, such as redis://host:6379/0, where replicas run.")
    return RedisEvents(url)


class Feed:
    """Takes events, and adds those of the users who ask to what they ask with."""

    def __init__(self, store: EventStore) -> None:
        self._store, self._not_before = store, 0.0
        self._writer: Batcher[LiveEvent, bool | StoreError] = Batcher(
            self._append, max_batch=MOST_AT_ONCE, max_queued=MOST_QUEUED, executor=ThreadPoolExecutor(1, "events")
        )

    async def append(self, events: Sequence[LiveEvent]) -> list[bool]:
        """For each whether it is new; on disk when it comes back. Raises StoreError, and Overloaded where too many wait."""
        replies = await self._writer.submit(events)
        for reply in replies:
            if isinstance(reply, StoreError):
                raise reply
        return [reply is True for reply in replies]

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
        return self._store.forget(user)

    def added(self, requests: Sequence[Request]) -> tuple[list[Request], bool]:
        """The requests with what their users have done since, and whether the store could be asked."""
        found = self.of([request.user for request in requests if request.user is not None])
        if not found:
            return list(requests), found is not None
        return [_with(request, found.get(request.user or "")) for request in requests], True

    def _append(self, events: Sequence[LiveEvent]) -> Sequence[bool | StoreError]:
        try:
            return self._store.append(events)
        except StoreError as error:  # not tried again one by one: it is the store's fault
            log.error("events cannot be kept: %s", error)
            return [error] * len(events)


def _with(request: Request, since: list[Event] | None) -> Request:
    return request if not since else replace(request, history=(*since, *(request.history or ())))
