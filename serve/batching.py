"""Dynamic batching in plain asyncio: what waits is answered together, as soon as the worker is free.

Ray's `@serve.batch` forms a batch before the worker is free, so that batches crumble under load. Here the queue is taken
only at the moment when it can be computed: the busier the worker, the larger its next batch, and no wait when idle.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, NamedTuple, TypeVar

Query = TypeVar("Query")
Reply = TypeVar("Reply")

# Turns of the event loop without a new request after which all that has arrived counts as queued: one turn reads the
# sockets and starts the handlers, one runs them, one is in hand. As many lie between any two batches, or the answers of the
# first would go out after the last of a long queue, and nobody would be refused, or heard, meanwhile.
QUIET_TURNS = 3


class Overloaded(Exception):  # noqa: N818 - said of the service
    """The queue is full. `retry_after_s`: whole seconds after which another try makes sense."""

    def __init__(self, retry_after_s: int = 1) -> None:
        super().__init__(f"the queue is full; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class _Call(Generic[Reply]):
    """The replies to one caller's queries: of a list of hundreds one future costs a tenth of one each."""

    def __init__(self, count: int) -> None:
        self.future: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()
        self._replies: list[Reply] = [None] * count  # type: ignore[list-item]
        self._missing = count

    def reply(self, place: int, reply: Reply) -> None:
        """To the query at a place of the caller's list."""
        self._replies[place] = reply
        self._missing -= 1
        if not self._missing and not self.future.done():
            self.future.set_result(self._replies)

    def fail(self, error: Exception) -> None:
        """The first failure is the whole call's."""
        if not self.future.done():
            self.future.set_exception(error)


class _Waiting(NamedTuple, Generic[Query, Reply]):
    query: Query
    call: _Call[Reply]
    place: int


class Batcher(Generic[Query, Reply]):
    """Answers queries of many callers by one function of a list, at most `max_batch` at a time.

    answer: one reply for each query, in order. If it raises, each query is tried alone, so that one cannot fail its
    neighbours. executor: where it runs; None: on the event loop itself, which is faster for batches of milliseconds.
    """

    def __init__(
        self,
        answer: Callable[[list[Query]], Sequence[Reply]],
        *,
        max_batch: int = 64,
        max_queued: int = 1024,
        wait_s: float = 0.0,
        executor: Executor | None = None,
    ) -> None:
        self._answer, self._executor = answer, executor
        self._max_batch, self._max_queued, self._wait_s = max_batch, max_queued, wait_s
        self._queue: deque[_Waiting[Query, Reply]] = deque()
        self._drainer: asyncio.Task[None] | None = None
        self._refusing = False
        self.sizes: deque[int] = deque(maxlen=1000)
        """Sizes of the latest batches."""

    async def submit(self, queries: Sequence[Query]) -> list[Reply]:
        """The replies to some queries; they may share batches with others', and be spread over several.

        Raises Overloaded, at once, if they do not all fit in the queue. Cancelling drops what is not yet computed.
        """
        return await self.enqueue(queries)

    def enqueue(self, queries: Sequence[Query]) -> asyncio.Future[list[Reply]]:
        """`submit`, for who waits for more than this: the replies to come."""
        self.require_room(len(queries))
        call = _Call[Reply](len(queries))
        if not queries:
            call.future.set_result([])
            return call.future
        self._queue.extend(_Waiting(query, call, place) for place, query in enumerate(queries))
        if self._drainer is None or self._drainer.done():
            self._drainer = asyncio.get_running_loop().create_task(self._drain())
        return call.future

    def require_room(self, count: int) -> None:
        """Raises Overloaded where so many queries do not fit."""
        if len(self._queue) + count > self._max_queued:
            self._refusing = True
            raise Overloaded

    def admit(self) -> None:
        """Raises Overloaded from when something did not fit until half of the queue is free: to be asked before a body is read,
        since under a flood, what is refused must cost next to nothing."""
        self._refusing = self._refusing and 2 * len(self._queue) > self._max_queued
        if self._refusing:
            raise Overloaded

    @property
    def queued(self) -> int:
        """Queries waiting."""
        return len(self._queue)

    async def _drain(self) -> None:
        while self._queue:
            await self._let_requests_arrive()
            if batch := self._take():
                self.sizes.append(len(batch))
                await self._reply(batch)

    async def _let_requests_arrive(self) -> None:
        if self._wait_s and len(self._queue) < self._max_batch:
            await asyncio.sleep(self._wait_s)
        quiet = turns = 0
        while quiet < QUIET_TURNS and (len(self._queue) < self._max_batch or turns < QUIET_TURNS):
            before = len(self._queue)
            await asyncio.sleep(0)
            quiet, turns = quiet + 1 if len(self._queue) == before else 0, turns + 1

    def _take(self) -> list[_Waiting[Query, Reply]]:
        """The next queries that somebody still waits for."""
        batch: list[_Waiting[Query, Reply]] = []
        while self._queue and len(batch) < self._max_batch:
            waiting = self._queue.popleft()
            if not waiting.call.future.done():
                batch.append(waiting)
        return batch

    async def _reply(self, batch: list[_Waiting[Query, Reply]]) -> None:
        try:
            replies = await self._compute([waiting.query for waiting in batch])
        except Exception as error:
            await self._reply_one_by_one(batch, error)
            return
        for waiting, reply in zip(batch, replies, strict=True):
            waiting.call.reply(waiting.place, reply)

    async def _reply_one_by_one(self, batch: list[_Waiting[Query, Reply]], error: Exception) -> None:
        if len(batch) == 1:
            batch[0].call.fail(error)
            return
        for waiting in batch:
            await self._reply([waiting])

    async def _compute(self, queries: list[Query]) -> Sequence[Reply]:
        if self._executor is None:
            replies = self._answer(queries)
        else:
            replies = await asyncio.get_running_loop().run_in_executor(self._executor, self._answer, queries)
        if len(replies) != len(queries):
            raise ValueError(f"{len(replies)} replies to {len(queries)} queries")
        return replies
