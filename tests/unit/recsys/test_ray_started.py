"""Ray is started again where it was too slow, and what it fails with is said in words."""

from collections.abc import Callable

import pytest

from recsys.errors import RecsysError, ray_started

SLOW = "The current node timed out during startup. This could happen because some of the raylet failed to startup."


def failing(*errors: Exception) -> tuple[Callable[[], None], list[int]]:
    """A start that fails with these in turn, then works; and how often it was tried."""
    tries: list[int] = []

    def start() -> None:
        tries.append(len(tries))
        if len(tries) <= len(errors):
            raise errors[len(tries) - 1]

    return start, tries


@pytest.mark.parametrize("errors", [(), (Exception(SLOW),)])
def test_a_slow_start_is_tried_once_more(errors: tuple[Exception, ...]) -> None:
    start, tries = failing(*errors)
    ray_started(start, None)
    assert len(tries) == len(errors) + 1


def test_slow_again_it_is_said() -> None:
    start, tries = failing(Exception(SLOW), Exception(SLOW))
    with pytest.raises(RecsysError, match="did not start in time, 2 times: this machine is too busy"):
        ray_started(start, None)
    assert len(tries) == 2


def test_a_ray_that_is_away_is_not_waited_for_twice() -> None:
    start, tries = failing(ConnectionRefusedError("refused"))
    with pytest.raises(RecsysError, match=r"Ray at 10\.0\.0\.1:6379 cannot be reached or started: refused"):
        ray_started(start, "10.0.0.1:6379")
    assert len(tries) == 1


def test_what_nobody_expected_stays_what_it_is() -> None:
    start, tries = failing(ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        ray_started(start, None)
    assert len(tries) == 1
