"""From parts to objects: frames compressed on worker threads, objects as runs of frames, several puts at once."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from concurrent.futures import Executor
from contextlib import aclosing

from attrs import define, field

from resilience.concurrency import in_order, in_thread, stop_tasks
from resilience.model.capture import Part
from resilience.model.manifests import StoredObject, StoredPart
from resilience.primitives import ObjectStore
from resilience.streams.frames import Compressor, Cutter

from . import layout

PUTS_AT_ONCE = 3


@define(kw_only=True)
class Writer:
    """Turns parts into stored objects of about `object_size` bytes, holding a few frames in memory and no more."""

    store: ObjectStore
    prefix: str
    pool: Executor
    ahead: int
    compressor: Compressor
    frame_size: int
    object_size: int

    async def write(self, part: Part) -> StoredPart:
        """Store one part and return its index. On an error or a cancellation no put is left running."""
        cutter = Cutter(self.frame_size)
        compressed = in_order(_cut(part.chunks, cutter), self.compressor, pool=self.pool, ahead=self.ahead)
        async with aclosing(compressed) as frames:
            objects = await self._objects(part.name, _Lookahead(frames))
        return StoredPart(name=part.name, size=cutter.total, frame_size=self.frame_size, objects=objects)

    async def _objects(self, part: str, frames: _Lookahead) -> tuple[StoredObject, ...]:
        puts: list[asyncio.Task[StoredObject]] = []
        at_once = asyncio.Semaphore(PUTS_AT_ONCE)
        try:
            await frames.advance()
            while frames.current is not None:
                run = _Run(frames=frames, limit=self.object_size)
                key = layout.data(self.prefix, part, len(puts))
                await _unless_failed(at_once.acquire(), puts)
                puts.append(asyncio.create_task(self._put(key, run)))
                puts[-1].add_done_callback(lambda _: at_once.release())
                # The next object begins once this one has all its frames, while it is still being made durable.
                await _unless_failed(run.taken.wait(), puts)
            return tuple([await put for put in puts])
        finally:
            await stop_tasks(puts)

    async def _put(self, key: str, run: _Run) -> StoredObject:
        info = await self.store.put(key, run.take())
        return StoredObject(key=key, size=info.size, sha256=run.digest.hexdigest(), frames=tuple(run.lengths))


class _Lookahead:
    """Frames with the next one already known, so that no object is begun for nothing."""

    def __init__(self, frames: AsyncGenerator[bytes]) -> None:
        self._frames = frames
        self.current: bytes | None = None

    async def advance(self) -> None:
        self.current = await anext(self._frames, None)


@define
class _Run:
    """The frames of one object, taken from the part's until `limit` bytes are reached, and digested on the way."""

    frames: _Lookahead
    limit: int
    lengths: list[int] = field(factory=list)
    digest: hashlib._Hash = field(factory=hashlib.sha256)
    taken: asyncio.Event = field(factory=asyncio.Event)

    async def take(self) -> AsyncIterator[bytes]:
        while self.frames.current is not None and sum(self.lengths) < self.limit:
            frame = self.frames.current
            await in_thread(self.digest.update, frame)
            self.lengths.append(len(frame))
            yield frame
            await self.frames.advance()
        self.taken.set()


async def _cut(chunks: AsyncIterator[bytes], cutter: Cutter) -> AsyncIterator[Sequence[bytes | memoryview]]:
    async for chunk in chunks:
        for frame in cutter.feed(chunk):
            yield frame
    for frame in cutter.finish():
        yield frame


async def _unless_failed(event: Coroutine[object, object, object], puts: Sequence[asyncio.Task[StoredObject]]) -> None:
    """Wait for the event, or raise what one of the puts failed with meanwhile."""
    waiting = asyncio.create_task(event)
    try:
        while not waiting.done():
            running = [put for put in puts if not put.done()]
            await asyncio.wait([waiting, *running], return_when=asyncio.FIRST_COMPLETED)
            for put in puts:
                if put.done():
                    put.result()
    finally:
        waiting.cancel()
