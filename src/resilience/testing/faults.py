"""Stores that fail when they are told to, and objects that are not what they were."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from attrs import define

from resilience.concurrency import closing
from resilience.primitives import Chunks, ObjectInfo, ObjectStore
from resilience.stores.keys import each

Change = Callable[[bytes], bytes | None]


@define
class WatchedStore:
    """A store around another: `before` is awaited with the operation and the key first, and may wait, note or raise.

    The operations are `put`, `get`, `list`, `stat` and `delete`, and `chunk` before every chunk that is put.
    """

    store: ObjectStore
    before: Callable[[str, str], Awaitable[None]]

    async def put(self, key: str, chunks: Chunks) -> ObjectInfo:
        """See `ObjectStore.put`."""
        await self.before("put", key)
        return await self.store.put(key, self._watched(key, chunks))

    @asynccontextmanager
    async def get(self, key: str, *, offset: int = 0) -> AsyncGenerator[AsyncIterator[bytes]]:
        """See `ObjectStore.get`."""
        await self.before("get", key)
        async with self.store.get(key, offset=offset) as chunks:
            yield chunks

    async def list(self, prefix: str) -> AsyncGenerator[ObjectInfo]:
        """See `ObjectStore.list`."""
        await self.before("list", prefix)
        async with closing(self.store.list(prefix)) as infos:
            async for info in infos:
                yield info

    async def stat(self, key: str) -> ObjectInfo | None:
        """See `ObjectStore.stat`."""
        await self.before("stat", key)
        return await self.store.stat(key)

    async def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        await self.before("delete", key)
        await self.store.delete(key)

    async def _watched(self, key: str, chunks: Chunks) -> AsyncGenerator[bytes]:
        async with closing(each(chunks)) as pieces:
            async for piece in pieces:
                await self.before("chunk", key)
                yield piece


def flipped(at: int) -> Change:
    """Make a change that turns one bit of the byte `at` (from the end if negative)."""

    def flip(data: bytes) -> bytes:
        flipped = bytearray(data)
        flipped[at] ^= 1
        return bytes(flipped)

    return flip


def truncated(length: int) -> Change:
    """Make a change that keeps `length` bytes (all but so many if negative)."""
    return lambda data: data[:length]


def gone(_: bytes) -> None:
    """Leave no object at all."""


async def change(store: ObjectStore, key: str, how: Change) -> bytes:
    """Change an object behind everybody's back; return what it was."""
    async with store.get(key) as chunks:
        data = b"".join([chunk async for chunk in chunks])
    await _replace(store, key, how(data))
    return data


@asynccontextmanager
async def changed(store: ObjectStore, key: str, how: Change) -> AsyncGenerator[None]:
    """Have an object changed behind everybody's back; on leaving it is as it was."""
    data = await change(store, key, how)
    try:
        yield
    finally:
        await _replace(store, key, data)


async def _replace(store: ObjectStore, key: str, data: bytes | None) -> None:
    await store.delete(key)
    if data is not None:
        await store.put(key, [data])
