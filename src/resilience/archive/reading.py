"""From objects to parts: objects fetched ahead, frames verified and expanded on worker threads, handed over in order."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from concurrent.futures import Executor
from contextlib import aclosing, asynccontextmanager

from attrs import define, field, frozen

from resilience.concurrency import in_order, in_thread, stop_tasks
from resilience.model.errors import ChecksumMismatch, Corrupt, ManifestInvalid
from resilience.model.manifests import Manifest, StoredObject, StoredPart
from resilience.primitives import ObjectStore
from resilience.streams.frames import expand

OBJECTS_AHEAD = 2
FRAMES_AHEAD = 4


@frozen
class _Frame:
    stored: bytes
    size: int
    key: str


@define(kw_only=True)
class Reader:
    """An open backup; `verified` collects the keys of the objects whose every byte has been read and matched."""

    store: ObjectStore
    manifest: Manifest
    pool: Executor
    ahead: int
    verified: set[str] = field(factory=set)

    @asynccontextmanager
    async def read(self, part: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a part; its frames come in order, each verified. Raises Corrupt naming the object, also while iterated."""
        try:
            stored = self.manifest.part(part)
        except KeyError:
            raise ManifestInvalid(f"it has no part {part!r}", operation="read", subject=self.manifest.id) from None
        async with aclosing(self._fetched(stored)) as frames:
            async with aclosing(in_order(frames, _expand, pool=self.pool, ahead=self.ahead)) as plain:
                yield plain

    async def _fetched(self, part: StoredPart) -> AsyncGenerator[_Frame]:
        waiting = deque(_objects_of(part))
        fetching: deque[asyncio.Task[None]] = deque()
        queues: deque[asyncio.Queue[_Frame | None]] = deque()
        try:
            while waiting or fetching:
                while waiting and len(fetching) < OBJECTS_AHEAD:
                    queues.append(asyncio.Queue(FRAMES_AHEAD))
                    fetching.append(asyncio.create_task(self._fetch(*waiting.popleft(), queues[-1])))
                while (frame := await queues[0].get()) is not None:
                    yield frame
                await fetching[0]
                fetching.popleft()
                queues.popleft()
        finally:
            await stop_tasks(fetching)

    async def _fetch(self, stored: StoredObject, sizes: list[int], into: asyncio.Queue[_Frame | None]) -> None:
        try:
            await self._fetch_frames(stored, sizes, into)
        except Exception:
            await into.put(None)
            raise
        await into.put(None)

    async def _fetch_frames(self, stored: StoredObject, sizes: list[int], into: asyncio.Queue[_Frame | None]) -> None:
        digest = hashlib.sha256()
        async with self.store.get(stored.key) as chunks:
            async for frame, size in _frames(chunks, stored, sizes):
                await in_thread(digest.update, frame)
                await into.put(_Frame(frame, size, stored.key))
        if digest.hexdigest() != stored.sha256:
            raise _damaged(stored.key, "its sha256 is not what the manifest says")
        self.verified.add(stored.key)


async def _frames(
    chunks: AsyncIterator[bytes], stored: StoredObject, sizes: list[int]
) -> AsyncIterator[tuple[bytes, int]]:
    """Cut an object's bytes into its frames; refuse it if it is shorter or longer than the manifest says."""
    held = bytearray()
    for length, size in zip(stored.frames, sizes, strict=True):
        while len(held) < length:
            chunk = await anext(chunks, None)
            if chunk is None:
                raise _damaged(stored.key, f"it ends early, {stored.size} bytes were stored")
            held += chunk
        yield bytes(memoryview(held)[:length]), size
        del held[:length]
    if held or await anext(chunks, None) is not None:
        raise _damaged(stored.key, f"it goes on after the {stored.size} bytes that were stored")


def _objects_of(part: StoredPart) -> Iterator[tuple[StoredObject, list[int]]]:
    """Pair every object with the plain sizes of its frames; all but the part's last frame are full."""
    rest = part.size
    for stored in part.objects:
        sizes = []
        for _ in stored.frames:
            sizes.append(min(rest, part.frame_size))
            rest -= sizes[-1]
        if sum(stored.frames) != stored.size:
            raise ManifestInvalid("its frames do not add up to its size", operation="read", subject=stored.key)
        yield stored, sizes
    if rest:
        raise ManifestInvalid(f"{rest} bytes of {part.name} are in no object", operation="read", subject=part.name)


def _expand(frame: _Frame) -> bytes:
    try:
        return expand(frame.stored, frame.size)
    except Corrupt as error:
        raise _damaged(frame.key, error.what) from error


def _damaged(key: str, what: str) -> ChecksumMismatch:
    return ChecksumMismatch(what, operation="read", subject=key)
