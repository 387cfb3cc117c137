"""Keys and chunks, the same for every store."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable

from resilience.primitives import Chunks

_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.=-]*"
_KEY = re.compile(rf"{_NAME}(/{_NAME})*")
_PREFIX = re.compile(rf"({_NAME}/)*({_NAME})?")


def checked(key: str) -> str:
    """Return `key` if every store can hold it; raises ValueError."""
    if not is_key(key):
        raise ValueError(
            f"{key!r} is no key: use names of letters, digits, '_', '.', '=' and '-', separated by '/', not beginning "
            "with '.', '=' or '-' and not ending with '.'"
        )
    return key


def is_key(name: str) -> bool:
    """Say whether every store can hold an object of that name; Azure may drop a full stop at the end of a name."""
    return len(name) <= 1000 and _KEY.fullmatch(name) is not None and "./" not in name and name[-1] != "."


def is_prefix(prefix: str) -> bool:
    """Say whether any key could begin like this."""
    return _PREFIX.fullmatch(prefix) is not None


def checked_offset(offset: int) -> int:
    """Return where to begin to read; raises ValueError if it is negative."""
    if offset < 0:
        raise ValueError(f"the offset {offset} is before the beginning")
    return offset


def each(chunks: Chunks) -> AsyncIterator[bytes]:
    """Iterate chunks whether they come at once or over time."""
    return chunks if isinstance(chunks, AsyncIterator) else _each(chunks)


async def _each(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
