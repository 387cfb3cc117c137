"""A store in memory: the double for tests, and the smallest example of what a store is."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import datetime

from attrs import define, field

from resilience.concurrency import closing
from resilience.model.errors import AlreadyExists, ObjectMissing
from resilience.model.moments import utc_now
from resilience.primitives import Chunks, ObjectInfo

from .keys import checked, checked_offset, each

CHUNK = 1 << 20


@define
class MemoryStore:
    """Keeps objects in a dictionary; they are gone with the process."""

    clock: Callable[[], datetime] = field(default=utc_now, kw_only=True)
    _objects: dict[str, tuple[bytes, datetime]] = field(factory=dict, init=False, repr=False)

    async def put(self, key: str, chunks: Chunks) -> ObjectInfo:
        """Create an object; see `ObjectStore.put`. Cancelled: nothing is visible."""
        checked(key)
        async with closing(each(chunks)) as pieces:
            data = b"".join([piece async for piece in pieces])
        if key in self._objects:
            raise AlreadyExists("the object exists", operation="put", subject=key)
        self._objects[key] = data, self.clock()
        return ObjectInfo(key=key, size=len(data), modified=self._objects[key][1])

    @asynccontextmanager
    async def get(self, key: str, *, offset: int = 0) -> AsyncIterator[AsyncIterator[bytes]]:
        """Read an object from `offset`; see `ObjectStore.get`."""
        if checked(key) not in self._objects:
            raise ObjectMissing("there is no such object", operation="get", subject=key)
        data = memoryview(self._objects[key][0])[checked_offset(offset) :]

        async def chunks() -> AsyncGenerator[bytes]:
            for start in range(0, len(data), CHUNK):
                yield bytes(data[start : start + CHUNK])

        async with aclosing(chunks()) as pieces:
            yield pieces

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Yield the objects under a prefix in the order of their keys; see `ObjectStore.list`."""
        for key in sorted(self._objects):
            if key.startswith(prefix) and (info := await self.stat(key)):
                yield info

    async def stat(self, key: str) -> ObjectInfo | None:
        """Look at one object; None if it is not there."""
        if checked(key) not in self._objects:
            return None
        data, modified = self._objects[key]
        return ObjectInfo(key=key, size=len(data), modified=modified)

    async def delete(self, key: str) -> None:
        """Remove one object, if it is there."""
        self._objects.pop(checked(key), None)
