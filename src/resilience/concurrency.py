"""Threads and tasks that never outlive the code that started them.

Work of more than a few milliseconds leaves the event loop through these functions; each waits for its thread when it is
cancelled, so that nothing writes to a file or reads a socket that has been closed meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for_threads
from contextlib import asynccontextmanager
from typing import ParamSpec, TypeVar

S = TypeVar("S")
T = TypeVar("T")
P = ParamSpec("P")


async def finish(effect: Awaitable[T]) -> T:
    """Await `effect` to its end even if the caller is cancelled meanwhile; the cancellation is raised afterwards."""
    task = asyncio.ensure_future(effect)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if not task.done():
                cancelled = error
        except BaseException:  # noqa: BLE001  # raised below, by task.result()
            break
    if cancelled is not None:
        if not task.cancelled():
            task.exception()
        raise cancelled
    return task.result()


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a blocking function in a thread and wait for it, even if cancelled meanwhile."""
    return await finish(asyncio.to_thread(function, *args, **kwargs))


async def in_order(
    source: AsyncIterator[S], step: Callable[[S], T], *, pool: Executor, ahead: int
) -> AsyncGenerator[T]:
    """Apply `step` to every item on the pool's threads, at most `ahead` at once; yield the results in order."""
    pending: deque[Future[T]] = deque()
    try:
        async for item in source:
            pending.append(pool.submit(step, item))
            if len(pending) >= ahead:
                yield await asyncio.wrap_future(pending[0])
                pending.popleft()
        while pending:
            yield await asyncio.wrap_future(pending[0])
            pending.popleft()
    finally:
        await _abandon(pending)


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

        async def items() -> AsyncIterator[T]:
            while True:
                while len(pending) < ahead:
                    pending.append(thread.submit(step))
                boxed = await asyncio.wrap_future(pending[0])
                pending.popleft()
                if boxed is None:
                    return
                yield boxed[0]

        try:
            yield items()
        finally:
            stop()
            await _abandon(pending)


async def _abandon(pending: Iterable[Future[T]]) -> None:
    running = [future for future in pending if not future.cancel()]
    if running:
        await in_thread(wait_for_threads, running)


async def stop_tasks(tasks: Iterable[asyncio.Task[T]]) -> None:
    """Cancel tasks and wait until every one of them has ended."""
    running = [task for task in tasks if not task.done()]
    for task in running:
        task.cancel()
    if running:
        await finish(asyncio.wait(running))
