"""Threads and tasks that never outlive the code that started them.

Work of more than a few milliseconds leaves the event loop through these functions; each waits for its thread when it is
cancelled, so that nothing writes to a file or reads a socket that has been closed meanwhile.
"""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for_threads
from contextlib import aclosing, asynccontextmanager, contextmanager
from datetime import datetime
from functools import partial
from heapq import merge
from threading import Lock
from typing import ParamSpec, TypeAlias, TypeVar

S = TypeVar("S")
T = TypeVar("T")
P = ParamSpec("P")


async def finish(effect: Awaitable[T]) -> T:
    """Await `effect` to its end even if the caller is cancelled meanwhile; the cancellation is raised afterwards."""
    task = asyncio.ensure_future(effect)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        _forget(task)
        raise cancelled
    return task.result()


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a blocking function in a thread and wait for it, even if cancelled meanwhile."""
    return await finish(asyncio.to_thread(function, *args, **kwargs))


async def pondered(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that makes very many values, in a thread, while the collector of cyclic garbage rests."""
    return await in_thread(_uncollected, partial(function, *args, **kwargs))


def _uncollected(function: Callable[[], T]) -> T:
    with uncollected():
        return function()


@contextmanager
def uncollected() -> Iterator[None]:
    """Let the collector of cyclic garbage rest while very many values are made.

    A collection of a million values holds every thread up for a second. It rests for the whole process, until nobody
    needs that any more, and only if it did not rest already. What is still there then it takes for old: it comes by
    that when it looks at everything, and not three times before.
    """
    with _rests:
        _resting.append(_resting[0] if _resting else gc.isenabled())
        gc.disable()
    try:
        yield
    finally:
        with _rests:
            if _resting.pop() and not _resting:
                if not gc.get_freeze_count():  # whoever froze something wants it to stay so
                    gc.freeze()
                    gc.unfreeze()
                gc.enable()


async def let_go(values: list[T]) -> None:
    """Empty a list of very many values piece by piece; freeing a million at once holds every thread up."""
    while values:
        del values[-FREED_AT_ONCE:]
        await asyncio.sleep(0)


def in_order_of(values: Sequence[T], key: Callable[[T], Comparable]) -> list[T]:
    """Sort very many values some at a time: while a list is sorted no other thread runs."""
    if len(values) <= SORTED_AT_ONCE:
        return sorted(values, key=key)
    some = range(0, len(values), SORTED_AT_ONCE)
    return list(merge(*[sorted(values[at : at + SORTED_AT_ONCE], key=key) for at in some], key=key))


Comparable: TypeAlias = str | tuple[str | int | datetime, ...]
FREED_AT_ONCE = 1000
SORTED_AT_ONCE = 5000
_rests = Lock()
_resting: list[bool] = []
"""One for each who needs it: whether the collector was at work before the first of them."""


@asynccontextmanager
async def closing(items: AsyncIterator[T]) -> AsyncGenerator[AsyncIterator[T]]:
    """Close an iterator on leaving, if it is one that can be closed: a generator's cleanup must not wait for the GC."""
    try:
        yield items
    finally:
        if isinstance(items, AsyncGenerator):
            await items.aclose()


async def in_order(
    source: AsyncIterator[S], step: Callable[[S], T], *, pool: Executor, ahead: int
) -> AsyncGenerator[T]:
    """Apply `step` to every item on the pool's threads, at most `ahead` at once; yield the results in order.

    Once iterated, it also closes `source`.
    """
    pending: deque[Future[T]] = deque()
    async with closing(source) as items:
        try:
            async for item in items:
                pending.append(pool.submit(step, item))
                if len(pending) >= ahead:
                    yield await asyncio.wrap_future(pending[0])
                    pending.popleft()
            while pending:
                yield await asyncio.wrap_future(pending[0])
                pending.popleft()
        finally:
            await _abandon(pending)


async def awaited_in_order(
    source: AsyncIterator[S], step: Callable[[S], Coroutine[object, object, T]], *, ahead: int
) -> AsyncGenerator[T]:
    """Await `step` of every item, at most `ahead` of them at once; yield the results in order.

    What a step raises is raised in its turn; on leaving no step is left running. Once iterated, it also closes
    `source`.
    """
    pending: deque[asyncio.Task[T]] = deque()
    async with closing(source) as items:
        try:
            async for item in items:
                pending.append(asyncio.create_task(step(item)))
                if len(pending) >= ahead:
                    yield await pending[0]
                    pending.popleft()
            while pending:
                yield await pending[0]
                pending.popleft()
        finally:
            await stop_tasks(pending)


async def each_in_thread(source: AsyncIterator[S], step: Callable[[S], object]) -> None:
    """Call a blocking function with every item, in order, in a thread that finds the next item waiting.

    Also closes `source`.
    """
    with ThreadPoolExecutor(1) as thread:
        async with aclosing(in_order(source, step, pool=thread, ahead=2)) as steps:
            async for _ in steps:
                continue


@asynccontextmanager
async def in_background(
    blocking: Iterator[T], *, ahead: int, stop: Callable[[], None]
) -> AsyncGenerator[AsyncIterator[T]]:
    """Iterate a blocking iterator in a thread of its own, `ahead` items before they are asked for.

    `stop` must make a blocked `next()` return or raise soon; it is called, and the thread waited for, on leaving.
    """
    with ThreadPoolExecutor(1) as thread:
        pending: deque[Future[tuple[T] | None]] = deque()

        def step() -> tuple[T] | None:
            for item in blocking:
                return (item,)
            return None

        async def items() -> AsyncGenerator[T]:
            while True:
                while len(pending) < ahead:
                    pending.append(thread.submit(step))
                boxed = await asyncio.wrap_future(pending[0])
                pending.popleft()
                if boxed is None:
                    return
                yield boxed[0]

        try:
            async with aclosing(items()) as iterating:
                yield iterating
        finally:
            stop()
            await _abandon(pending)


async def _abandon(pending: Iterable[Future[T]]) -> None:
    running = [future for future in pending if not future.cancel()]
    if running:
        await in_thread(wait_for_threads, running)


async def stop_tasks(tasks: Iterable[asyncio.Task[T]]) -> None:
    """Cancel tasks and wait until every one of them has ended; what they raise is nobody's business any more."""
    tasks = list(tasks)
    running = [task for task in tasks if not task.done()]
    for task in running:
        task.cancel()
    try:
        if running:
            await finish(asyncio.wait(running))
    finally:
        for task in tasks:
            _forget(task)


def _forget(task: asyncio.Future[T]) -> None:
    """Look at how a task ended, or asyncio would complain that nobody did."""
    if not task.cancelled():
        task.exception()
