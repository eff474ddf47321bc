"""The load that `recsys bench serve` makes: what callers waited, a service's pauses included. Servers are real, and small."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count

import numpy as np
import pytest

from serve import load
from serve.load import BROKEN, Seen, Target, closed_loop, open_loop, questions

Answer = Callable[[bytes, bytes], Awaitable[bytes | None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
FULL = b"HTTP/1.1 503 Service Unavailable\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
USERS = ["a", "b", "c"]


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[Target]:
    """Answers each request's (head, body) with the bytes that `answer` returns; None: hangs up."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0]))
                reply = await answer(head, body)
                if reply is None:
                    break
                writer.write(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with listening:
        yield Target(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/under", "secret")


async def well(head: bytes, body: bytes) -> bytes:
    return OK


def test_it_asks_as_a_client_does() -> None:
    asked: list[tuple[bytes, bytes]] = []

    async def note(head: bytes, body: bytes) -> bytes:
        asked.append((head, body))
        return OK

    async def run() -> Seen:
        async with server(note) as target:
            return await open_loop(target, questions(USERS, 5, 2), 100, 0.2)

    seen = asyncio.run(run())
    assert seen.asked == len(asked) == 20 and seen.good.all() and not seen.failed
    head, body = asked[0]
    assert head.startswith(b"POST /under/v1/recommend HTTP/1.1\r\n") and b"X-API-Key: secret\r\n" in head
    entries = json.loads(body)["requests"]
    assert len(entries) == 2 and all(entry["user"] in USERS and entry["k"] == 5 for entry in entries)
    assert json.loads(next(questions(USERS, 3)))["k"] == 3


def test_a_service_that_stands_still_is_seen_by_all_who_should_have_asked_meanwhile() -> None:
    """The planted pause: half a second. One caller in a closed loop meets it once; at a hundred a second, fifty do."""

    def paused() -> Answer:
        numbers, going = count(), asyncio.Event()
        going.set()

        async def answer(head: bytes, body: bytes) -> bytes:
            if next(numbers) == 20:
                going.clear()
                asyncio.get_running_loop().call_later(0.5, going.set)
            await going.wait()
            return OK

        return answer

    async def run() -> tuple[Seen, Seen]:
        async with server(paused()) as target:
            opened = await open_loop(target, questions(USERS, 5), 100, 1.5)
        async with server(paused()) as target:
            return opened, await closed_loop(target, questions(USERS, 5), 1, 1)

    opened, closed = asyncio.run(run())
    assert np.count_nonzero(opened.took > 0.1) >= 30 and 1 <= np.count_nonzero(closed.took > 0.3) <= 3
    late = opened.milliseconds(0.9)
    assert late is not None and late > 100


def test_what_is_refused_or_breaks_is_counted_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "TIMEOUT_S", 1)
    numbers = count()

    async def answer(head: bytes, body: bytes) -> bytes | None:
        number = next(numbers) % 4
        if number == 3:
            await asyncio.sleep(1.5)  # too late
        return (OK, FULL, None, OK)[number]

    async def run() -> Seen:
        async with server(answer) as target:
            seen = await open_loop(target, questions(USERS, 5), 100, 0.4)
            await asyncio.sleep(1.5)  # till the late ones are through, or asyncio complains
            return seen

    seen = asyncio.run(run())
    assert seen.failed == {BROKEN: 20, 503: 10} and np.count_nonzero(seen.good) == 10
    assert 0 < seen.per_second <= 25


def test_a_closed_loop_has_as_many_under_way_as_callers() -> None:
    busy, most = 0, 0

    async def answer(head: bytes, body: bytes) -> bytes:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        await asyncio.sleep(0.02)
        busy -= 1
        return OK

    async def run() -> Seen:
        async with server(answer) as target:
            return await closed_loop(target, questions(USERS, 5), 7, 0.5)

    seen = asyncio.run(run())
    assert most == 7 and seen.good.all() and 7 <= seen.asked <= 7 * 26


def test_nobody_listening_is_told() -> None:
    with pytest.raises(OSError):
        asyncio.run(closed_loop(Target("http://127.0.0.1:1"), questions(USERS, 5), 1, 0.1))
    seen = asyncio.run(open_loop(Target("http://127.0.0.1:1"), questions(USERS, 5), 50, 0.1))
    assert seen.failed == {BROKEN: 5} and seen.milliseconds(0.5) is None and seen.per_second == 0


def test_recovery_is_counted_from_the_fault_to_the_last_failure_after_it() -> None:
    began, took = np.arange(10.0), np.full(10, 0.1)
    status = np.array([500, 200, 200, 0, 200, 503, 200, 200, 200, 200])
    seen = Seen(began, took, status, 10)
    assert seen.recovered(2.5) == 2.5 and seen.recovered(6) == 0
    assert seen.per_second == 0.7 and seen.milliseconds(1) == pytest.approx(100)


def test_a_service_that_comes_back_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each connection is good for one answer, and is then closed without a word."""

    async def answer(head: bytes, body: bytes) -> bytes:
        return OK.replace(b"Content-Length", b"Connection: close\r\nContent-Length")

    async def run() -> Seen:
        async with server(answer) as target:
            return await closed_loop(target, questions(USERS, 5), 3, 0.3)

    seen = asyncio.run(run())
    assert seen.good.all() and seen.asked > 6


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://u:p@x", "http://h:notaport", "http://h:99999"])
def test_an_address_that_cannot_be_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        Target(url)
    with pytest.raises(ValueError, match="one line"):
        Target("http://x", "two\nlines")
