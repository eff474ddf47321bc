"""Events in Redis: one store for replicas on several hosts.

A stream holds all events in their order, a list for each user his latest, a hash the ids. A script keeps all of a call's
events or none. Durable where Redis has `appendonly yes` and `appendfsync always`: it answers only when they are on its disk.
"""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from recsys.errors import ConfigError
from serve.events.event import LATEST, TO_ROLL, LiveEvent, Rolled, Stored, StoreError

TRUSTED = "RECSYS_REDIS_TRUSTED"
WRITE_S, READ_S = 5.0, 0.25
"""How long a connection and an answer may take: lists wait for it, so they are soon made without the store."""
APPEND = f"""
local new = {{}}
for place = 1, #ARGV, 3 do
  local id, user, event = ARGV[place], ARGV[place + 1], ARGV[place + 2]
  if redis.call('HSETNX', KEYS[2], id, '') == 1 then
    redis.call('XADD', KEYS[1], '*', 'event', event)
    redis.call('RPUSH', KEYS[3] .. user, event)
    redis.call('LTRIM', KEYS[3] .. user, -{LATEST}, -1)
    new[#new + 1] = 1
  else
    new[#new + 1] = 0
  end
end
return new
"""


class RedisEvents:
    """`EventStore` in a Redis server."""

    is_remote = True

    def __init__(self, url: str, name: str) -> None:
        """name: of the bundles whose events these are; others' may be beside them.

        Raises ConfigError for an address that is none, or a server that loses what it acknowledges.
        """
        # In braces: one slot of a cluster holds them all, as a script needs.
        self._log, self._ids, self._state, self._of_user = (
            f"{{recsys-events:{name}}}:{part}" for part in ("log", "ids", "state", "user:")
        )
        try:
            self._redis, self._quick = _client(url, WRITE_S), _client(url, READ_S)
        except ValueError:
            raise ConfigError("events: not the address of a Redis. Give one such as redis://host:6379/0.") from None
        self._append, self._is_safe = self._redis.register_script(APPEND), False
        with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):  # then it is asked before the first event
            self._refuse_forgetful()

    def append(self, events: Sequence[LiveEvent]) -> list[bool]:
        """One script: all or none."""
        arguments = [part for event in events for part in (event.id, event.user, _packed(event))]
        with _said_plainly():
            if not self._is_safe:
                self._refuse_forgetful()
            return [bool(new) for new in self._append(keys=[self._log, self._ids, self._of_user], args=arguments)]

    def identity(self) -> str:
        """As `EventStore` says."""
        with _said_plainly():
            self._redis.hsetnx(self._state, "identity", uuid.uuid4().hex)
            return str(self._redis.hget(self._state, "identity"))

    def of(self, users: Sequence[str]) -> dict[str, list[LiveEvent]]:
        """One round trip."""
        asked = list(dict.fromkeys(users))
        with _said_plainly():
            pipeline = self._quick.pipeline(transaction=False)
            for user in asked:
                pipeline.lrange(self._of_user + user, 0, -1)
            found = pipeline.execute()
        return {user: [_unpacked(event) for event in events] for user, events in zip(asked, found, strict=True) if events}

    def after(self, place: str, most: int = TO_ROLL) -> list[Stored]:
        """As `EventStore` says."""
        with _said_plainly():
            entries = self._redis.xrange(self._log, min=f"({place}" if place else "-", count=most)
        return [Stored(entry, _unpacked(fields["event"])) for entry, fields in entries]

    def rolled(self) -> Rolled:
        """As `EventStore` says."""
        with _said_plainly():
            files, place = self._redis.hmget(self._state, "files", "place")
        return Rolled(int(files or 0), place or "")

    def note_rolled(self, rolled: Rolled) -> None:
        """As `EventStore` says."""
        with _said_plainly():
            self._redis.hset(self._state, mapping=rolled._asdict())

    def forget(self, user: str) -> int:
        """The log is gone through from its beginning: a user's list holds only his latest."""
        gone, place = 0, ""
        while entries := self.after(place):
            his = [entry for entry in entries if entry.event.user == user]
            with _said_plainly():
                if his:
                    self._redis.xdel(self._log, *(entry.place for entry in his))
                    self._redis.hdel(self._ids, *(entry.event.id for entry in his))
            gone, place = gone + len(his), entries[-1].place
        with _said_plainly():
            self._redis.delete(self._of_user + user)
        return gone

    def close(self) -> None:
        """All connections."""
        self._redis.close()
        self._quick.close()

    def _refuse_forgetful(self) -> None:
        """Raises ConfigError; redis.RedisError where it is not there."""
        if os.environ.get(TRUSTED) == "1":
            self._is_safe = True
            return
        try:
            told = self._redis.config_get("append*") | self._redis.config_get("maxmemory*")
        except redis.ResponseError:
            raise ConfigError(
                "events: this Redis does not tell whether an event is on its disk before it answers. Where it is (appendonly "
                f"yes, appendfsync always, maxmemory-policy noeviction), set {TRUSTED}=1."
            ) from None
        if told.get("appendonly") != "yes" or told.get("appendfsync") != "always":
            raise ConfigError(
                "events: this Redis answers before an event is on its disk, so that a power cut would lose what was "
                "acknowledged. Set there: appendonly yes, appendfsync always."
            )
        if told.get("maxmemory", "0") != "0" and told.get("maxmemory-policy") != "noeviction":
            raise ConfigError("events: this Redis drops what it has no room for. Set there: maxmemory-policy noeviction.")
        self._is_safe = True


def _client(url: str, seconds: float) -> Any:
    once = Retry(NoBackoff(), 0)
    timeouts = {"socket_timeout": seconds, "socket_connect_timeout": seconds}
    return redis.Redis.from_url(url, decode_responses=True, retry=once, **timeouts)


def _packed(event: LiveEvent) -> str:
    return json.dumps(event, separators=(",", ":"))


def _unpacked(text: str) -> LiveEvent:
    return LiveEvent(*json.loads(text))


@contextmanager
def _said_plainly() -> Iterator[None]:
    try:
        yield
    except (redis.RedisError, OSError, ConfigError) as error:
        raise StoreError(f"Redis: {type(error).__name__}: {error}") from error
