"""What a server holds, in numbers and by sample: taken from the one that is backed up, compared with a restored one."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import ClassVar

from attrs import field, frozen
from redis.asyncio import Redis

from resilience.model.findings import Finding, Level, Verdict, blocker
from resilience.model.show import Shown

from .client import Url, ask, commands, parse_redis_url
from .digests import PARTLY, digest
from .isolation import LiveRedis
from .survey import Info, ask_info

_TRIES = 5


@frozen(kw_only=True)
class RedisSample(Shown):
    """Some of what a server held: by database how many `keys` that do not expire, and digests of values by their keys.

    Keys are in hexadecimal.
    """

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
    return RedisSample(keys={str(number): count for number, count in _lasting(info).items()}, digests=digests)


def _lasting(info: Info) -> dict[int, int]:
    """Count the keys that do not expire, by database."""
    return {number: each["keys"] - each["expires"] for number, each in info.databases.items()}


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


@frozen(kw_only=True)
class RedisContentValidator:
    """Compares a restored, running server with what it has to hold (level L4).

    `at_least` are the numbers of keys that every database has to have. `sample` was taken from the server that was
    backed up, by `take_sample`: all of its values have to be there, of the same type and the same, and of the keys that
    did not expire then every database has to have as many again, less `tolerance` (0.1 is a tenth; 1 is: any number).
    With nothing to compare it fails: a `match=` that found nothing proves nothing.
    """

    level: ClassVar[Level] = Level.ASSERTIONS

    at_least: Mapping[int, int] = field(factory=dict)
    sample: RedisSample = field(factory=RedisSample)
    tolerance: float = 0.1

    async def check(self, subject: LiveRedis) -> Verdict:
        """Look at the server. What is wrong is a finding; raises Unavailable if it does not answer."""
        began = time.monotonic()
        async with commands(Url.parse(subject.url), operation="look") as client:
            info = await ask_info(client, "everything")
            wrong = [*self._vacuous(), *self._missing(info), *[each async for each in self._different(client)]]
        values = [each for digests in self.sample.digests.values() for each in digests.values()]
        text = f"{info.keys} keys in {len(info.databases)} databases, {len(values)} values compared"
        findings = [Finding(severity="note", subject="content", text=text)]
        if partly := sum(each.startswith(PARTLY) for each in values):
            text = f"{partly} of the values were compared by their type and length alone: a module's, or very large"
            findings.append(Finding(severity="warning", subject="content", text=text))
        findings += [blocker("content", each) for each in wrong]
        return Verdict(
            subject="content",
            passed=not wrong,
            level=None if wrong else self.level,
            objects=len(values),
            seconds=time.monotonic() - began,
            findings=tuple(findings),
        )

    def _vacuous(self) -> Iterator[str]:
        """Say so if there is nothing to compare."""
        if not any(self.sample.digests.values()) and (self.sample != RedisSample() or not any(self.at_least.values())):
            yield "there is nothing to compare: the sample holds no values, or none was given"

    def _missing(self, info: Info) -> Iterator[str]:
        """Compare the numbers of keys."""
        for number, least in self.at_least.items():
            held = info.databases.get(number, {}).get("keys", 0)
            if held < least:
                yield f"database {number} has {held} keys, and has to have {least}"
        for name, count in self.sample.keys.items():
            lasting = _lasting(info).get(int(name), 0)
            if lasting < count * (1 - self.tolerance):
                yield f"database {name} has {lasting} keys that do not expire, and had {count} with the sample"

    async def _different(self, client: Redis) -> AsyncIterator[str]:
        """Compare the values."""
        for database, digests in self.sample.digests.items():
            await ask(client, "SELECT", database)
            for name, wanted in digests.items():
                key = bytes.fromhex(name)
                if not await ask(client, "EXISTS", key):
                    yield f"the key {key[:60]!r} of database {database} is missing"
                elif await digest(client, key) != wanted:
                    yield f"the key {key[:60]!r} of database {database} holds something else"
