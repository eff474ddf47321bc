"""Work ahead: what an iterator gives, made by a thread while the consumer is busy with what came before."""

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

_LOOK_SECONDS = 0.1


def ahead(items: Iterable[T], depth: int = 1) -> "Ahead[T]":
    """`items`, of which a thread begins at once to make up to `depth` that nobody has asked for yet."""
    return Ahead(items, depth)


class Ahead(Iterator[T]):
    """Ends as its items end, with their error if they end with one. `close` ends it before."""

    def __init__(self, items: Iterable[T], depth: int) -> None:
        self._made: queue.Queue[object] = queue.Queue(depth)
        self._closed = threading.Event()
        self._over = False
        # Not a method of this object: the thread must not keep alive what nobody wants any more.
        work = (items, self._made, self._closed)
        self._thread = threading.Thread(target=_make, args=work, name="ahead", daemon=True)
        self._thread.start()

    def __next__(self) -> T:
        if self._over:
            raise StopIteration
        made = self._made.get()
        if isinstance(made, _End):
            self._over = True
            self._thread.join()
            raise StopIteration if made.error is None else made.error
        return made  # type: ignore[return-value]

    def close(self) -> None:
        """No more of it: the thread stops at the next item, and ends the iterator it read from."""
        self._closed.set()
        self._over = True
        self._thread.join()

    def __del__(self) -> None:
        self._closed.set()


@dataclass
class _End:
    error: BaseException | None


def _make(items: Iterable[object], made: "queue.Queue[object]", closed: threading.Event) -> None:
    iterator = iter(items)
    error: BaseException | None = None
    try:
        try:
            for item in iterator:
                if not _put(item, made, closed):
                    break
        finally:
            if isinstance(iterator, Generator):
                iterator.close()
    except BaseException as raised:
        error = raised
    _put(_End(error), made, closed)


def _put(item: object, made: "queue.Queue[object]", closed: threading.Event) -> bool:
    while not closed.is_set():
        try:
            made.put(item, timeout=_LOOK_SECONDS)
        except queue.Full:
            continue
        return True
    return False
