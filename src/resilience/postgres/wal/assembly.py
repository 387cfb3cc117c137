"""From a stream to the log: segments put together, slices of the open one in between, durable in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, TypeVar

from attrs import define, field
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_never, wait_random_exponential

from resilience.concurrency import stop_tasks
from resilience.model.errors import Interrupted, LineageBroken, Unavailable
from resilience.model.log import LogEntry, Watermark
from resilience.model.positions import Position
from resilience.postgres.lsn import format_lsn, position
from resilience.primitives import Log

from .messages import Proofs, moment
from .start import Start
from .stream import Wal

T = TypeVar("T")

SEGMENTS_AT_ONCE = 4
BYTES_AT_ONCE = 64 << 20
LONGEST_PAUSE = 10.0
RETRY_SECONDS = 0.2


async def persistently(
    function: Callable[..., Awaitable[T]], *arguments: object, failing: Callable[[BaseException], None]
) -> T:
    """Await a function again and again until it is not Unavailable; `failing` is told each time that it is."""

    def failed(state: RetryCallState) -> None:
        if state.outcome is not None and (error := state.outcome.exception()) is not None:
            failing(error)

    retrying = AsyncRetrying(
        retry=retry_if_exception_type(Unavailable),
        wait=wait_random_exponential(multiplier=RETRY_SECONDS, max=LONGEST_PAUSE),
        stop=stop_never,
        before_sleep=failed,
    )
    return await retrying(function, *arguments)


@define
class _Pending:
    """An entry on its way into the log."""

    entry: LogEntry
    done: asyncio.Task[bool]
    since: float


@define(kw_only=True)
class Assembly:
    """What one stream brings, on one timeline, on its way into the log.

    `add` takes WAL in order and never waits; while `full`, nothing more should come. `moved` is called when more has
    become durable, `failing` when the store fails and the entry is tried again, until it is cancelled.
    """

    log: Log
    start: Start
    segment_size: int
    kept: bytes
    proofs: Proofs = field(factory=Proofs)
    moved: Callable[[], None]
    failing: Callable[[BaseException], None]
    durable: int = field(init=False)
    received: int = field(init=False)
    latest: datetime | None = field(default=None, init=False)
    segments: int = field(default=0, init=False)
    slices: int = field(default=0, init=False)
    broken: asyncio.Future[None] = field(init=False)
    _segment: int = field(init=False)
    _buffer: bytearray = field(init=False)
    _latest: int | None = field(default=None, init=False)
    _cuts: list[int] = field(init=False)
    _queue: deque[_Pending] = field(factory=deque, init=False)

    def __attrs_post_init__(self) -> None:
        """Begin with the segment that the stream begins with."""
        self.broken = asyncio.get_running_loop().create_future()
        self.received = self._segment = self.start.begins
        self.durable = self.start.begins + len(self.kept)
        self._buffer = bytearray(self.segment_size)
        self._cuts = [self.durable]
        if self.start.watermark is not None:
            self.latest = self.start.watermark.latest

    @property
    def branch(self) -> str:
        """The timeline."""
        return str(self.start.timeline)

    @property
    def full(self) -> bool:
        """Whether as many segments are on their way as may be."""
        at_once = max(2, min(SEGMENTS_AT_ONCE, BYTES_AT_ONCE // self.segment_size))
        return sum(pending.entry.segment is None for pending in self._queue) >= at_once

    @property
    def waiting_since(self) -> float | None:
        """Since when, by the loop's clock, the store has had what is to become durable next; None if it has nothing."""
        return self._queue[0].since if self._queue else None

    @property
    def watermark(self) -> Watermark:
        """How far the log is durable."""
        before = self.start.watermark
        begins = position(self.branch, self.start.begins) if before is None else before.begins
        complete = self.proofs.upto(self.durable)
        return Watermark(
            begins=begins,
            ends=self._position(self.durable),
            latest=self.latest,
            complete_at=None if complete is None else moment(complete),
        )

    def add(self, wal: Wal) -> None:
        """Take in what comes next. Raises LineageBroken if it is not what the archive has."""
        self._compare(wal)
        view = memoryview(wal.data)
        while view:
            at = self.received - self._segment
            piece = view[: self.segment_size - at]
            self._buffer[at : at + len(piece)] = piece
            self.received += len(piece)
            self._latest = wal.latest if self._latest is None else max(self._latest, wal.latest)
            view = view[len(piece) :]
            if self.received == self._segment + self.segment_size:
                self._complete()

    def cut(self) -> None:
        """Send what the open segment has grown by on its way as a slice, unless one is on its way already.

        Number k of a segment covers what the last lowbit(k) would have, so a reader needs popcount(k) of k slices.
        """
        if not self._grown or any(pending.entry.segment is not None for pending in self._queue):
            return
        number = len(self._cuts)
        begins = self._cuts[number - (number & -number)]
        self._cuts.append(self.received)
        self._send(begins, self.received, segment=self._position(self._segment))

    async def flush(self) -> None:
        """Send everything on its way and wait until it is durable. Raises what appending fails with."""
        while not self.broken.done() and (self._queue or self._grown):
            self.cut()
            waiting: list[asyncio.Future[Any]] = [self.broken, *(pending.done for pending in self._queue)]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if self.broken.done():
            self.broken.result()

    async def close(self) -> None:
        """Stop what is on its way."""
        queue, self._queue = self._queue, deque()
        await stop_tasks(pending.done for pending in queue)
        if self.broken.done():
            self.broken.exception()

    @property
    def _grown(self) -> bool:
        """Whether something came that is in no entry yet."""
        return self.received > max(self._cuts[-1], self.start.durable)

    def _complete(self) -> None:
        self._send(self._segment, self.received, segment=None)
        self._segment = self.received
        self._buffer = bytearray(self.segment_size)
        self._cuts, self._latest = [self.received], None

    def _send(self, begins: int, ends: int, *, segment: Position | None) -> None:
        complete = self.proofs.peek(ends)
        entry = LogEntry(
            begins=self._position(begins),
            ends=self._position(ends),
            segment=segment,
            latest=None if self._latest is None else moment(self._latest),
            complete_at=None if complete is None else moment(complete),
        )
        data = memoryview(self._buffer)[begins - self._segment : ends - self._segment]
        done = asyncio.create_task(self._append(entry, data))
        self._queue.append(_Pending(entry, done, asyncio.get_running_loop().time()))
        done.add_done_callback(self._advance)

    async def _append(self, entry: LogEntry, data: memoryview) -> bool:
        return await persistently(self.log.append, entry, [data], failing=self.failing)

    def _advance(self, _: asyncio.Task[bool]) -> None:
        """Move on past all entries that are in the log, in order; one that is ahead of its turn waits.

        Behind one that failed nothing is durable without a hole, whatever of it gets into the log yet.
        """
        before = self.durable
        while not self.broken.done() and self._queue and self._queue[0].done.done():
            pending = self._queue.popleft()
            if (error := _failure(pending)) is not None:
                self.broken.set_exception(error)
                break
            self.durable = max(self.durable, pending.entry.ends.offset)
            self.latest = pending.entry.latest
            self.segments += pending.entry.segment is None
            self.slices += pending.entry.segment is not None
        if self.durable > before:
            self.moved()

    def _compare(self, wal: Wal) -> None:
        """Compare what is streamed again with what the archive has of the open segment."""
        at = wal.begins - self.start.begins
        if at >= len(self.kept):
            return
        kept = self.kept[at : at + len(wal.data)]
        if wal.data[: len(kept)] != kept:
            differs = next(n for n, (ours, theirs) in enumerate(zip(kept, wal.data, strict=False)) if ours != theirs)
            raise LineageBroken(
                f"from {format_lsn(wal.begins + differs)} on, timeline {self.branch} of the server has other bytes "
                "than the archive",
                operation="archive wal",
                subject=self.log.lineage,
                hint="the server lost WAL, or another one is archived under this name: archive it under a new name",
            )

    def _position(self, offset: int) -> Position:
        return position(self.branch, offset)


def _failure(pending: _Pending) -> BaseException | None:
    """Return why an entry is not in the log; None if it is. Only what appends it could have cancelled it."""
    if pending.done.cancelled():
        return Interrupted("the store gave up an entry", operation="archive wal", subject=str(pending.entry))
    return pending.done.exception()
