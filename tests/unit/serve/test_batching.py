"""The batcher alone: what is answered together, who is refused, and who suffers for whom. No clock is looked at."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from serve.batching import Batcher, Overloaded


class Doubler:
    """Doubles integers, and remembers the batches; refuses a whole batch that holds `poison`."""

    def __init__(self, poison: int | None = None) -> None:
        self.batches: list[list[int]] = []
        self.poison = poison

    def __call__(self, queries: list[int]) -> Sequence[int]:
        self.batches.append(queries)
        if self.poison in queries:
            raise ValueError(f"poison {self.poison}")
        return [2 * query for query in queries]


def test_callers_that_arrive_together_are_answered_in_one_batch_each_with_his_own() -> None:
    async def scenario() -> None:
        double = Doubler()
        batcher = Batcher(double, max_batch=64)
        assert await asyncio.gather(*[batcher.submit([i]) for i in range(20)]) == [[2 * i] for i in range(20)]
        assert double.batches == [list(range(20))]

    asyncio.run(scenario())


def test_one_caller_is_answered_without_waiting_for_others() -> None:
    async def scenario() -> None:
        assert await Batcher(Doubler()).submit([21]) == [42]

    asyncio.run(scenario())


def test_no_batch_is_larger_than_max_batch_and_a_longer_list_is_spread() -> None:
    async def scenario() -> None:
        double = Doubler()
        batcher = Batcher(double, max_batch=8)
        first, second = await asyncio.gather(batcher.submit(range(13)), batcher.submit([100]))
        assert first == [2 * i for i in range(13)] and second == [200]
        assert [len(batch) for batch in double.batches] == [8, 6]

    asyncio.run(scenario())


def test_what_arrives_while_a_batch_is_computed_makes_one_next_batch() -> None:
    async def scenario() -> None:
        computing, go_on = threading.Event(), threading.Event()
        batches: list[list[int]] = []

        def slow(queries: list[int]) -> list[int]:
            batches.append(queries)
            computing.set()
            go_on.wait(10)
            return queries

        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(slow, executor=pool)
            first = asyncio.create_task(batcher.submit([0]))
            await asyncio.to_thread(computing.wait, 10)
            rest = [asyncio.create_task(batcher.submit([i])) for i in range(1, 30)]
            await asyncio.sleep(0)  # one turn: all 29 are queued
            assert batcher.queued == 29
            go_on.set()
            assert await first == [0] and await asyncio.gather(*rest) == [[i] for i in range(1, 30)]
        assert batches == [[0], list(range(1, 30))]

    asyncio.run(scenario())


def test_a_full_queue_refuses_at_once_and_all_or_nothing() -> None:
    async def scenario() -> None:
        double = Doubler()
        batcher = Batcher(double, max_queued=10)
        waiting = asyncio.create_task(batcher.submit(range(7)))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as refusal:
            await batcher.submit(range(4))
        assert refusal.value.retry_after_s >= 1
        assert batcher.queued == 7  # none of the four was taken in
        assert await asyncio.gather(waiting, batcher.submit(range(3))) == [[0, 2, 4, 6, 8, 10, 12], [0, 2, 4]]

    asyncio.run(scenario())


def test_after_a_refusal_nobody_is_let_in_until_half_the_queue_is_free() -> None:
    async def scenario() -> None:
        double = Doubler()
        batcher = Batcher(double, max_queued=10, max_batch=5)
        waiting = asyncio.create_task(batcher.submit(range(9)))
        await asyncio.sleep(0)
        batcher.admit()  # nothing was refused yet
        with pytest.raises(Overloaded):
            await batcher.submit(range(2))
        with pytest.raises(Overloaded):
            batcher.admit()
        while batcher.queued > 5:
            with pytest.raises(Overloaded):
                batcher.admit()
            await asyncio.sleep(0)
        batcher.admit()
        await waiting

    asyncio.run(scenario())


def test_a_caller_who_left_is_not_computed_for() -> None:
    async def scenario() -> None:
        double = Doubler()
        batcher = Batcher(double)
        gone, stays = asyncio.create_task(batcher.submit([1, 2])), asyncio.create_task(batcher.submit([3]))
        await asyncio.sleep(0)
        gone.cancel()
        assert await stays == [6]
        assert double.batches == [[3]]
        with pytest.raises(asyncio.CancelledError):
            await gone

    asyncio.run(scenario())


def test_answers_go_out_between_the_batches_of_a_long_queue() -> None:
    async def scenario() -> None:
        double, told = Doubler(), list[tuple[int, int]]()
        batcher = Batcher(double, max_batch=2)

        async def ask(query: int) -> None:
            await batcher.submit([query])
            told.append((query, len(double.batches)))

        await asyncio.gather(*map(ask, range(8)))
        assert told == [(query, 1 + query // 2) for query in range(8)], "told when so many batches were computed"

    asyncio.run(scenario())


def test_what_is_in_line_is_answered_whoever_waits_for_it_and_when() -> None:
    async def scenario() -> None:
        double = Doubler()
        batcher = Batcher(double, max_queued=3)
        coming = batcher.enqueue([1, 2])
        with pytest.raises(Overloaded):
            batcher.enqueue([3, 4])
        assert await coming == [2, 4] and double.batches == [[1, 2]]

    asyncio.run(scenario())


def test_a_query_that_makes_the_function_fail_fails_alone() -> None:
    async def scenario() -> None:
        batcher = Batcher(Doubler(poison=13))
        replies = await asyncio.gather(*[batcher.submit([i]) for i in (1, 13, 5)], return_exceptions=True)
        assert replies[0] == [2] and replies[2] == [10]
        assert isinstance(replies[1], ValueError) and "poison 13" in str(replies[1])
        assert await batcher.submit([6]) == [12]  # and the batcher lives on

    asyncio.run(scenario())


def test_a_short_reply_is_an_error_not_a_hang() -> None:
    async def scenario() -> None:
        with pytest.raises(ValueError):
            await asyncio.wait_for(Batcher(lambda queries: []).submit([1]), 10)

    asyncio.run(scenario())


def test_no_queries_no_work() -> None:
    async def scenario() -> None:
        double = Doubler()
        assert await Batcher(double).submit([]) == [] and double.batches == []

    asyncio.run(scenario())
