"""Work ahead: what an iterator gives, made by a thread while the consumer is busy with what came before."""

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_END = object()
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
        self._thread = threading.Thread(target=self._make, args=(items,), name="ahead", daemon=True)
        self._thread.start()

    def __next__(self) -> T:
        if self._over:
            raise StopIteration
        made = self._made.get()
        if made is _END or isinstance(made, _Failed):
            self._over = True
            self._thread.join()
            raise made.error if isinstance(made, _Failed) else StopIteration
        return made  # type: ignore[return-value]

    def close(self) -> None:
        """No more of it: the thread stops at the next item, and ends the iterator it read from."""
        self._closed.set()
        self._over = True
        self._thread.join()

    def __del__(self) -> None:
        self._closed.set()

    def _make(self, items: Iterable[T]) -> None:
        iterator = iter(items)
        last: object = _END
        try:
            for item in iterator:
                if not self._put(item):
                    break
        except BaseException as error:
            last = _Failed(error)
        finally:
            if isinstance(iterator, Generator):
                iterator.close()
        self._put(last)

    def _put(self, item: object) -> bool:
        while not self._closed.is_set():
            try:
                self._made.put(item, timeout=_LOOK_SECONDS)
            except queue.Full:
                continue
            return True
        return False


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error
