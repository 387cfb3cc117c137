"""What the tests of routes share: clients, and PgBouncers that lead to servers."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import psycopg
from attrs import define, field

from resilience.pgbouncer import PgBouncerSwitch
from resilience.postgres.instance import INSTANCE
from resilience.testing.pgbouncer import TestPgBouncer
from resilience.testing.postgres import TestServer


def at(server: TestServer) -> str:
    """Return where a server listens."""
    return f"127.0.0.1:{server.port}"


def line(server: TestServer, more: str = "dbname=postgres") -> str:
    """Return what follows the name of a database in PgBouncer's configuration."""
    return f"host=127.0.0.1 port={server.port} {more}"


def instance(server: TestServer) -> str:
    """Ask a server directly which one it is."""
    return server.psql(f"select {INSTANCE}")


def switch_of(bouncer: TestPgBouncer, members: Mapping[str, TestServer], **options: object) -> PgBouncerSwitch:
    """Return the switch of all databases of a PgBouncer."""
    given: dict[str, object] = {
        "console": bouncer.console(),
        "through": bouncer.dsn(next(iter(bouncer.databases))),
        "databases": list(bouncer.databases),
        "members": {name: at(server) for name, server in members.items()},
        **options,
    }
    return PgBouncerSwitch("orders", **given)  # type: ignore[arg-type]  # what a test says is what it means


async def connected(dsn: str) -> psycopg.AsyncConnection:
    """Connect as a client of a pooler does: without prepared statements."""
    return await psycopg.AsyncConnection.connect(dsn, autocommit=True, prepare_threshold=None)


async def wrote(dsn: str) -> str:
    """Connect, write something that needs no table, and return the instance that took it."""
    async with await connected(dsn) as connection:
        return await wrote_again(connection)


async def wrote_again(connection: psycopg.AsyncConnection) -> str:
    """Write through an open connection, and return the instance that took it."""
    statement = f"select {INSTANCE}, pg_logical_emit_message(true, 'test', '')"
    row = await (await connection.execute(statement.encode())).fetchone()
    assert row is not None
    return str(row[0])


@define
class Writers:
    """Clients that write one transaction after another, each of two statements, and what they were told."""

    dsn: str
    acknowledged: list[tuple[int, int]] = field(factory=list)
    moments: list[float] = field(factory=list)
    errors: list[str] = field(factory=list)

    async def run(self, client: int) -> None:
        """Write until cancelled; connect again after an error."""
        number = 0
        while True:
            try:
                async with await connected(self.dsn) as connection:
                    while True:
                        number += 1
                        async with connection.transaction():
                            await connection.execute("insert into written values (%s, %s)", (client, number))
                            await asyncio.sleep(0.0005)
                            await connection.execute("select 1")
                        self.acknowledged.append((client, number))
                        self.moments.append(time.monotonic())
            except psycopg.Error as error:
                self.errors.append(" ".join(str(error).split()))
                await asyncio.sleep(0.005)

    @property
    def pause(self) -> float:
        """The longest time without an acknowledged write, in seconds."""
        return max(after - before for before, after in zip(self.moments, self.moments[1:], strict=False))

    async def beyond(self, count: int) -> None:
        """Wait until so many more writes were acknowledged."""
        wanted = len(self.acknowledged) + count
        async with asyncio.timeout(20):
            while len(self.acknowledged) < wanted:
                await asyncio.sleep(0.002)


@asynccontextmanager
async def writing(dsn: str, clients: int = 4) -> AsyncIterator[Writers]:
    """Have clients write; they are waited for on leaving."""
    writers = Writers(dsn)
    tasks = [asyncio.create_task(writers.run(client)) for client in range(clients)]
    try:
        yield writers
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def kept(*servers: TestServer) -> set[tuple[int, int]]:
    """Return what the servers have of it."""
    rows = [row for server in servers for row in server.psql("select client, number from written").split()]
    return {(int(client), int(number)) for client, _, number in (row.partition("|") for row in rows)}


def processes(server: TestServer) -> list[int]:
    """Return the processes of a server, the postmaster first."""
    first = int((server.data / "postmaster.pid").read_text().split()[0])
    children = subprocess.run(["pgrep", "-P", str(first)], capture_output=True, text=True, check=False).stdout
    return [first, *map(int, children.split())]
