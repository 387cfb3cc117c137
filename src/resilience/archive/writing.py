"""From parts to objects: frames compressed and sealed on threads, objects as runs of frames, several puts at once."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import aclosing

from attrs import define, field

from resilience.concurrency import closing, in_order, stop_tasks
from resilience.model.capture import Part
from resilience.model.errors import StorageFailed
from resilience.model.manifests import StoredObject, StoredPart
from resilience.primitives import ObjectStore
from resilience.streams.frames import Compressor, Cutter
from resilience.streams.seals import TAG_SIZE, Sealer

from . import layout

PUTS_AT_ONCE = 2
SEALED_AHEAD = 2
"""Frames ready to be sent. With fewer the event loop waits for one, and then everybody for the event loop."""


@define(kw_only=True)
class Writer:
    """Turns parts into stored objects of about `object_size` bytes, holding a few frames in memory and no more.

    `sealer` makes what seals the frames of a part, from its name and its number; no two parts, nor two attempts at one,
    get the same number. None: they are not sealed.
    """

    store: ObjectStore
    prefix: str
    pool: Executor
    ahead: int
    compressor: Compressor
    frame_size: int
    object_size: int
    sealer: Callable[[str, int], Sealer] | None = None
    _begun: int = field(default=0, init=False)

    async def write(self, part: Part) -> StoredPart:
        """Store one part and return its index. On an error or a cancellation no put is left running."""
        number, self._begun = self._begun, self._begun + 1
        sealer = self.sealer and self.sealer(part.name, number)
        cutter = Cutter(self.frame_size)
        compressed = in_order(_cut(part.chunks, cutter), self.compressor, pool=self.pool, ahead=self.ahead)
        with ThreadPoolExecutor(1, "resilience-seals") as thread:
            async with aclosing(compressed) as frames:
                objects = await self._objects(part.name, _Lookahead(frames, cutter), sealer, thread)
        return StoredPart(name=part.name, number=number, size=cutter.total, frame_size=self.frame_size, objects=objects)

    async def _objects(
        self, part: str, frames: _Lookahead, sealer: Sealer | None, thread: Executor
    ) -> tuple[StoredObject, ...]:
        puts: list[asyncio.Task[StoredObject]] = []
        try:
            await frames.advance()
            while frames.current is not None:
                while len(running := _running(puts)) >= PUTS_AT_ONCE:
                    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                run = _Run(frames=frames, limit=self.object_size, number=len(puts), sealer=sealer, thread=thread)
                put = asyncio.create_task(self._put(layout.data(self.prefix, part, len(puts)), run))
                puts.append(put)
                # The next object begins once this one has all its frames, while it is still being made durable.
                while not (run.taken.done() or put.done()):
                    either: list[asyncio.Future[None] | asyncio.Task[StoredObject]] = [run.taken, *_running(puts)]
                    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return tuple(await asyncio.gather(*puts))
        finally:
            await stop_tasks(puts)

    async def _put(self, key: str, run: _Run) -> StoredObject:
        async with aclosing(run.take()) as frames:
            info = await self.store.put(key, frames)
        if not run.taken.done() or info.size != run.size:
            text = f"the store kept {info.size} bytes where it was given {run.size} or more"
            raise StorageFailed(text, operation="put", subject=key)
        return StoredObject(key=key, size=info.size, sha256=run.digest.hexdigest(), frames=tuple(run.lengths))


def _running(puts: Sequence[asyncio.Task[StoredObject]]) -> list[asyncio.Task[StoredObject]]:
    """Return the puts that still run, or raise what one of the others failed with."""
    for put in puts:
        if put.done():
            put.result()
    return [put for put in puts if not put.done()]


class _Lookahead:
    """Frames with the next one already known, so that no object is begun for nothing; `number` is that one's."""

    def __init__(self, frames: AsyncGenerator[bytes], cutter: Cutter) -> None:
        self._frames = frames
        self._cutter = cutter
        self.current: bytes | None = None
        self.number = -1

    @property
    def last(self) -> bool:
        """Whether no frame follows: the cutter has counted them once it has yielded the last one."""
        return self._cutter.frames == self.number + 1

    async def advance(self) -> None:
        self.current = await anext(self._frames, None)
        self.number += 1


@define(kw_only=True)
class _Placed:
    """A frame and where it belongs. Whoever seals it takes it out, so that it is not kept in memory."""

    frame: bytes
    number: int
    last: bool


@define(kw_only=True)
class _Run:
    """The frames of one object, taken from the part's until it has `limit` bytes, sealed and digested on the way.

    `size` and `lengths` are of all frames that were taken, those that still wait for the store among them.
    """

    frames: _Lookahead
    limit: int
    number: int
    sealer: Sealer | None
    thread: Executor
    lengths: list[int] = field(factory=list)
    size: int = 0
    digest: hashlib._Hash = field(factory=hashlib.sha256)
    taken: asyncio.Future[None] = field(factory=lambda: asyncio.get_running_loop().create_future())

    async def take(self) -> AsyncGenerator[bytes]:
        """Yield the frames. Some are sealed and digested ahead, one after the other: the event loop has no pauses."""
        async with aclosing(in_order(self._placed(), self._finished, pool=self.thread, ahead=SEALED_AHEAD)) as frames:
            async for frame in frames:
                yield frame
                del frame

    async def _placed(self) -> AsyncGenerator[_Placed]:
        while self.frames.current is not None and self.size < self.limit:
            placed = _Placed(frame=self.frames.current, number=self.frames.number, last=self.frames.last)
            self.lengths.append(len(placed.frame) + (TAG_SIZE if self.sealer else 0))
            self.size += self.lengths[-1]
            await self.frames.advance()
            yield placed
        self.taken.set_result(None)

    def _finished(self, placed: _Placed) -> bytes:
        frame, placed.frame = placed.frame, b""
        if self.sealer is not None:
            frame = self.sealer.seal(frame, number=placed.number, object=self.number, last=placed.last)
        self.digest.update(frame)
        return frame


async def _cut(chunks: AsyncIterator[bytes], cutter: Cutter) -> AsyncGenerator[Sequence[bytes | memoryview]]:
    async with closing(chunks) as pieces:
        async for piece in pieces:
            for frame in cutter.feed(piece):
                yield frame
    for frame in cutter.finish():
        yield frame
