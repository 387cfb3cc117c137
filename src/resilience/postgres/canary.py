"""A canary: it writes through the route that clients take, and remembers what was acknowledged, by whom and when."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import ClassVar

import asyncpg
from attrs import define, field, frozen

from resilience.concurrency import stop_tasks
from resilience.model.drills import CanaryFacts, LostWrite, Served
from resilience.model.errors import ResilienceError, TimedOut, Unavailable
from resilience.model.ids import checked_name, new_id
from resilience.model.moments import utc_now
from resilience.primitives.drills import Watching

from .client import Dsn, connect, mapped, parse_dsn
from .instance import INSTANCE

FIRST_WITHIN_SECONDS = 10.0
EXAMINED_WITHIN_SECONDS = 30.0
_TABLE = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?")
_MADE = "made by resilience for drills: may be dropped when no drill runs"
_NOT_PROMISED = "wait for synchronous replication"
"""In the warning that comes with a commit whose wait for a standby was cancelled: it is here, and nowhere else."""
_FAILURES = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


@frozen(kw_only=True)
class PostgresCanary:
    """Writes rows through `dsn`, the very way the clients take: a PgBouncer, or several hosts.

    It is `writers` connections at once, each with a pause of `pause` seconds between its writes. One that hears nothing
    for `patience` seconds gives up and connects anew. `table` is made if it is missing; a role without that right needs
    one made for it: `create table resilience_canary (canary text, run text, id bigint, primary key (run, id))`, with
    the rights to select, insert and delete.
    """

    name: str = field(default="canary", validator=lambda _self, _attribute, name: checked_name(name))
    dsn: Dsn = field(converter=parse_dsn)
    table: str = "resilience_canary"
    writers: int = 4
    pause: float = 0.005
    patience: float = 2.0
    clock: Callable[[], datetime] = field(default=utc_now, repr=False)
    system: ClassVar[str] = "postgresql"

    def __attrs_post_init__(self) -> None:
        if not _TABLE.fullmatch(self.table):
            raise ValueError(f"{self.table!r} is no name of a table: letters, digits, _, a schema before a dot")
        if self.writers < 1 or self.patience <= 0:
            raise ValueError("a canary needs a writer, and some patience")

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Watching]:
        """Write until left; see `Canary.writing`. Cancelled: its connections are closed, its rows stay."""
        await self._prepare()
        run = _Run(self, new_id(self.clock()))
        tasks = [asyncio.create_task(run.write()) for _ in range(self.writers)]
        try:
            if not await run.until(lambda: bool(run.servers), FIRST_WITHIN_SECONDS):
                text = f"nothing was acknowledged within {FIRST_WITHIN_SECONDS:g} s: {run.problem or 'no answer'}"
                raise TimedOut(text, operation="write", subject=f"{self.name} at {self.dsn.where}")
            yield run
        finally:
            await stop_tasks(tasks)
            run.end()

    async def clean(self) -> None:
        """Remove its rows, and the table if a canary has made it; see `Canary.clean`. Raises Unavailable, Refused."""
        async with self.looking("clean up") as connection:
            if await connection.fetchval("select to_regclass($1)", self.table) is None:
                return
            await connection.execute(f"delete from {self.table} where canary = $1", self.name)  # noqa: S608
            others = await connection.fetchval(f"select exists (select from {self.table})")  # noqa: S608
            said = await connection.fetchval("select obj_description(to_regclass($1), 'pg_class')", self.table)
            if said == _MADE and not others:
                await connection.execute(f"drop table if exists {self.table}")

    async def _prepare(self) -> None:
        async with self.looking("write") as connection:
            if await connection.fetchval("select to_regclass($1)", self.table) is None:
                columns = "canary text, run text, id bigint, primary key (run, id)"
                with suppress(asyncpg.DuplicateTableError, asyncpg.UniqueViolationError):  # another was quicker
                    await connection.execute(f"create table {self.table} ({columns})")
                    await connection.execute(f"comment on table {self.table} is '{_MADE}'")

    @asynccontextmanager
    async def looking(self, operation: str) -> AsyncIterator[asyncpg.Connection]:
        """Connect as clients do; a server that has just been promoted may take a moment."""
        with mapped(self.dsn, operation):
            connection = await self.connect(seconds=EXAMINED_WITHIN_SECONDS)
            try:
                async with asyncio.timeout(EXAMINED_WITHIN_SECONDS):
                    yield connection
            finally:
                connection.terminate()

    async def connect(self, *, seconds: float) -> asyncpg.Connection:
        """Connect through the route: of several hosts the first that may be written to, each within `seconds`."""
        places = self.dsn.addresses or [("localhost", 5432)]
        several = len(places) > 1
        failure: ResilienceError | None = None
        for host, port in places:
            try:
                place = self._place(host, port, several)
                return await connect(place, operation="write", within=seconds, pooled=True)
            except ResilienceError as error:
                failure = error
        raise failure or Unavailable("there is no host to connect to", operation="write", subject=self.name)

    def _place(self, host: str, port: int, several: bool) -> Dsn:
        given = {name: text for name, text in self.dsn.parameters.items() if name != "hostaddr"}
        wanted = given.get("target_session_attrs", "any")
        given["target_session_attrs"] = "read-write" if several and wanted == "any" else wanted
        return Dsn({**given, "host": host, "port": str(port)})


@define(eq=False)
class _Run:
    """One run of a canary: what it wrote, and what it was told."""

    canary: PostgresCanary
    id: str
    servers: dict[str, Served] = field(factory=dict, init=False)
    problem: str = field(default="", init=False)
    _acknowledged: dict[int, tuple[datetime, str]] = field(factory=dict, init=False, repr=False)
    _next: int = field(default=0, init=False)
    _failed: int = field(default=0, init=False)
    _doubts: set[int] = field(factory=set, init=False, repr=False)
    _missing: tuple[LostWrite, ...] | None = field(default=None, init=False)
    _gap: tuple[datetime, datetime] | None = field(default=None, init=False)
    _began: datetime = field(init=False)
    _ended: datetime | None = field(default=None, init=False)
    _origin: float = field(factory=time.monotonic, init=False)
    _last: datetime = field(init=False)
    _news: asyncio.Event = field(factory=asyncio.Event, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._began = self._last = self.canary.clock()

    @property
    def seen(self) -> CanaryFacts:
        """What it has seen so far; see `Watching.seen`."""
        now = self._ended or self._now()
        gap = self._gap or (self._began, self._began)
        if now - self._last > gap[1] - gap[0]:
            gap = (self._last, now)
        return CanaryFacts(
            canary=self.canary.name,
            began_at=self._began,
            ended_at=now,
            acknowledged=len(self._acknowledged),
            failed=self._failed,
            in_doubt=len(self._doubts),
            missing=self._missing,
            served=tuple(self.servers.values()),
            longest=(gap[1] - gap[0]).total_seconds(),
            quiet_since=gap[0],
            quiet_until=gap[1],
        )

    async def another(self, *, than: str, seconds: float) -> Served | None:
        """Wait for another server; see `Watching.another`."""
        await self.until(lambda: any(each != than for each in self.servers), seconds)
        return next((each for name, each in self.servers.items() if name != than), None)

    async def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until something is so; tell whether it came to that in time."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pass
        return condition()

    async def examine(self) -> CanaryFacts:
        """Look which of the acknowledged writes are there; see `Watching.examine`."""
        known = dict(self._acknowledged)
        query = f"select id from {self.canary.table} where run = $1"  # noqa: S608
        async with self.canary.looking("examine") as connection:
            there = {row["id"] for row in await connection.fetch(query, self.id)}
        lost = sorted(known.keys() - there)
        self._missing = tuple(LostWrite(id=each, at=known[each][0], instance=known[each][1]) for each in lost)
        return self.seen

    def end(self) -> None:
        """Remember when it ended."""
        self._ended = self._now()

    async def write(self) -> None:
        """Write until cancelled, and connect anew whenever something fails, as a pool does."""
        connection: asyncpg.Connection | None = None
        warned: list[str] = []
        try:
            while True:
                try:
                    if connection is None or connection.is_closed():
                        connection = await self.canary.connect(seconds=self.canary.patience)
                        connection.add_log_listener(lambda _, said: warned.append(str(said)))
                    warned.clear()
                    await self._write_one(connection, warned)
                except (*_FAILURES, ResilienceError) as error:
                    self._failed += 1
                    self.problem = " ".join(str(error).split()) or type(error).__name__
                    if connection is not None:
                        connection.terminate()
                        connection = None
                await asyncio.sleep(self.canary.pause)
        finally:
            if connection is not None:
                connection.terminate()

    async def _write_one(self, connection: asyncpg.Connection, warned: list[str]) -> None:
        self._next += 1
        number, sent = self._next, self._now()
        insert = f"insert into {self.canary.table} (canary, run, id) values ($1, $2, $3) returning {INSTANCE}"  # noqa: S608
        asking = asyncio.create_task(connection.fetchval(insert, self.canary.name, self.id, number))
        self._doubts.add(number)
        try:
            done, _ = await asyncio.wait([asking], timeout=self.canary.patience)
            if not done:
                raise TimeoutError(f"no answer within {self.canary.patience:g} s")
            instance = asking.result()
        except asyncpg.PostgresError:
            if not connection.is_closed():  # the server said no, and goes on: it has not written it
                self._doubts.discard(number)
            raise
        finally:
            # Never cancelled: asyncpg would have the server cancel it, and a commit that waits for a standby then
            # succeeds without one.
            if not asking.done():
                connection.terminate()
                await asyncio.wait([asking])
            if not asking.cancelled():
                asking.exception()
        if any(_NOT_PROMISED in said for said in warned):
            return
        self._doubts.discard(number)
        self._acknowledge(number, sent, instance)

    def _acknowledge(self, number: int, sent: datetime, instance: str) -> None:
        now = self._now()
        self._acknowledged[number] = now, instance
        if self._gap is None or now - self._last > self._gap[1] - self._gap[0]:
            self._gap = self._last, now
        self._last = now
        before = self.servers.get(instance)
        self.servers[instance] = Served(
            instance=instance,
            first=before.first if before else now,
            last=now,
            last_sent=max(before.last_sent, sent) if before else sent,
            writes=before.writes + 1 if before else 1,
        )
        self._news.set()

    def _now(self) -> datetime:
        """Tell the time by the clock as it was at the beginning: it does not jump."""
        return self._began + timedelta(seconds=time.monotonic() - self._origin)
