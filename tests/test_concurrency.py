"""Threads and tasks never outlive the code that started them."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.concurrency import (
    closing,
    finish,
    in_background,
    in_order,
    in_order_of,
    in_thread,
    let_go,
    pondered,
    stop_tasks,
    uncollected,
)
from resilience.testing.cancellation import cancellations, nothing_left_running


async def test_finish_returns_what_the_effect_returns_and_raises_what_it_raises() -> None:
    async def fail() -> None:
        raise KeyError("why")

    assert await finish(asyncio.sleep(0, "done")) == "done"
    with pytest.raises(KeyError, match="why"):
        await finish(fail())


async def test_a_cancelled_effect_is_finished_and_the_cancellation_raised_then() -> None:
    async with nothing_left_running():
        for attempt in cancellations():
            steps: list[int] = []

            async def effect(steps: list[int] = steps) -> None:
                for step in range(3):
                    await asyncio.sleep(0)
                    steps.append(step)

            await attempt(finish(effect()))
            assert steps == [0, 1, 2]


async def test_an_effect_that_fails_after_a_cancellation_leaves_nobody_asking_for_its_exception() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise KeyError("why")

    async with nothing_left_running():
        for late in (False, True):
            task = asyncio.create_task(finish(fail()))
            await asyncio.sleep(0)
            if late:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() or isinstance(task.exception(), KeyError)


async def test_an_effect_that_is_cancelled_itself_cancels_its_waiter() -> None:
    effect = asyncio.create_task(asyncio.sleep(60))
    waiter = asyncio.create_task(finish(effect))
    await asyncio.sleep(0)
    effect.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter


async def test_a_thread_is_waited_for_when_its_caller_is_cancelled() -> None:
    for attempt in cancellations():
        ended = threading.Event()

        def work(ended: threading.Event = ended) -> None:
            time.sleep(0.01)
            ended.set()

        await attempt(in_thread(work))
        assert ended.is_set()


async def numbers(count: int, closed: list[str] | None = None) -> AsyncGenerator[int]:
    try:
        for number in range(count):
            await asyncio.sleep(0)
            yield number
    finally:
        if closed is not None:
            closed.append("closed")


async def test_results_come_in_the_order_of_the_items_whatever_each_takes() -> None:
    def slow_when_even(number: int) -> int:
        time.sleep(0.002 if number % 2 == 0 else 0)
        return number

    with ThreadPoolExecutor(3) as pool:
        results = [result async for result in in_order(numbers(20), slow_when_even, pool=pool, ahead=5)]
    assert results == list(range(20))


async def test_no_more_than_the_given_number_of_items_is_taken_ahead() -> None:
    taken = 0

    async def counted() -> AsyncGenerator[int]:
        nonlocal taken
        async for number in numbers(20):
            taken += 1
            yield number

    with ThreadPoolExecutor(2) as pool:
        async with aclosing(in_order(counted(), str, pool=pool, ahead=4)) as results:
            async for result in results:
                assert taken <= int(result) + 4


async def test_a_step_that_fails_ends_the_iteration_in_its_place_and_closes_the_source() -> None:
    closed: list[str] = []

    def fail_at_three(number: int) -> int:
        if number == 3:
            raise KeyError("three")
        return number

    async with nothing_left_running():
        with ThreadPoolExecutor(2) as pool:
            async with aclosing(in_order(numbers(9, closed), fail_at_three, pool=pool, ahead=3)) as results:
                assert [await anext(results) for _ in range(3)] == [0, 1, 2]
                with pytest.raises(KeyError, match="three"):
                    await anext(results)
    assert closed == ["closed"]


async def test_iterating_in_order_can_be_cancelled_anywhere() -> None:
    async def iterate(closed: list[str]) -> None:
        with ThreadPoolExecutor(2) as pool:
            async with aclosing(in_order(numbers(5, closed), str, pool=pool, ahead=3)) as results:
                async for _ in results:
                    await asyncio.sleep(0)

    async with nothing_left_running():
        for attempt in cancellations():
            closed: list[str] = []
            await attempt(iterate(closed))
            assert closed == ["closed"]


class Blocking:
    """Yields numbers, then blocks until it is stopped."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.stopped = threading.Event()

    def items(self) -> Iterator[int]:
        yield from range(self.count)
        self.stopped.wait()
        raise KeyError("stopped")


async def test_a_blocking_iterator_is_stopped_and_its_thread_ended_on_leaving() -> None:
    blocking = Blocking(3)
    async with nothing_left_running(), in_background(blocking.items(), ahead=2, stop=blocking.stopped.set) as items:
        assert [await anext(items), await anext(items), await anext(items)] == [0, 1, 2]
    assert blocking.stopped.is_set()


