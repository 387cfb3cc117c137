"""Connections that speak the simple query protocol, read from psycopg's pgconn.

asyncpg knows only the extended protocol, which PgBouncer's console does not speak and which a pooler may spread over
several servers. psycopg's own `execute`, when it is cancelled, waits for the answer, and that may never come.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
from psycopg import conninfo, pq

from resilience.concurrency import stop_tasks

from .client import Dsn, mapped

CONNECT_SECONDS = 5


@asynccontextmanager
async def simply(dsn: Dsn, *, operation: str) -> AsyncIterator[pq.abc.PGconn]:
    """Open a connection; closed on leaving. Raises Unreachable, TimedOut or Refused.

    Unlike the other doors it is let go of at once when it is cancelled while it connects.
    """
    parameters = {"connect_timeout": str(CONNECT_SECONDS), "dbname": "postgres", **dsn.parameters}
    made = conninfo.make_conninfo("", **parameters)
    connecting = asyncio.create_task(psycopg.AsyncConnection.connect(made, autocommit=True))
    try:
        with mapped(dsn, operation):
            connection = await connecting
        yield connection.pgconn
    finally:
        await stop_tasks([connecting])
        if not connecting.cancelled() and connecting.exception() is None:
            connecting.result().pgconn.finish()


async def answered(pgconn: pq.abc.PGconn, command: str) -> list[pq.abc.PGresult]:
    """Send a message and return its results once all have come; cancelled, the connection is of no more use.

    Raises the drivers' errors; what the server refused is a result.
    """
    pgconn.send_query(command.encode())
    while pgconn.flush():
        await _ready(pgconn.socket, write=True)
    results: list[pq.abc.PGresult] = []
    while True:
        while pgconn.is_busy():
            await _ready(pgconn.socket)
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            return results
        results.append(result)


async def _ready(fileno: int, *, write: bool = False) -> None:
    """Wait until a socket can be read from, or written to."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    add, remove = (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
    add(fileno, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        remove(fileno)
