"""Small objects, read at once, and never more of one than it may have: whoever may add could add any size."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Protocol, runtime_checkable

from resilience.concurrency import awaited_in_order, closing
from resilience.model.errors import ManifestInvalid, ObjectMissing
from resilience.model.show import as_bytes
from resilience.primitives import ObjectInfo, ObjectStore

AHEAD = 32
"""Objects fetched at once."""
TOGETHER = 100
MOST = 4 << 20
"""How many objects, and about how many bytes, are read in one go where a store can do that."""

RECORD = 4 << 20
"""Bytes that a record may have, of a run or of the log; most have some hundred."""
MANIFEST = 256 << 20
"""Bytes that a manifest may have: that of a terabyte has about three million."""


@runtime_checkable
class ReadsMany(Protocol):
    """A store that reads many small objects faster in one go; what is not there is None."""

    async def read_many(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        """Return the bytes of each object."""


async def whole(store: ObjectStore, key: str, *, at_most: int = MANIFEST) -> bytes | None:
    """Read a small object at once; None if it is not there. Raises ManifestInvalid if it has more bytes than it may."""
    read: list[bytes] = []
    size = 0
    try:
        async with store.get(key) as chunks:
            async for chunk in chunks:
                size += len(chunk)
                if size > at_most:
                    text = f"it has more than {as_bytes(at_most)}, which none of ours has"
                    raise ManifestInvalid(
                        text, operation="read", subject=key, hint="see who put it there, and remove it"
                    )
                read.append(chunk)
    except ObjectMissing:
        return None
    return b"".join(read)


async def wholes(store: ObjectStore, prefix: str) -> AsyncGenerator[tuple[str, bytes]]:
    """Yield the small objects below a prefix, in the order of their keys; many are read at once.

    What is removed meanwhile is left out; what is larger than a manifest may be is read as nothing at all. Memory holds
    some dozen objects, whatever their number.
    """

    async def some(infos: Sequence[ObjectInfo]) -> list[tuple[str, bytes | None]]:
        keys = [info.key for info in infos if info.size <= MANIFEST]
        if isinstance(store, ReadsMany):
            read = dict(zip(keys, await store.read_many(keys), strict=True))
        else:
            read = {key: await whole(store, key) for key in keys}
        return [(info.key, read.get(info.key, b"")) for info in infos]

    many = isinstance(store, ReadsMany)
    groups = _grouped(store.list(prefix), TOGETHER if many else 1)
    async with aclosing(awaited_in_order(groups, some, ahead=2 if many else AHEAD)) as read:
        async for group in read:
            for key, data in group:
                if data is not None:
                    yield key, data


async def _grouped(infos: AsyncIterator[ObjectInfo], count: int) -> AsyncGenerator[list[ObjectInfo]]:
    group: list[ObjectInfo] = []
    size = 0
    async with closing(infos) as found:
        async for info in found:
            group.append(info)
            size += info.size
            if len(group) >= count or size >= MOST:
                yield group
                group, size = [], 0
    if group:
        yield group
