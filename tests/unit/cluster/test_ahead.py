"""Work ahead: the same items in the same order, the same error, and no thread left when nobody wants more."""

import gc
import threading
import time
from collections.abc import Iterator

import pytest

from cluster.ahead import ahead


def threads() -> int:
    return sum(thread.name == "ahead" for thread in threading.enumerate())


def wait_for(happened) -> None:
    deadline = time.monotonic() + 10
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert happened()


def test_items_come_in_order_and_once():
    items = ahead(iter(range(100)), depth=3)
    assert list(items) == list(range(100)) and list(items) == []


def test_it_begins_before_it_is_asked_and_goes_no_further_than_its_depth():
    made: list[int] = []
    items = ahead((made.append(n) or n for n in range(100)), depth=2)
    wait_for(lambda: len(made) == 3)  # two that wait, and one in hand
    time.sleep(0.3)
    assert len(made) == 3
    items.close()


def test_an_error_comes_where_it_happened():
    def failing() -> Iterator[int]:
        yield 1
        raise KeyError("planted")

    items = ahead(failing())
    assert next(items) == 1
    with pytest.raises(KeyError, match="planted"):
        next(items)
    assert list(items) == []


class Source:
    """Notes when it is ended."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def items(self) -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            self.ended.set()


def test_closing_ends_the_source_in_its_thread():
    source = Source()
    items = ahead(source.items())
    next(items)
    items.close()
    assert source.ended.is_set() and list(items) == [] and threads() == 0


def test_what_nobody_holds_ends_by_itself():
    source = Source()
    items = ahead(source.items())
    next(items)
    del items
    gc.collect()
    wait_for(lambda: source.ended.is_set() and threads() == 0)
