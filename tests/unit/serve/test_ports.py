"""A port asked for is refused when somebody has it; one chosen here is free, and stays so."""

import errno
import socket
from collections.abc import Iterator

import pytest

from recsys.errors import ConfigError
from serve import ports


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody has."""
    with socket.socket() as theirs:
        theirs.bind(("127.0.0.1", ports.free_port()))
        theirs.listen()
        yield theirs.getsockname()[1]


def test_a_port_asked_for_is_taken_as_it_is() -> None:
    port = ports.free_port()
    assert ports.require_port("127.0.0.1", port) == port


def test_a_port_that_somebody_has_is_refused_with_what_to_do(taken: int) -> None:
    with pytest.raises(ConfigError, match=f"127.0.0.1:{taken} .*in use.*--port"):
        ports.require_port("127.0.0.1", taken)


def test_a_chosen_port_is_free(monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    monkeypatch.setattr(ports, "TRIES", 2)
    monkeypatch.setattr(ports, "CHOSEN_FROM", range(taken, taken + 2))
    assert ports.require_port("127.0.0.1", 0) == taken + 1


def test_an_address_of_no_machine_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def refused(host: str, port: int) -> OSError:
        asked.append(port)
        return OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

    monkeypatch.setattr(ports, "_refusal", refused)
    with pytest.raises(ConfigError, match=r"203.0.113.1 .*Cannot assign.*--host"):
        ports.require_port("203.0.113.1", 0)
    assert len(asked) == 1


def test_no_free_port_says_why_and_what_next(monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    monkeypatch.setattr(ports, "TRIES", 1)
    monkeypatch.setattr(ports, "CHOSEN_FROM", range(taken, taken + 1))
    with pytest.raises(ConfigError, match=f"127.0.0.1: .*{taken}..{taken}.*--port"):
        ports.free_port()
