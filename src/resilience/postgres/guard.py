"""Keeps a client's pool on the primary: whoever turns out to be none is dropped, and connected anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg
from attrs import define, field

from resilience.model.errors import Unreachable

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy
    from sqlalchemy import Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

READ_ONLY = "25006"
"""read_only_sql_transaction (PostgreSQL, appendix A): what a standby says to somebody who writes."""

# A promotion begins a timeline, and a primary names the WAL that it writes after its own. Any role may ask.
_LOOK = """select (select system_identifier::text from pg_control_system()),
    case when not pg_is_in_recovery() then substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) end"""
_MARK = "resilience.generation"


@define
class PrimaryGuard:
    """Remembers the newest primary that a group's clients have seen, and keeps their pools from any other.

    For asyncpg, whose pool may name several hosts, or a pooler's:

        guard = PrimaryGuard()
        pool = await asyncpg.create_pool(dsn, init=guard.init)
        async with guard.acquire(pool) as connection: ...

    For SQLAlchemy, synchronous or not: `guard.protect(engine)`.

    - A new connection that has reached a standby, a primary from before a promotion that was seen, or another cluster
      is closed, and Unreachable raised: try again.
    - Once one is told 25006, or has reached a newer primary, the pool's others are closed as soon as they are free.

    It repeats no transaction: only who wrote it knows whether that is right. It costs one query a connection.
    """

    _lineage: str = field(default="", init=False)
    _timeline: int = field(default=0, init=False)
    _generation: int = field(default=0, init=False)
    _pools: dict[asyncpg.Pool, int] = field(factory=dict, init=False)

    async def init(self, connection: asyncpg.Connection) -> None:
        """Look at a new connection of an asyncpg pool (`create_pool(init=…)`). Raises Unreachable."""
        row = await connection.fetchrow(_LOOK)
        self._see(*(row or ("", None)))

    @asynccontextmanager
    async def acquire(self, pool: asyncpg.Pool, *, seconds: float | None = None) -> AsyncIterator[PoolConnectionProxy]:
        """Acquire a connection, within `seconds`; released on leaving. What is raised within is raised."""
        connection = await self._acquired(pool, seconds)
        try:
            yield connection
        except asyncpg.ReadOnlySQLTransactionError:
            await pool.expire_connections()
            raise
        finally:
            await pool.release(connection)

    async def _acquired(self, pool: asyncpg.Pool, seconds: float | None) -> PoolConnectionProxy:
        """Acquire a connection of whoever is primary now; who waited for one may have waited through a promotion."""
        async with asyncio.timeout(seconds):
            while True:
                if self._pools.get(pool, 0) != self._generation:
                    self._pools = {each: seen for each, seen in self._pools.items() if not each.is_closing()}
                    self._pools[pool] = self._generation
                    await pool.expire_connections()
                connection = await pool.acquire()
                if self._pools.get(pool, 0) == self._generation:
                    return connection
                await pool.release(connection)

    def protect(self, engine: Engine | AsyncEngine) -> None:
        """Guard the pool of an SQLAlchemy engine, from now on."""
        from sqlalchemy import event

        pooled = getattr(engine, "sync_engine", engine)
        event.listen(pooled, "connect", self._connected)
        event.listen(pooled, "checkout", self._checked_out)
        event.listen(pooled, "handle_error", _failed)

    def _connected(self, connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        try:
            cursor.execute(_LOOK)
            lineage, timeline = cursor.fetchone() or ("", None)
            self._see(lineage, timeline)
        except BaseException:
            connection.close()  # SQLAlchemy would leave it to the garbage collector
            raise
        finally:
            cursor.close()
        entry.info[_MARK] = self._generation

    def _checked_out(self, _: DBAPIConnection, entry: ConnectionPoolEntry, __: PoolProxiedConnection) -> None:
        from sqlalchemy.exc import DisconnectionError

        if entry.info.get(_MARK, self._generation) != self._generation:
            raise DisconnectionError("another server has been promoted")  # the pool connects anew

    def _see(self, lineage: str, timeline: str | None) -> None:
        """Compare who was reached with who was seen before."""
        number = int(timeline or "0", 16)
        why = ""
        if not number:
            why = "it is a standby"
        elif self._lineage and lineage != self._lineage:
            why = f"it is of another cluster, {lineage}, not {self._lineage}"
        elif number < self._timeline:
            why = f"it is a primary of timeline {number}, and another one has been promoted to {self._timeline}"
        if why:
            hint = "the primary is being replaced, or the connection string leads elsewhere: try again"
            raise Unreachable(f"the server that was reached takes none of our writes: {why}", hint=hint)
        if number > self._timeline > 0:
            self._generation += 1
        self._lineage, self._timeline = lineage, number


def _failed(context: ExceptionContext) -> None:
    """Have SQLAlchemy take 25006 for a broken connection: it then invalidates the whole pool."""
    error = context.original_exception
    if READ_ONLY in (getattr(error, "sqlstate", None), getattr(error, "pgcode", None)):
        context.is_disconnect = True