async def test_iterating_in_the_background_can_be_cancelled_anywhere() -> None:
    async def iterate(blocking: Blocking) -> None:
        async with in_background(blocking.items(), ahead=2, stop=blocking.stopped.set) as items:
            for _ in range(blocking.count):
                await anext(items)
                await asyncio.sleep(0)

    async with nothing_left_running():
        for attempt in cancellations():
            await attempt(iterate(Blocking(3)))


async def test_a_blocking_iterator_ends_the_iteration_or_fails_it_where_it_does() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise KeyError("why")

    async with in_background(iter([1, 2]), ahead=4, stop=lambda: None) as items:
        assert [item async for item in items] == [1, 2]
    async with in_background(failing(), ahead=4, stop=lambda: None) as items:
        assert await anext(items) == 1
        with pytest.raises(KeyError, match="why"):
            await anext(items)


async def test_stopped_tasks_have_ended_and_whatever_they_raised_is_not_complained_of() -> None:
    ended: list[str] = []

    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            ended.append("ended")
            raise KeyError("on the way out")

    async def failed() -> None:
        raise KeyError("before")

    async with nothing_left_running():
        for attempt in cancellations():
            ended.clear()
            tasks = [asyncio.create_task(stubborn()), asyncio.create_task(failed())]
            await asyncio.sleep(0)
            await attempt(stop_tasks(tasks))
            assert ended == ["ended"]
            assert all(task.done() for task in tasks)


async def test_closing_closes_a_generator_and_leaves_other_iterators_alone() -> None:
    closed: list[str] = []
    async with closing(numbers(3, closed)) as items:
        assert await anext(items) == 0
    assert closed == ["closed"]

    class Plain:
        def __aiter__(self) -> Plain:
            return self

        async def __anext__(self) -> int:
            return 1

    async with closing(Plain()) as plain:
        assert await anext(plain) == 1


async def test_the_helper_finds_a_swallowed_cancellation_a_task_and_a_generator_left_behind() -> None:
    async def swallows() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)

    forgotten: list[asyncio.Task[None]] = []

    async def forgets() -> None:
        forgotten.append(asyncio.create_task(asyncio.sleep(60)))
        await asyncio.sleep(0)

    async def drops() -> None:
        await anext(numbers(3))

    with pytest.raises(AssertionError, match="swallowed"):
        await next(cancellations())(swallows())
    with pytest.raises(AssertionError, match="left running"):
        await next(cancellations())(forgets())
    await stop_tasks(forgotten)
    with pytest.raises(AssertionError, match="nobody closed"):
        async with nothing_left_running():
            await drops()
    with pytest.raises(RuntimeError, match="was not made"):
        list(cancellations())


async def test_the_collector_rests_until_the_last_long_thought_has_ended() -> None:
    first, second = threading.Event(), threading.Event()

    def think(until: threading.Event) -> bool:
        until.wait(10)
        return gc.isenabled()

    def fail() -> None:
        raise KeyError("why")

    one = asyncio.create_task(pondered(think, first))
    other = asyncio.create_task(pondered(think, second))
    while gc.isenabled():
        await asyncio.sleep(0)
    with pytest.raises(KeyError):
        await pondered(fail)
    first.set()
    assert not await one
    assert not gc.isenabled()
    second.set()
    assert not await other
    assert gc.isenabled()
    gc.disable()
    try:
        await pondered(think, first)
        assert not gc.isenabled()
    finally:
        gc.enable()


async def test_the_collector_rests_until_nobody_needs_that_any_more() -> None:
    assert gc.isenabled()
    with uncollected():
        assert await pondered(gc.isenabled) is False
        assert not gc.isenabled()
    assert gc.isenabled()


async def test_what_is_there_after_a_rest_is_old() -> None:
    with uncollected():
        values = [[number] for number in range(100_000)]
    young = sum(len(gc.get_objects(generation)) for generation in (0, 1))
    assert young < len(values) / 10


async def test_what_somebody_froze_stays_frozen() -> None:
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with uncollected():
            pass
        assert gc.get_freeze_count() >= frozen - 100  # some of it is freed by its last user
    finally:
        gc.unfreeze()


async def test_while_very_many_values_are_let_go_others_have_their_turn() -> None:
    values, turns = [[number] for number in range(10_000)], 0

    async def others() -> None:
        nonlocal turns
        while values:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(others())
        tasks.create_task(let_go(values))
    assert not values
    assert turns >= 5


@given(st.lists(st.integers(0, 40), max_size=60))
def test_what_is_sorted_some_at_a_time_is_sorted(values: list[int]) -> None:
    pairs = [(value, number) for number, value in enumerate(values)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("resilience.concurrency.SORTED_AT_ONCE", 7)
        assert in_order_of(pairs, lambda each: (each[0],)) == sorted(pairs, key=lambda each: each[0])
