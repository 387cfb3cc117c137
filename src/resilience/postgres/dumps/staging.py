"""Databases under construction: made under names of their own, given their real names all at once, last.

A renaming is transactional (PostgreSQL, ALTER DATABASE), so either every restored database appears under its real name
or none does. While a restore runs, its connection carries the restore's token as its application_name: that is how one
that was killed is told from one that is still going on.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

import asyncpg
from attrs import define, field

from resilience.concurrency import finish, stop_tasks
from resilience.model.errors import Conflict, ResilienceError
from resilience.model.findings import Finding
from resilience.postgres.client import Dsn, sql

from .sql_text import quoted

_NAME = re.compile(r"resilience_(?:restoring|replaced)_([0-9a-f]{12})_\d+")
_APPLICATION = "resilience restore "
LOOK_AGAIN_SECONDS = 0.05

_OIDS = "select datname::text as name, oid::text as oid from pg_database"
_RUNNING = "select application_name from pg_stat_activity where application_name like 'resilience restore %'"

# New connections wait for the renaming's lock, so whoever is found here is one of the last.
_EVICT = """
select pg_terminate_backend(pid) from pg_stat_activity
where datname = any($1) and pid <> pg_backend_pid() and backend_type = 'client backend'
"""


@define(kw_only=True)
class Staging:
    """The databases of one restore; those in `replace` may exist. `dsn` reaches a database that is none of them.

    After `publish`, `published` has the oid of every database by its real name.
    """

    dsn: Dsn
    replace: Collection[str] = ()
    token: str = field(factory=lambda: secrets.token_hex(6))
    published: dict[str, str] = field(factory=dict, init=False)
    _made: dict[str, str] = field(factory=dict, init=False)
    _replaced: dict[str, str] = field(factory=dict, init=False)

    def name_for(self, database: str) -> str:
        """Return the name under which a database is made; `publish` gives it its own."""
        name = f"resilience_restoring_{self.token}_{len(self._made)}"
        self._made[name] = database
        return name

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncpg.Connection]:
        """Connect, and thereby say on the server that this restore is going on."""
        settings = {"application_name": _APPLICATION + self.token, "idle_session_timeout": "0"}
        async with sql(Dsn({**self.dsn.parameters, **settings}), operation="restore") as connection:
            yield connection

    async def publish(self) -> list[Finding]:
        """Give every database its real name; those that have it lose their connections, and are dropped afterwards.

        Raises Refused if a name is taken. Cancelled: no database has its real name yet, those to be replaced still have
        theirs; unless it was while they were dropped.
        """
        if not self._made:
            return []
        try:
            await finish(self._publish())
        except asyncio.CancelledError:
            await finish(self._withdraw())
            raise
        return await finish(self._drop_replaced()) if self._replaced else []

    async def _publish(self) -> None:
        async with self.running() as connection:
            present = await _oids(connection)
            replaced = {
                database: name.replace("restoring", "replaced")
                for name, database in self._made.items()
                if database in self.replace and database in present
            }
            await self._rename(connection, [*replaced.items(), *self._made.items()])
            self._replaced = replaced
            self.published = {database: present[name] for name, database in self._made.items()}

    async def _withdraw(self) -> None:
        """Take the names back."""
        if self.published:
            async with self.running() as connection:
                back = [(new, old) for old, new in (*self._made.items(), *self._replaced.items())]
                await self._rename(connection, back)
            self.published, self._replaced = {}, {}

    async def _rename(self, connection: asyncpg.Connection, names: Sequence[tuple[str, str]]) -> None:
        """Rename databases, all or none; who is connected to one of them is thrown out."""
        evicting = [asyncio.create_task(self._evict([old for old, _ in names]))]
        try:
            async with connection.transaction():
                for old, new in names:
                    await connection.execute(f"alter database {quoted(old)} rename to {quoted(new)}")
        finally:
            await stop_tasks(evicting)

    async def _evict(self, databases: Sequence[str]) -> None:
        with suppress(ResilienceError):  # the renaming says who is in the way
            async with sql(self.dsn, operation="restore") as connection:
                while True:
                    await connection.fetch(_EVICT, databases)
                    await asyncio.sleep(LOOK_AGAIN_SECONDS)

    async def _drop_replaced(self) -> list[Finding]:
        """Drop what was replaced; what was restored is there already, so a failure is no more than a finding."""
        findings = []
        for name in self._replaced.values():
            try:
                async with sql(self.dsn, operation="restore") as connection:
                    await _drop(connection, name)
            except ResilienceError as error:
                text = f"a replaced database is still there as {name}: {error.what}"
                findings.append(Finding(severity="warning", subject=self.dsn.where, text=text, hint="drop it"))
        return findings


def is_ours(database: str) -> bool:
    """Tell whether a name is one that a restore gives to a database under construction, or to one it replaces."""
    return _NAME.fullmatch(database) is not None


async def left_behind(connection: asyncpg.Connection) -> list[str]:
    """Return the databases that restores which no longer run have left under construction or replaced."""
    return [name for name, running in await _ours(connection) if not running]


async def discard(dsn: Dsn, published: Mapping[str, str]) -> None:
    """Drop what `left_behind` finds and, by name and oid, databases that were published.

    Raises Conflict if a restore is still running; its databases are left alone.
    """
    async with sql(dsn, operation="discard") as connection:
        present = await _oids(connection)
        ours = await _ours(connection)
        mine = [name for name, oid in published.items() if present.get(name) == oid]
        for name in (*mine, *(name for name, running in ours if not running)):
            await _drop(connection, name)
    still = sum(running for _, running in ours)
    if still:
        raise Conflict(
            f"a restore that is still running makes {still} databases",
            operation="discard",
            subject=dsn.where,
            hint="end it first",
        )


async def _ours(connection: asyncpg.Connection) -> list[tuple[str, bool]]:
    """Return the databases with names of ours, and whether the restores they belong to are running."""
    running = {row[0].removeprefix(_APPLICATION) for row in await connection.fetch(_RUNNING)}
    names: Iterable[str] = await _oids(connection)
    return [(name, match[1] in running) for name in names if (match := _NAME.fullmatch(name))]


async def _oids(connection: asyncpg.Connection) -> dict[str, str]:
    return {row["name"]: row["oid"] for row in await connection.fetch(_OIDS)}


async def _drop(connection: asyncpg.Connection, name: str) -> None:
    if await connection.fetchval("select datistemplate from pg_database where datname = $1", name):
        await connection.execute(f"alter database {quoted(name)} is_template false")
    await connection.execute(f"drop database {quoted(name)} with (force)")
