"""Objects in a tier that cannot be read: which they are, and how they are made readable."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from resilience.concurrency import awaited_in_order, closing
from resilience.model.errors import NotRehydrated, ObjectMissing, Unsupported
from resilience.primitives import ObjectInfo, ObjectStore, Rehydrating

ASKED_AT_ONCE = 16


async def unreadable(
    store: ObjectStore, prefix: str, *, wanted: Callable[[str], bool] = lambda _: True
) -> AsyncGenerator[ObjectInfo]:
    """Yield the objects below a prefix that lie in the Archive tier and have no readable copy; nothing is written.

    A store without such a tier is not asked.
    """
    if not isinstance(store, Rehydrating):
        return

    async def look(info: ObjectInfo) -> ObjectInfo | None:
        try:
            async with store.get(info.key, offset=max(0, info.size - 1)):
                return None
        except NotRehydrated:
            return info
        except ObjectMissing:
            return None  # that is for verify to say

    looked = awaited_in_order(_archived(store, prefix, wanted), look, ahead=ASKED_AT_ONCE)
    async with aclosing(looked) as found:
        async for info in found:
            if info is not None:
                yield info


async def made_readable(store: ObjectStore, key: str, *, urgent: bool) -> bool:
    """Begin to make an object readable, if that has not begun; return whether it is. Raises Unsupported."""
    if not isinstance(store, Rehydrating):
        raise Unsupported("this store has no tier that objects could be brought back from", subject=key)
    return await store.rehydrate(key, urgent=urgent)


async def _archived(store: ObjectStore, prefix: str, wanted: Callable[[str], bool]) -> AsyncGenerator[ObjectInfo]:
    async with closing(store.list(prefix)) as infos:
        async for info in infos:
            if info.tier == "archive" and wanted(info.key):
                yield info
