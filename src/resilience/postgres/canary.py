"""A canary: it writes through the route that clients take, and remembers what was acknowledged, by whom and when."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import ClassVar

import asyncpg
from attrs import define, field, frozen

from resilience.canaries import Memory, Run
from resilience.concurrency import stop_tasks
from resilience.model.drills import CanaryFacts
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
        run = _Run(new_id(self.clock()), Memory(self.name, self.clock), self)
        tasks = [asyncio.create_task(run.write()) for _ in range(self.writers)]
        try:
            known = run.memory
            if not await known.until(lambda: bool(known.servers), FIRST_WITHIN_SECONDS):
                text = f"nothing was acknowledged within {FIRST_WITHIN_SECONDS:g} s: {known.problem or 'no answer'}"
                raise TimedOut(text, operation="write", subject=f"{self.name} at {self.dsn.where}")
            yield run
        finally:
            await stop_tasks(tasks)
            run.memory.end()

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
class _Run(Run):
    """One run of this canary."""

    canary: PostgresCanary

    async def examine(self) -> CanaryFacts:
        """Look which of the acknowledged writes are there; see `Watching.examine`."""
        promised = self.memory.promised
        query = f"select id from {self.canary.table} where run = $1"  # noqa: S608
        async with self.canary.looking("examine") as connection:
            there = {row["id"] for row in await connection.fetch(query, self.id)}
        return self.memory.found(promised, there)

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
                    self.memory.failed(error)
                    if connection is not None:
                        connection.terminate()
                        connection = None
                await asyncio.sleep(self.canary.pause)
        finally:
            if connection is not None:
                connection.terminate()

    async def _write_one(self, connection: asyncpg.Connection, warned: list[str]) -> None:
        number, sent = self.memory.begun()
        insert = f"insert into {self.canary.table} (canary, run, id) values ($1, $2, $3) returning {INSTANCE}"  # noqa: S608
        asking = asyncio.create_task(connection.fetchval(insert, self.canary.name, self.id, number))
        try:
            done, _ = await asyncio.wait([asking], timeout=self.canary.patience)
            if not done:
                raise TimeoutError(f"no answer within {self.canary.patience:g} s")
            instance = asking.result()
        except asyncpg.PostgresError:
            if not connection.is_closed():  # the server said no, and goes on: it has not written it
                self.memory.refused(number)
            raise
        finally:
            # Never cancelled: asyncpg would have the server cancel it, and a commit that waits for a standby then
            # succeeds without one.
            if not asking.done():
                connection.terminate()
                await asyncio.wait([asking])
            if not asking.cancelled():
                asking.exception()
        if not any(_NOT_PROMISED in said for said in warned):
            self.memory.acknowledged(number, sent=sent, instance=instance)
