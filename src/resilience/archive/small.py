"""Small objects, read at once."""

from __future__ import annotations

from resilience.model.errors import ObjectMissing
from resilience.primitives import ObjectStore


async def whole(store: ObjectStore, key: str) -> bytes | None:
    """Read a small object at once; None if it is not there."""
    try:
        async with store.get(key) as chunks:
            return b"".join([chunk async for chunk in chunks])
    except ObjectMissing:
        return None
