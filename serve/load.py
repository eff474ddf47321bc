"""Load on a service, as its callers see it: closed loop to find how much it can, open loop to see what that costs in time.

In an open loop requests begin when they are due, whatever the service does, and their time counts from then. Who waits for an
answer before asking again never asks while the service stands still, and so never sees it (wrk2: coordinated omission).
"""

import asyncio
import gc
import re
import ssl
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from urllib.parse import urlsplit

import httptools
import numpy as np
import orjson
from numpy.typing import NDArray

BROKEN = 0
"""In place of a status: the connection broke, or no answer came in time."""
TIMEOUT_S = 30.0
PAUSE_S = 0.1
"""Of a caller whose connection broke and who finds nobody listening."""
MOST_CONNECTIONS = 2_000


@dataclass(frozen=True)
class Target:
    """Where to ask, and with which key. Raises ValueError for an address or a key that cannot be."""

    url: str
    key: str | None = None

    def __post_init__(self) -> None:
        place = urlsplit(self.url)
        if place.scheme not in ("http", "https") or not place.hostname or "@" in place.netloc or place.port == 0:
            raise ValueError("an address looks like http://127.0.0.1:8000")
        if self.key is not None and not re.fullmatch("[!-~]+", self.key):
            raise ValueError("a key is one line of printable characters without spaces")

    def request(self, body: bytes) -> bytes:
        """A question as it goes over the wire."""
        place = urlsplit(self.url)
        key = f"X-API-Key: {self.key}\r\n" if self.key else ""
        head = (
            f"POST {place.path.rstrip('/')}/v1/recommend HTTP/1.1\r\nHost: {place.netloc}\r\n{key}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    async def connect(self) -> "_Connection":
        """Raises OSError."""
        place = urlsplit(self.url)
        secure = _trusted() if place.scheme == "https" else None
        port = place.port or (443 if secure else 80)
        _, made = await asyncio.get_running_loop().create_connection(_Connection, place.hostname or "", port, ssl=secure)
        return made


@dataclass(frozen=True)
class Seen:
    """What callers saw. began, took: [requests] seconds from the start to when each was due, and from then to its answer;
    status: [requests] of the answers, or BROKEN; seconds: how long was asked."""

    began: NDArray[np.float64]
    took: NDArray[np.float64]
    status: NDArray[np.int64]
    seconds: float

    @property
    def asked(self) -> int:
        """Requests."""
        return len(self.status)

    @property
    def good(self) -> NDArray[np.bool_]:
        """[requests] which were answered by 200."""
        return np.equal(self.status, 200)

    @property
    def failed(self) -> dict[int, int]:
        """How many had which other status."""
        return dict(sorted(Counter(self.status[~self.good].tolist()).items()))

    @property
    def per_second(self) -> float:
        """Good answers a second, of those that came while it was being asked."""
        return float(np.count_nonzero(self.good & (self.began + self.took <= self.seconds)) / self.seconds)

    def milliseconds(self, share: float) -> float | None:
        """So long took this share of the good answers at most; None where there are none."""
        return float(1000 * np.quantile(self.took[self.good], share)) if self.good.any() else None

    def recovered(self, fault_s: float) -> float:
        """Seconds from a fault to when the last request was due that failed; 0 if none failed after it."""
        bad = self.began[~self.good & (self.began >= fault_s)]
        return float(bad.max() - fault_s) if len(bad) else 0.0


def questions(users: list[str], k: int, at_once: int = 1, seed: int = 0) -> Iterator[bytes]:
    """Bodies without end, for random users: one a body, or lists of so many."""
    rng = np.random.default_rng(seed)
    while True:
        for chosen in rng.integers(0, len(users), (1024, at_once)).tolist():
            asked = [{"user": users[user], "k": k} for user in chosen]
            yield orjson.dumps(asked[0] if at_once == 1 else {"requests": asked})


async def closed_loop(target: Target, bodies: Iterator[bytes], connections: int, seconds: float) -> Seen:
    """So many callers, each of whom asks again as soon as he is answered. Raises OSError where nobody listens."""
    loop, seen = asyncio.get_running_loop(), _Notes()
    callers: list[_Connection] = []

    async def call(connection: _Connection) -> None:
        while loop.time() < start + seconds:
            began = loop.time()
            status = await connection.ask(target.request(next(bodies)))
            seen.add(began - start, loop.time() - began, status)
            if not connection.is_open:
                connection = await again(connection)
                callers.append(connection)

    async def again(broken: _Connection) -> _Connection:
        """Another connection, or, where nobody listens, after a while the same, whose next request then counts as broken."""
        try:
            return await target.connect()
        except OSError:
            await asyncio.sleep(PAUSE_S)
            return broken

    try:
        for _ in range(connections):
            callers.append(await target.connect())
        with _undisturbed():
            start = loop.time()
            await asyncio.gather(*map(call, list(callers)))
    finally:
        for caller in callers:
            caller.close()
    return seen.seen(seconds)


async def open_loop(target: Target, bodies: Iterator[bytes], rate: float, seconds: float, seed: int = 0) -> Seen:
    """`rate` requests a second, independent of one another (Poisson), over as many connections as are needed at the time."""
    loop, seen, pool = asyncio.get_running_loop(), _Notes(), _Pool(target)
    # Given how many there are, the moments of a Poisson process are drawn evenly from the whole time.
    moments = np.sort(np.random.default_rng(seed).uniform(0, seconds, max(1, round(rate * seconds))))

    async def ask(due: float, request: bytes) -> None:
        status = await pool.ask(request)
        seen.add(due, loop.time() - start - due, status)

    asking = []
    try:
        with _undisturbed():
            start = loop.time()
            for due in moments.tolist():
                await asyncio.sleep(max(0.0, start + due - loop.time()))
                asking.append(loop.create_task(ask(due, target.request(next(bodies)))))
            await asyncio.gather(*asking)
    finally:
        pool.close()
    return seen.seen(seconds)


@cache
def _trusted() -> ssl.SSLContext:
    """Made once: it takes 20 ms."""
    return ssl.create_default_context()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Python's collector stands still: its pauses here would be told as the service's."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@dataclass
class _Notes:
    """By requests, as they come."""

    began: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    status: list[int] = field(default_factory=list)

    def add(self, began: float, took: float, status: int) -> None:
        self.began.append(began)
        self.took.append(took)
        self.status.append(status)

    def seen(self, seconds: float) -> Seen:
        return Seen(np.array(self.began), np.array(self.took), np.array(self.status, np.int64), seconds)


class _Pool:
    """Connections kept open for the next request: the latest first, so that few are used while few are needed."""

    def __init__(self, target: Target) -> None:
        self._target, self._idle = target, list[_Connection]()
        self._room = asyncio.Semaphore(MOST_CONNECTIONS)

    async def ask(self, request: bytes) -> int:
        """The status."""
        async with self._room:
            try:
                connection = await self._take()
            except OSError:
                return BROKEN
            status = await connection.ask(request)
            if connection.is_open:
                self._idle.append(connection)
            return status

    def close(self) -> None:
        for connection in self._idle:
            connection.close()

    async def _take(self) -> "_Connection":
        while self._idle:
            if (connection := self._idle.pop()).is_open:
                return connection
        return await self._target.connect()


class _Connection(asyncio.Protocol):
    """One request at a time."""

    is_open = False
    _transport: asyncio.Transport
    _answer: asyncio.Future[int] | None = None

    async def ask(self, request: bytes) -> int:
        """The status of the answer, or BROKEN; then the connection is closed, too."""
        if not self.is_open:
            return BROKEN
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        late = asyncio.get_running_loop().call_later(TIMEOUT_S, self._settle, BROKEN)
        status = await self._answer
        late.cancel()
        if status == BROKEN:
            self.close()
        return status

    def close(self) -> None:
        self.is_open = False
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.is_open = transport, True
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._settle(BROKEN)

    def on_message_complete(self) -> None:
        """The parser's word."""
        if not self._parser.should_keep_alive():
            self.close()
        self._settle(self._parser.get_status_code())

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        self._settle(BROKEN)

    def _settle(self, status: int) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(status)


__all__ = ["BROKEN", "Seen", "Target", "closed_loop", "open_loop", "questions"]
