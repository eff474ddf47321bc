"""What happens to a service, and what its callers see of it. The numbers are those of the fault table in docs/reliability.md.

`recsys serve` as people run it, two replicas, asked at a steady rate whatever comes back: who waited would hide the gap.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from serve.client import AsyncClient, ServiceError
from tests.bundles import planted, write_planted
from tests.processes import end, free_ports

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.timeout(300)]

RATE = 40  # requests a second
WORLD = planted()


@dataclass
class Seen:
    """By callers: when each was begun, in seconds, and what came of it; 0 for a broken connection."""

    began: list[float] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    slowest: float = 0.0

    @property
    def failed(self) -> int:
        return sum(status != 200 for status in self.status)

    def recovered(self, fault: float) -> float:
        """Seconds from the fault to the beginning of the first request after the last that failed; 0 if none did."""
        bad = [began for began, status in zip(self.began, self.status, strict=True) if status != 200]
        return max(0.0, max(bad) - fault) if bad else 0.0


class Service:
    """`recsys serve` in a process of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        command = [str(Path(sys.executable).with_name("recsys")), "serve", str(folder / "bundles"), "--port", str(self.port)]
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"RECSYS_CACHE": str(folder / "cache")}
        self.log = (folder / f"serve-{self.port}.log").open("w")
        self.process = subprocess.Popen(
            [*command, "--replicas", "2", *options], env=environment, stdout=self.log, stderr=subprocess.STDOUT
        )
        try:
            self._until_ready()
        except BaseException:
            self.close()
            raise

    def _until_ready(self) -> None:
        late = time.monotonic() + 240
        while True:
            try:
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert time.monotonic() < late and self.process.poll() is None, Path(self.log.name).read_text()
            time.sleep(0.2)

    def named(self, title: str) -> list[psutil.Process]:
        """Processes of this service whose title holds these words."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in family if title in " ".join(process.cmdline())]

    def close(self) -> None:
        end(psutil.Process(self.process.pid))
        self.process.wait(30)  # psutil has reaped it: Popen has to be told, or warns when it is collected
        self.log.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving")
    write_planted(folder / "bundles", world=WORLD)
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    service = Service(folder)
    yield service
    service.close()


async def asked(url: str, seconds: float, faults: list[tuple[float, Callable[[], object]]], *, retries: int = 0) -> Seen:
    """RATE requests a second for so long, and what is done to the service meanwhile: (after so many seconds, what)."""
    seen, start = Seen(), time.monotonic()
    limits = httpx.Limits(max_connections=200)
    async with AsyncClient(http=httpx.AsyncClient(base_url=url, timeout=20, limits=limits), retries=retries) as client:

        async def ask(number: int) -> None:
            await asyncio.sleep(max(0.0, start + number / RATE - time.monotonic()))
            began = time.monotonic() - start
            try:
                answer = await client.recommend(user=f"u{number % 24}", k=5)
                assert [item["item_id"] for item in answer["items"]] == [f"i{item}" for item in WORLD.wanted(number % 24, 5)]
                status = 200
            except ServiceError as error:
                status = error.status
            except httpx.TransportError:
                status = 0
            seen.began.append(began)
            seen.status.append(status)
            seen.slowest = max(seen.slowest, time.monotonic() - start - began)

        async def strike(after: float, fault: Callable[[], object]) -> None:
            await asyncio.sleep(after)
            await asyncio.to_thread(fault)

        strikes = [strike(after, fault) for after, fault in faults]
        await asyncio.gather(*(ask(number) for number in range(int(seconds * RATE))), *strikes)
    return seen


def told(name: str, seen: Seen, fault: float) -> None:
    """A row of docs/reliability.md."""
    print(
        f"\n{name}: {len(seen.status)} asked, {seen.failed} failed {sorted(set(seen.status) - {200})}, "
        f"recovered after {seen.recovered(fault):.1f} s, slowest {seen.slowest:.2f} s"
    )


def test_s1_a_replica_killed_costs_what_it_was_answering(service: Service) -> None:
    def kill() -> None:
        replicas = service.named("ServeReplica")
        assert len(replicas) == 2
        replicas[0].kill()

    seen = asyncio.run(asked(service.url, 10, [(3, kill)]))
    told("S1", seen, 3)
    assert seen.failed <= 0.02 * len(seen.status) and seen.recovered(3) < 3
    until(lambda: len(service.named("ServeReplica")) == 2, 60)
    again = asyncio.run(asked(service.url, 10, [(3, kill)], retries=4))
    told("S1, callers try again", again, 3)
    assert again.failed == 0
    until(lambda: len(service.named("ServeReplica")) == 2, 60)


def test_s2_the_controller_killed_is_not_seen(service: Service) -> None:
    def kill() -> None:
        (controller,) = service.named("ServeController")
        controller.kill()

    seen = asyncio.run(asked(service.url, 10, [(3, kill)]))
    told("S2", seen, 3)
    assert seen.failed == 0
    until(lambda: len(service.named("ServeController")) == 1, 60)


def test_s5_a_slow_caller_holds_nobody_up(service: Service) -> None:
    """Fifty connections that never finish their requests."""
    with open_connections(service.port, 50):
        seen = asyncio.run(asked(service.url, 5, []))
    told("S5", seen, 0)
    assert seen.failed == 0 and seen.slowest < 2


@contextmanager
def open_connections(port: int, count: int) -> Iterator[list[socket.socket]]:
    made = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    try:
        for each in made:
            each.sendall(
                b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
            )
        yield made
    finally:
        for each in made:
            each.close()


def test_s15_sigterm_lets_what_is_under_way_finish(folder: Path) -> None:
    """After the signal new connections may be refused; what was begun before it is answered."""
    service = Service(folder)
    try:
        seen = asyncio.run(asked(service.url, 5, [(3, lambda: service.process.send_signal(signal.SIGTERM))]))
        service.process.wait(60)
        told("S15", seen, 3)
        before = [status for began, status in zip(seen.began, seen.status, strict=True) if began < 2.9]
        assert before and set(before) == {200}
        assert not {status for status in seen.status if status == 500}
    finally:
        if service.process.poll() is None:
            service.close()


def until(condition: Callable[[], bool], seconds: float) -> None:
    late = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < late, "it did not come to be"
        time.sleep(0.5)
