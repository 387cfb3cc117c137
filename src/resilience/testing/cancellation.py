"""Cancels a coroutine at every one of its await points, one after another, and looks for what it leaves running."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Generator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def cancellations(*, step: int = 1) -> Iterator[Attempt]:
    """Yield attempts, each cancelling the coroutine it is given one await point later, until there is none left.

    The await points of the tasks it starts count too. Twice: first the moment something begins to wait, then the moment
    what it waited for has come, so that a result may be lost. Each attempt must be called once, with a fresh coroutine
    that does the same:

        for attempt in cancellations():
            store = MemoryStore()
            await attempt(store.put("key", [b"data"]))
            assert ...

    `step` skips await points, where there are very many.
    """
    for late in (False, True):
        at = 1
        while True:
            attempt = Attempt(at=at, late=late)
            yield attempt
            if attempt.completed:
                break
            at += step


class Attempt:
    """One run of a coroutine, cancelled at await point number `at`; afterwards `completed` if there are fewer."""

    def __init__(self, *, at: int, late: bool) -> None:
        self.at = at
        self.late = late
        self._waits = 0
        self._cancelled = False
        self._task: asyncio.Task[object] | None = None

    def __repr__(self) -> str:
        return f"Attempt(at={self.at}, late={self.late})"

    @property
    def completed(self) -> bool:
        """Whether the coroutine ran to its end, because it never came to this await point."""
        if self._task is None:
            raise RuntimeError("an attempt was not made: call it with a coroutine")
        return not self._cancelled

    async def __call__(self, coroutine: Coroutine[object, object, object]) -> bool:
        """Run the coroutine in a task of its own and return `completed`.

        Raises what the coroutine raises, except the cancellation; AssertionError if it swallowed the cancellation or
        left a task or a thread running.
        """
        loop, found = asyncio.get_running_loop(), _Running.now()
        factory = loop.get_task_factory()
        loop.set_task_factory(self._start)
        try:
            self._task = asyncio.create_task(coroutine)
            await asyncio.wait([self._task])
        finally:
            loop.set_task_factory(factory)
        if not self._task.cancelled():
            self._task.result()
        if self._task.cancelled() != self._cancelled:
            raise AssertionError(f"{self}: the cancellation was {'swallowed' if self._cancelled else 'not asked for'}")
        _Running.now().compare(found, str(self))
        return self.completed

    def waits(self, awaited: object) -> None:
        """Count a task that is about to wait, and cancel if it is the one."""
        self._waits += 1
        if self._waits != self.at:
            return
        if self.late and isinstance(awaited, asyncio.Future):
            # Called before the waiting task's own callback: it is cancelled with its result already on the way.
            awaited.add_done_callback(self._cancel)
        else:
            self._cancel()

    def _cancel(self, _: object = None) -> None:
        if self._task is not None and not self._task.done():
            self._cancelled = True
            self._task.cancel()

    def _start(
        self,
        loop: asyncio.AbstractEventLoop,
        coroutine: Coroutine[object, object, T] | Generator[object, None, T],
        **options: Any,  # noqa: ANN401  # whatever this version of asyncio hands on
    ) -> asyncio.Task[T]:
        task = asyncio.Task(_wait(_Watched(coroutine, self)), loop=loop, **options)
        # A task that is cancelled before it begins never awaits what it was given, and the garbage collector may come
        # to that before it comes to us.
        task.add_done_callback(lambda _: coroutine.close())
        return task


class _Watched(Generic[T]):
    """Runs a coroutine like `await` does and tells whenever it waits."""

    def __init__(self, steps: Coroutine[object, object, T] | Generator[object, None, T], attempt: Attempt) -> None:
        self._steps = steps
        self._attempt = attempt

    def __del__(self) -> None:
        self._steps.close()  # a task that is cancelled before it begins never awaits us

    def __await__(self) -> Generator[object, None, T]:
        thrown: BaseException | None = None
        while True:
            try:
                awaited = self._steps.send(None) if thrown is None else self._steps.throw(thrown)
            except StopIteration as end:
                result: T = end.value
                return result
            thrown = None
            self._attempt.waits(awaited)
            try:
                yield awaited
            except BaseException as error:  # noqa: BLE001  # it is thrown into the coroutine
                thrown = error


async def _wait(watched: _Watched[T]) -> T:
    return await watched


class _Running:
    """The tasks and threads there are; the event loop's own helper threads do not count."""

    def __init__(self, tasks: set[asyncio.Task[object]], threads: set[threading.Thread]) -> None:
        self.tasks = tasks
        self.threads = threads

    @classmethod
    def now(cls) -> _Running:
        threads = {thread for thread in threading.enumerate() if not thread.name.startswith(("asyncio_", "asyncio-"))}
        return cls({task for task in asyncio.all_tasks() if not task.done()}, threads)

    def compare(self, before: _Running, when: str) -> None:
        left: set[object] = {*(self.tasks - before.tasks), *(self.threads - before.threads)}
        if left:
            raise AssertionError(f"{when}: left running: {left}")


@asynccontextmanager
async def nothing_left_running() -> AsyncIterator[None]:
    """Raise AssertionError on leaving if something was left to others.

    That is a task or a thread that still runs, an asynchronous generator that only the garbage collector would have
    closed, or an exception that nobody looked at.
    """
    loop = asyncio.get_running_loop()
    complaints: list[str] = []
    handler, hooks = loop.get_exception_handler(), sys.get_asyncgen_hooks()

    def finalize(generator: AsyncGenerator[object, None]) -> None:
        complaints.append(f"nobody closed {generator!r}")
        if hooks.finalizer is not None:
            hooks.finalizer(generator)

    loop.set_exception_handler(lambda _, context: complaints.append(str(context)))
    sys.set_asyncgen_hooks(finalizer=finalize)
    before = _Running.now()
    gc.freeze()  # collecting what is new is enough, and takes no time beside all that a test session holds
    try:
        yield
        gc.collect()
        await asyncio.sleep(0)
    finally:
        gc.unfreeze()
        loop.set_exception_handler(handler)
        sys.set_asyncgen_hooks(finalizer=hooks.finalizer)
    if complaints:
        raise AssertionError("; ".join(complaints))
    _Running.now().compare(before, "at the end")
