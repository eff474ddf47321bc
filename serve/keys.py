"""Who may ask: keys from a file, which is read again when it changes, each with a rate of its own.

[web]                     # a name of your own, for logs
key = "…"                 # or sha256 = "…", so that the file does not hold the key itself
rate = 50                 # requests a second, over all replicas together; left out: as many as it likes
admin = true              # may also switch bundles and forget users; left out: false
"""

import hashlib
import hmac
import logging
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from recsys.errors import ConfigError
from serve.problems import Problem

log = logging.getLogger("serve")

LEAST_LENGTH = 16
"""Of a key: shorter ones can be guessed."""
LOOK_S = 1.0
"""Seconds after which the file is looked at again."""


class Key(BaseModel):
    """One key, known by its hash."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    key: Annotated[str, Field(min_length=LEAST_LENGTH, pattern="^[!-~]*$")] | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    rate: float | None = Field(None, gt=0)
    admin: bool = False

    @property
    def digest(self) -> bytes:
        """What a key that is presented must hash to."""
        return hashlib.sha256(self.key.encode()).digest() if self.key is not None else bytes.fromhex(self.sha256 or "")


class Keys:
    """The keys of a file, as it is by now. Threads may share it."""

    def __init__(self, path: Path, replicas: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        """replicas: how many share a key's rate. Raises ConfigError for a file that is none of keys."""
        self._path, self._replicas, self._clock = path, replicas, clock
        self._state, self._keys = _state(path), _read(path)
        self._looked, self._left = clock(), dict[str, tuple[float, float]]()

    @property
    def has_admin(self) -> bool:
        """Whether there is a key that may do everything."""
        return any(key.admin for _, key in self._current())

    def admit(self, presented: str | None, *, admin: bool = False) -> str:
        """The name of the key. Raises Problem for one that is none, may not do this, or asks too often."""
        name, key = self._find(presented)
        if admin and not key.admin:
            raise Problem("forbidden", "Ask with a key that has admin = true.")
        if key.rate is not None:
            self._count(name, key.rate / self._replicas)
        return name

    def _find(self, presented: str | None) -> tuple[str, Key]:
        """All are compared, in constant time each, so that time tells nothing of them."""
        digest = hashlib.sha256((presented or "").encode("utf-8", "surrogateescape")).digest()
        found = [(name, key) for name, key in self._current() if hmac.compare_digest(key.digest, digest)]
        if presented is None or not found:
            detail = "Send a key: Authorization: Bearer …" if presented is None else "This key is none of those that may ask."
            raise Problem("unauthorized", detail, {"WWW-Authenticate": "Bearer"})
        return found[0]

    def _count(self, name: str, rate: float) -> None:
        """A bucket that a second fills, and that holds a second's worth, one request at least."""
        now, most = self._clock(), max(rate, 1.0)
        left, before = self._left.get(name, (most, now))
        left = min(left + rate * (now - before), most)
        if left < 1:
            self._left[name] = (left, now)
            wait = max(1, round((1 - left) / rate))
            raise Problem("too_many", f"This key may ask {rate:g} times a second of each replica.", {"Retry-After": str(wait)})
        self._left[name] = (left - 1, now)

    def _current(self) -> list[tuple[str, Key]]:
        if self._clock() - self._looked >= LOOK_S:
            self._looked = self._clock()
            self._read_again()
        return self._keys

    def _read_again(self) -> None:
        """A file that cannot be read changes nothing: rotating must neither open the door nor shut everybody out."""
        try:
            if (state := _state(self._path)) != self._state:
                self._keys, self._state = _read(self._path), state
                log.warning("keys read again: %s", ", ".join(name for name, _ in self._keys))
        except ConfigError as error:
            log.error("%s The keys before it stay.", error)


def _state(path: Path) -> tuple[int, int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise ConfigError(f"keys: {path}: {error.strerror}.") from None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _read(path: Path) -> list[tuple[str, Key]]:
    """Raises ConfigError, which repeats no key."""
    try:
        told = tomllib.loads(path.read_text("utf-8"))
        keys = TypeAdapter(dict[str, Key]).validate_python(told)
    except OSError as error:
        raise ConfigError(f"keys: {path}: {error.strerror}.") from None
    except ValueError as error:
        first = error.errors(include_input=False)[0] if isinstance(error, ValidationError) else None
        where = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else "not a TOML file"
        raise ConfigError(f"keys: {path}: {where}.") from None
    for name, key in keys.items():
        if (key.key is None) == (key.sha256 is None):
            raise ConfigError(f"keys: {path}: {name}: give key, of {LEAST_LENGTH} characters at least, or its sha256.")
    if not keys:
        raise ConfigError(f"keys: {path}: there is no key in it.")
    return list(keys.items())
