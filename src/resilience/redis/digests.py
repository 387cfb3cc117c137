"""What a key holds, as a digest that depends neither on how it is stored nor on the release; read in pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator
from hashlib import sha256

from redis.asyncio import Redis

from .client import ask

MOST = 1_000_000
"""A set or a hash of more elements is compared by its length alone: it comes in no order, so all have to be kept."""
PARTLY = "only "
"""What stands for a value that was not read begins with this."""
_ELEMENTS, _BYTES = 1000, 1 << 20
_LENGTHS = {
    b"string": "STRLEN",
    b"list": "LLEN",
    b"set": "SCARD",
    b"hash": "HLEN",
    b"zset": "ZCARD",
    b"stream": "XLEN",
}
_SCANS = {b"set": ("SSCAN", 1), b"hash": ("HSCAN", 2)}


async def digest(client: Redis, key: bytes) -> str:
    """Return the SHA-256 of a key's type and value; or (`PARTLY`) its type and length, or the type of a module's."""
    kind: bytes = await ask(client, "TYPE", key)
    if kind not in _LENGTHS:
        return f"{PARTLY}{kind.decode(errors='replace')}"
    length: int = await ask(client, _LENGTHS[kind], key)
    if kind in _SCANS and length > MOST:
        return f"{PARTLY}{kind.decode()} of {length}"
    summed = sha256(kind)
    if kind in _SCANS:
        command, words = _SCANS[kind]
        for each in sorted({each async for each in _scanned(client, command, key, words)}):
            summed.update(each)
    else:
        async for piece in _pieces(client, kind, key, length):
            summed.update(piece)
    return summed.hexdigest()


async def _scanned(client: Redis, command: str, key: bytes, words: int) -> AsyncIterator[bytes]:
    """Yield a digest of each element; some may come twice."""
    cursor = b"0"
    while True:
        cursor, answer = await ask(client, command, key, cursor, "COUNT", _ELEMENTS)
        for at in range(0, len(answer), words):
            yield sha256(repr(answer[at : at + words]).encode()).digest()[:16]
        if cursor == b"0":
            return


async def _pieces(client: Redis, kind: bytes, key: bytes, length: int) -> AsyncIterator[bytes]:
    """Yield what has an order, in it."""
    if kind == b"string":
        for at in range(0, length, _BYTES):
            yield await ask(client, "GETRANGE", key, at, at + _BYTES - 1)
    elif kind == b"stream":
        start = b"-"
        while entries := await ask(client, "XRANGE", key, start, "+", "COUNT", _ELEMENTS):
            yield b"".join(repr(entry).encode() for entry in entries)
            first, _, second = entries[-1][0].partition(b"-")
            start = b"%b-%d" % (first, int(second) + 1)  # "(" is not known to 6.0
    else:
        command, more = ("LRANGE", ()) if kind == b"list" else ("ZRANGE", ("WITHSCORES",))
        for at in range(0, length, _ELEMENTS):
            answer = await ask(client, command, key, at, at + _ELEMENTS - 1, *more)
            if more:  # releases write the same score in different ways
                answer = [(member, float(score)) for member, score in zip(answer[::2], answer[1::2], strict=True)]
            yield b"".join(repr(element).encode() for element in answer)
