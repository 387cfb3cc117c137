"""What a server holds, in numbers and by sample: taken from the one that is backed up, compared with a restored one."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from hashlib import sha256
from typing import ClassVar

from attrs import field, frozen
from redis.asyncio import Redis

from resilience.model.findings import Finding, Level, Verdict, blocker
from resilience.model.show import Shown

from .client import Url, ask, commands, parse_redis_url
from .isolation import LiveRedis
from .survey import ask_info

MOST = 100_000
"""Values of more elements, or more bytes, are compared by their length alone."""
_TRIES = 5
_LENGTHS = {
    b"string": "STRLEN",
    b"list": "LLEN",
    b"set": "SCARD",
    b"hash": "HLEN",
    b"zset": "ZCARD",
    b"stream": "XLEN",
}
_READS: Mapping[bytes, tuple[str, tuple[str, ...]]] = {
    b"string": ("GET", ()),
    b"list": ("LRANGE", ("0", "-1")),
    b"set": ("SMEMBERS", ()),
    b"hash": ("HGETALL", ()),
    b"zset": ("ZRANGE", ("0", "-1", "WITHSCORES")),
    b"stream": ("XRANGE", ("-", "+")),
}


@frozen(kw_only=True)
class RedisSample(Shown):
    """Some of what a server held: `keys` by database, and digests of values by database and key (in hexadecimal)."""

    keys: Mapping[str, int] = field(factory=dict)
    digests: Mapping[str, Mapping[str, str]] = field(factory=dict, repr=False)


async def take_sample(url: str | Url, *, most: int = 100, match: str = "") -> RedisSample:
    """Digest up to `most` values of each database of a server, chosen by chance or (`match`) by their names.

    Keys that expire are left out. The sample says what a backup has to hold if nobody changes these keys meanwhile:
    choose some that do not change. The user needs `+info +select +type +pttl`, `+randomkey` or `+scan`, and what reads
    the values. Raises what a survey raises.
    """
    async with commands(parse_redis_url(url), operation="sample") as client:
        info = await ask_info(client, "everything")
        digests = {}
        for number in info.databases:
            await ask(client, "SELECT", number)
            found: dict[str, str] = {}
            async for key in _chosen(client, most, match):
                if await ask(client, "PTTL", key) == -1:
                    found[key.hex()] = await digest(client, key)
                if len(found) >= most:
                    break
            digests[str(number)] = found
    keys = {str(number): each["keys"] for number, each in info.databases.items()}
    return RedisSample(keys=keys, digests=digests)


async def _chosen(client: Redis, most: int, match: str) -> AsyncIterator[bytes]:
    if not match:
        for _ in range(most * _TRIES):
            key = await ask(client, "RANDOMKEY")
            if key is None:
                return
            yield key
        return
    cursor = b"0"
    while True:
        cursor, keys = await ask(client, "SCAN", cursor, "MATCH", match, "COUNT", 1000)
        for key in keys:
            yield key
        if cursor == b"0":
            return


async def digest(client: Redis, key: bytes) -> str:
    """Return the SHA-256 of what a key holds, in an order that does not depend on how it is stored."""
    kind = await ask(client, "TYPE", key)
    summed = sha256(kind)
    if kind in _LENGTHS:
        length = await ask(client, _LENGTHS[kind], key)
        summed.update(str(length).encode())
        if length <= MOST:
            command, more = _READS[kind]
            answer = await ask(client, command, key, *more)
            if kind == b"set":
                answer = sorted(answer)
            elif kind == b"hash":
                answer = sorted(zip(answer[::2], answer[1::2], strict=True))
            elif kind == b"zset":  # releases write the same score in different ways
                answer = [(member, float(score)) for member, score in zip(answer[::2], answer[1::2], strict=True)]
            summed.update(repr(answer).encode())
    return summed.hexdigest()


@frozen(kw_only=True)
class RedisContentValidator:
    """Compares a restored, running server with what it has to hold (level L4).

    `at_least` are the numbers of keys that every database has to have; `sample` was taken from the server that was
    backed up, by `take_sample`: all of its values have to be there and the same.
    """

    level: ClassVar[Level] = Level.ASSERTIONS

    at_least: Mapping[int, int] = field(factory=dict)
    sample: RedisSample = field(factory=RedisSample)

    async def check(self, subject: LiveRedis) -> Verdict:
        """Look at the server. What is wrong is a finding; raises Unavailable if it does not answer."""
        began = time.monotonic()
        blockers, compared = [], 0
        async with commands(Url.parse(subject.url), operation="look") as client:
            held = {number: each["keys"] for number, each in (await ask_info(client, "everything")).databases.items()}
            for number, least in self.at_least.items():
                if held.get(number, 0) < least:
                    blockers.append(f"database {number} has {held.get(number, 0)} keys, and has to have {least}")
            for database, digests in self.sample.digests.items():
                await ask(client, "SELECT", database)
                for name, wanted in digests.items():
                    key = bytes.fromhex(name)
                    compared += 1
                    if not await ask(client, "EXISTS", key):
                        blockers.append(f"the key {key[:60]!r} of database {database} is missing")
                    elif await digest(client, key) != wanted:
                        blockers.append(f"the key {key[:60]!r} of database {database} holds something else")
        text = f"{sum(held.values())} keys in {len(held)} databases, {compared} values compared"
        findings = [Finding(severity="note", subject="content", text=text)]
        findings += [blocker("content", each) for each in blockers]
        return Verdict(
            subject="content",
            passed=not blockers,
            level=None if blockers else self.level,
            objects=compared,
            seconds=time.monotonic() - began,
            findings=tuple(findings),
        )
