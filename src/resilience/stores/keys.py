"""Keys and chunks, the same for every store."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from resilience.primitives import Chunks

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=-]*(/[A-Za-z0-9_][A-Za-z0-9_.=-]*)*")


def checked(key: str) -> str:
    """Return `key` if every store can hold it; raises ValueError."""
    if len(key) > 1000 or not _KEY.fullmatch(key):
        raise ValueError(
            f"{key!r} is no key: use names of letters, digits, '_', '.', '=' and '-', separated by '/', not beginning "
            "with '.', '=' or '-'"
        )
    return key


async def each(chunks: Chunks) -> AsyncIterator[bytes]:
    """Iterate chunks whether they come at once or over time."""
    if isinstance(chunks, AsyncIterator):
        async for chunk in chunks:
            yield chunk
    else:
        for chunk in chunks:
            yield chunk
