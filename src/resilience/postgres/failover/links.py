"""A connection to one member that is opened once and kept; a broken one is opened again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import asyncpg
from attrs import define, field

from resilience.concurrency import finish
from resilience.model.errors import TimedOut, Unreachable
from resilience.postgres.client import Dsn, connect, mapped

T = TypeVar("T")
NAME = "resilience failover"
# Whoever set these for the role or the database meant clients; how long a question may take is said with each.
_OURS = {"statement_timeout": "0", "lock_timeout": "0"}


@define(eq=False)
class Link:
    """The way to one member. Whoever asks waits for those who asked before."""

    dsn: Dsn
    _connection: asyncpg.Connection | None = field(default=None, init=False, repr=False)
    _turn: asyncio.Lock = field(factory=asyncio.Lock, init=False, repr=False)

    async def row(self, query: str, *arguments: object, seconds: float, operation: str) -> asyncpg.Record:
        """Return the only row of a query that writes nothing; asked again if the kept connection had broken."""

        async def ask(connection: asyncpg.Connection) -> asyncpg.Record:
            (row,) = await connection.fetch(query, *arguments)
            return row

        return await self.use(ask, seconds=seconds, operation=operation, again=True)

    async def execute(self, *statements: str, seconds: float, operation: str) -> None:
        """Run statements, each for itself."""

        async def run(connection: asyncpg.Connection) -> None:
            for statement in statements:
                await connection.execute(statement)

        await self.use(run, seconds=seconds, operation=operation)

    async def use(
        self,
        ask: Callable[[asyncpg.Connection], Awaitable[T]],
        *,
        seconds: float,
        operation: str,
        again: bool = False,
    ) -> T:
        """Ask something within so many seconds, connecting included. Raises Unreachable, TimedOut, Refused.

        With `again` it is asked once more if a connection that was kept turns out to be broken. Cancelled or too late,
        the connection is thrown away, for an answer may be on its way.
        """
        with mapped(self.dsn, operation):
            async with asyncio.timeout(seconds), self._turn:
                kept = self._connection is not None and not self._connection.is_closed()
                try:
                    return await self._ask(ask, operation, seconds)
                except Unreachable:
                    if not (kept and again):
                        raise
                    return await self._ask(ask, operation, seconds)

    async def _ask(self, ask: Callable[[asyncpg.Connection], Awaitable[T]], operation: str, seconds: float) -> T:
        if self._connection is None or self._connection.is_closed():
            self._connection = None
            self._connection = await connect(self._named(), operation=operation, within=seconds)
        connection = self._connection
        try:
            with mapped(self.dsn, operation):
                return await ask(connection)
        except (Unreachable, TimedOut, asyncio.CancelledError):
            self.drop()
            raise

    def _named(self) -> Dsn:
        return Dsn({"application_name": NAME, **_OURS, **self.dsn.parameters})

    def drop(self) -> None:
        """Throw the connection away without asking anybody."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def aclose(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None and not connection.is_closed():
            with suppress(TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await finish(connection.close(timeout=1))
            connection.terminate()
