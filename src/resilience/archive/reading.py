"""From objects to parts: objects fetched ahead, frames opened and expanded on worker threads, given in order."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from contextlib import aclosing, asynccontextmanager
from functools import partial

from attrs import define, frozen

from resilience.concurrency import in_order, in_thread, stop_tasks
from resilience.model.errors import ChecksumMismatch, Corrupt, KeyMissing, ManifestInvalid, SealBroken, Unsupported
from resilience.model.findings import Examined, Level
from resilience.model.manifests import Manifest, StoredObject, StoredPart
from resilience.primitives import ObjectStore
from resilience.streams.frames import expand
from resilience.streams.seals import Sealer

from . import layout
from .records import Records
from .small import whole

OBJECTS_AHEAD = 2
FRAMES_AHEAD = 2


@frozen
class _Planned:
    """An object of a part, the plain sizes of its frames, and the number of the first of them."""

    stored: StoredObject
    number: int
    sizes: list[int]
    first: int


@frozen(kw_only=True)
class _Frame:
    stored: bytes
    size: int
    key: str
    number: int
    object: int
    last: bool


@define(kw_only=True)
class Reader:
    """An open backup; see `primitives.StoredBackup`. `sealer` makes what opens the sealed frames of a part."""

    store: ObjectStore
    records: Records
    sealer: Callable[[StoredPart], Sealer] | None
    manifest: Manifest
    pool: Executor
    ahead: int

    @asynccontextmanager
    async def read(self, part: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a part; its frames come in order, each verified. Iterating raises Corrupt, naming the object."""
        try:
            stored = self.manifest.part(part)
        except KeyError:
            raise ManifestInvalid(f"it has no part {part!r}", operation="read", subject=self.manifest.id) from None
        frames = self._fetched(stored)
        expanded = partial(_expand, self.sealer and self.sealer(stored))
        async with aclosing(in_order(frames, expanded, pool=self.pool, ahead=self.ahead)) as plain:
            yield plain

    async def examine(self, level: Level) -> AsyncIterator[Examined]:
        """Look at every object; see `StoredBackup.examine`. Raises Unavailable if the store does not answer."""
        yield await self._own_manifest()
        for part in self.manifest.parts:
            for stored in part.objects:
                try:
                    yield await (self._stat(stored) if level == Level.EXISTS else self._digest(stored))
                except Corrupt as error:
                    yield Examined(key=stored.key, bytes=0, problem=error.what)

    async def _own_manifest(self) -> Examined:
        key = layout.manifest(self.manifest.system, self.manifest.target, self.manifest.id)
        data = await whole(self.store, key)
        if data is None:
            return Examined(key=key, bytes=0, problem="the manifest is not in the store, so the backup does not exist")
        try:
            found = await self.records.unwrapped(key, data, Manifest)
            problem = "" if found == self.manifest else "it is not the manifest that was asked about"
        except (Corrupt, Unsupported, KeyMissing) as error:
            problem = error.what
        return Examined(key=key, bytes=len(data), problem=problem)

    async def _stat(self, stored: StoredObject) -> Examined:
        info = await self.store.stat(stored.key)
        if info is None:
            return Examined(key=stored.key, bytes=0, problem="it is not in the store")
        problem = "" if info.size == stored.size else f"it has {info.size} bytes, {stored.size} were stored"
        return Examined(key=stored.key, bytes=0, problem=problem)

    async def _digest(self, stored: StoredObject) -> Examined:
        digest, size = hashlib.sha256(), 0
        async with self.store.get(stored.key) as chunks:
            async for chunk in chunks:
                await in_thread(digest.update, chunk)
                size += len(chunk)
        problem = "" if digest.hexdigest() == stored.sha256 else "its sha256 is not what the manifest says"
        return Examined(key=stored.key, bytes=size, problem=problem)

    async def _fetched(self, part: StoredPart) -> AsyncGenerator[_Frame]:
        waiting = deque(await in_thread(list, _objects_of(part)))
        frames = sum(len(planned.sizes) for planned in waiting)
        fetching: deque[asyncio.Task[None]] = deque()
        queues: deque[asyncio.Queue[_Frame | None]] = deque()
        try:
            while waiting or fetching:
                while waiting and len(fetching) < OBJECTS_AHEAD:
                    queues.append(asyncio.Queue(FRAMES_AHEAD))
                    fetching.append(asyncio.create_task(self._fetch(waiting.popleft(), frames, queues[-1])))
                while (frame := await queues[0].get()) is not None:
                    yield frame
                    del frame
                await fetching[0]
                fetching.popleft()
                queues.popleft()
        finally:
            await stop_tasks(fetching)

    async def _fetch(self, planned: _Planned, frames: int, into: asyncio.Queue[_Frame | None]) -> None:
        try:
            await self._fetch_frames(planned, frames, into)
        except Exception:
            await into.put(None)
            raise
        await into.put(None)

    async def _fetch_frames(self, planned: _Planned, total: int, into: asyncio.Queue[_Frame | None]) -> None:
        digest, stored, number = hashlib.sha256(), planned.stored, planned.first
        async with self.store.get(stored.key) as chunks, aclosing(_frames(chunks, stored, planned.sizes)) as frames:
            async for data, size in frames:
                await in_thread(digest.update, data)
                last = number + 1 == total
                await into.put(
                    _Frame(stored=data, size=size, key=stored.key, number=number, object=planned.number, last=last)
                )
                del data  # or it would stay in memory until the next one is there
                number += 1
        if digest.hexdigest() != stored.sha256:
            raise _damaged(stored.key, "its sha256 is not what the manifest says")


