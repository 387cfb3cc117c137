"""A canary: it writes through `connect_master`, and remembers what was acknowledged, by whom and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import ClassVar

import redis
from attrs import define, field, frozen
from redis import asyncio as aioredis

from resilience.canaries import Memory, Run
from resilience.concurrency import finish, stop_tasks
from resilience.model.drills import CanaryFacts
from resilience.model.errors import TimedOut
from resilience.model.ids import checked_name, new_id
from resilience.model.moments import utc_now
from resilience.primitives.drills import Watching

from .client import Url, mapped, parse_redis_url, parse_redis_urls
from .failover.sentinels import Address
from .master import connect_master
from .survey import SYSTEM

FIRST_WITHIN_SECONDS = 10.0
EXAMINED_WITHIN_SECONDS = 30.0
FAILURES = (redis.RedisError, OSError, TimeoutError)
KEPT_SECONDS = 24 * 3600
"""How long its keys stay if nobody removes them."""


@frozen(kw_only=True)
class RedisCanary:
    """Writes through the way of the clients: `sentinels`, `watched`, `url` and `members` as for `connect_master`.

    It is `writers` writers at once, each with a pause of `pause` seconds between its writes. Its keys are
    `resilience:<name>:<run>:<number>`, and go by themselves after a day. A write counts once the master
    acknowledged it, as for any client: Redis replicates afterwards.
    """

    name: str = field(default="canary", validator=lambda _self, _attribute, name: checked_name(name))
    sentinels: Sequence[Url] = field(converter=parse_redis_urls)
    watched: str = "mymaster"
    url: Url = field(default=Url("redis://localhost"), converter=parse_redis_url)
    members: Sequence[Address] = ()
    writers: int = 4
    pause: float = 0.005
    patience: float = 2.0
    clock: Callable[[], datetime] = field(default=utc_now, repr=False)
    system: ClassVar[str] = SYSTEM

    def __attrs_post_init__(self) -> None:
        if self.writers < 1 or self.patience <= 0:
            raise ValueError("a canary needs a writer, and some patience")

    @property
    def prefix(self) -> str:
        """What the names of all its keys begin with."""
        return f"resilience:{self.name}:"

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Watching]:
        """Write until left; see `Canary.writing`. Cancelled: its connections are closed, its keys stay."""
        run = _Run(new_id(self.clock()), Memory(self.name, self.clock), self)
        async with self.connected(patience=EXAMINED_WITHIN_SECONDS) as client:
            tasks = [asyncio.create_task(run.write(client)) for _ in range(self.writers)]
            try:
                known = run.memory
                if not await known.until(lambda: bool(known.servers), FIRST_WITHIN_SECONDS):
                    text = f"nothing was acknowledged within {FIRST_WITHIN_SECONDS:g} s: {known.problem or 'no answer'}"
                    raise TimedOut(text, operation="write", subject=f"{self.name} at {self.watched}")
                yield run
            finally:
                await stop_tasks(tasks)
                run.memory.end()

    async def clean(self) -> None:
        """Remove its keys; see `Canary.clean`. Raises Unavailable, Refused."""
        with mapped(self.watched, "clean up"):
            async with self.connected(patience=EXAMINED_WITHIN_SECONDS) as client:
                async for key in client.scan_iter(match=f"{self.prefix}*", count=1000):
                    await client.unlink(key)

    @asynccontextmanager
    async def connected(self, *, patience: float) -> AsyncIterator[aioredis.Redis]:
        """Connect as clients do."""
        client = connect_master(
            self.sentinels,
            self.watched,
            url=self.url,
            members=self.members,
            patience=patience,
            answers_within=self.patience,
            max_connections=self.writers + 1,
        )
        try:
            yield client
        finally:
            await finish(client.aclose())


@define(eq=False)
class _Run(Run):
    """One run of this canary."""

    canary: RedisCanary

    async def examine(self) -> CanaryFacts:
        """Look which of the acknowledged writes are there; see `Watching.examine`."""
        promised = self.memory.promised
        with mapped(self.canary.watched, "examine"):
            async with self.canary.connected(patience=EXAMINED_WITHIN_SECONDS) as client:
                prefix = self._key("")
                there = [key async for key in client.scan_iter(match=f"{prefix}*", count=1000)]
        return self.memory.found(promised, [int(key[len(prefix) :]) for key in there])

    async def write(self, client: aioredis.Redis) -> None:
        """Write until cancelled; the client finds the master anew whenever something fails."""
        while True:
            number, sent = self.memory.begun()
            try:
                async with client.pipeline(transaction=False) as pipe:
                    pipe.set(self._key(str(number)), number, ex=KEPT_SECONDS)
                    pipe.execute_command("INFO", "server")  # on the same connection, so of the same server
                    written, info = await pipe.execute(raise_on_error=False)
                if isinstance(written, redis.ResponseError):
                    self.memory.refused(number)
                    raise written
                if isinstance(info, Exception):
                    raise info
                self.memory.acknowledged(number, sent=sent, instance=str(info["run_id"]))
            except FAILURES as error:
                self.memory.failed(error)
            await asyncio.sleep(self.canary.pause)

    def _key(self, number: str) -> str:
        return f"{self.canary.prefix}{self.id}:{number}"