async def _frames(
    chunks: AsyncIterator[bytes], stored: StoredObject, sizes: list[int]
) -> AsyncGenerator[tuple[bytes, int]]:
    """Cut an object's bytes into its frames; refuse it if it is shorter or longer than the manifest says."""
    rest = memoryview(b"")
    for length, size in zip(stored.frames, sizes, strict=True):
        pieces, missing = [], length
        while missing:
            if not rest:
                chunk = await anext(chunks, None)
                if chunk is None:
                    raise _damaged(stored.key, f"it ends early, {stored.size} bytes were stored")
                rest = memoryview(chunk)
            piece, rest = rest[:missing], rest[missing:]
            pieces.append(piece)
            missing -= len(piece)
        yield b"".join(pieces), size
    if rest or await anext(chunks, None) is not None:
        raise _damaged(stored.key, f"it goes on after the {stored.size} bytes that were stored")


def _objects_of(part: StoredPart) -> Iterator[_Planned]:
    """Find the plain sizes of every object's frames; all but the part's last frame are full."""
    rest, first = part.size, 0
    for number, stored in enumerate(part.objects):
        sizes = []
        for _ in stored.frames:
            sizes.append(min(rest, part.frame_size))
            rest -= sizes[-1]
        if sum(stored.frames) != stored.size:
            raise ManifestInvalid("its frames do not add up to its size", operation="read", subject=stored.key)
        yield _Planned(stored, number, sizes, first)
        first += len(sizes)
    if rest:
        raise ManifestInvalid(f"{rest} bytes of {part.name} are in no object", operation="read", subject=part.name)


def _expand(sealer: Sealer | None, frame: _Frame) -> bytes:
    stored = frame.stored
    try:
        if sealer is not None:
            stored = sealer.open(stored, number=frame.number, object=frame.object, last=frame.last)
        return expand(stored, frame.size)
    except SealBroken as error:
        raise SealBroken(error.what, operation="read", subject=frame.key) from error
    except Corrupt as error:
        raise _damaged(frame.key, error.what) from error


def _damaged(key: str, what: str) -> ChecksumMismatch:
    return ChecksumMismatch(what, operation="read", subject=key)
