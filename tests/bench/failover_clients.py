"""Clients of a failover bench, a process of their own: writers that log what was acknowledged, and probers.

`failover_clients.py LOG NAME=DATABASE@HOST:PORT[,HOST:PORT…] …` runs until its standard input ends. A route with
several hosts is one whose clients look for the primary themselves. Every line of the log is one thing that a client has
seen:

    w pool 17 1767225600.123456 1767225600.124567 7312…/1767225599000000    a write, acknowledged by this server
    f pool 18 1767225600.123456 1767225600.124567 closed                    a transaction that failed
    p pool 0 1767225600.123456 1767225600.124567 7312…/1767225599000000     somebody new came in there and could write

with the number of the write and when it was sent and answered. It speaks the protocol itself (PostgreSQL 55.2, simple
queries): what is measured here should not rest on what is measured.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import TextIO

from attrs import frozen

INSTANCE = (
    "(select system_identifier::text from pg_control_system())"
    " || '/' || (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint::text"
)
WRITERS = 4
PAUSE = 0.004
PATIENCE = 5.0
CONNECT = 0.5
PROBE_PAUSE = 0.01
PROBE_PATIENCE = 1.0
TABLE = "create table if not exists acknowledged (id bigint primary key, route text, at timestamptz default now())"
_PROBE = (
    "begin; set local synchronous_commit = local; "
    f"select {INSTANCE} from pg_logical_emit_message(true, 'bench.probe', ''); commit"
)
_FAILED = (OSError, TimeoutError, asyncio.IncompleteReadError, RuntimeError)


@frozen
class Route:
    """A way to the servers, as a client has it."""

    name: str
    database: str
    hosts: tuple[tuple[str, int], ...]

    @classmethod
    def parse(cls, text: str) -> Route:
        """Read `name=database@host:port,host:port`."""
        name, _, rest = text.partition("=")
        database, _, hosts = rest.partition("@")
        places = [each.rpartition(":") for each in hosts.split(",")]
        return cls(name, database, tuple((host, int(port)) for host, _, port in places))

    def __str__(self) -> str:
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{self.name}={self.database}@{hosts}"


class Failed(RuntimeError):
    """The server said no, with this SQLSTATE."""


@frozen
class Wire:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, statement: str) -> str:
        """Send a simple query and return the last value of its last row. Raises Failed, and OSError if it breaks.

        A commit whose wait for a standby was cancelled was not promised: that is a failure.
        """
        body = statement.encode() + b"\0"
        self.writer.write(b"Q" + (len(body) + 4).to_bytes(4, "big") + body)
        return await self.answer()

    async def answer(self) -> str:
        """Read up to ReadyForQuery."""
        value, failure = "", ""
        while True:
            head = await self.reader.readexactly(5)
            body = await self.reader.readexactly(int.from_bytes(head[1:], "big") - 4)
            match head[:1]:
                case b"D":
                    length = int.from_bytes(body[2:6], "big")
                    value = body[6 : 6 + length].decode()
                case b"E":
                    failure = failure or next(part[1:].decode() for part in body.split(b"\0") if part[:1] == b"C")
                case b"N" if b"wait for synchronous replication" in body:
                    failure = "not promised"
                case b"Z":
                    if failure:
                        raise Failed(failure)
                    return value
                case _:
                    continue


@asynccontextmanager
async def wire(host: str, port: int, database: str) -> AsyncIterator[Wire]:
    """Connect as postgres, without a password; cut off on leaving."""
    async with asyncio.timeout(CONNECT):
        reader, writer = await asyncio.open_connection(host, port)
    try:
        body = (196608).to_bytes(4, "big") + b"user\0postgres\0database\0" + database.encode() + b"\0\0"
        writer.write((len(body) + 4).to_bytes(4, "big") + body)
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()


@frozen
class Clients:
    """All clients of all routes."""

    log: TextIO
    numbers: Callable[[], int]

    async def write(self, route: Route, *, several: bool) -> None:
        """Write one row after another, `several` statements in a transaction or one; connect anew when that fails."""
        while True:
            sent, number = time.time(), 0
            try:
                async with self._in(route) as there:
                    while True:
                        number, sent = self.numbers(), time.time()
                        async with asyncio.timeout(PATIENCE):
                            instance = await self._one(there, route, number, several=several)
                        self._say("w", route, number, sent, instance)
                        await asyncio.sleep(PAUSE)
            except _FAILED as error:
                self._say("f", route, number, sent, (str(error) or type(error).__name__).replace(" ", "_"))
                await asyncio.sleep(PAUSE)

    async def probe(self, route: Route, host: str, port: int) -> None:
        """Come in anew again and again, and try to write."""
        while True:
            sent = time.time()
            try:
                async with wire(host, port, route.database) as there, asyncio.timeout(PROBE_PATIENCE):
                    await there.answer()
                    sent = time.time()
                    instance = await there.ask(_PROBE)
                self._say("p", route, 0, sent, instance)
            except _FAILED:
                pass
            await asyncio.sleep(PROBE_PAUSE)

    async def _one(self, there: Wire, route: Route, number: int, *, several: bool) -> str:
        insert = f"insert into acknowledged values ({number}, '{route.name}') returning {INSTANCE}"
        if not several:
            return await there.ask(insert)
        await there.ask("begin")
        instance = await there.ask(insert)
        await asyncio.sleep(0.001)
        await there.ask("commit")
        return instance

    @asynccontextmanager
    async def _in(self, route: Route) -> AsyncIterator[Wire]:
        """Connect; of several hosts to the first that takes writes."""
        failure: Exception = ConnectionError("nowhere")
        for host, port in route.hosts:
            entered = False
            try:
                async with wire(host, port, route.database) as there:
                    async with asyncio.timeout(PATIENCE if len(route.hosts) == 1 else CONNECT):
                        await there.answer()
                        read_only = len(route.hosts) > 1 and await there.ask("show transaction_read_only") == "on"
                    if not read_only:
                        entered = True
                        yield there
                        return
            except _FAILED as error:
                if entered:
                    raise
                failure = error
        raise failure

    def _say(self, kind: str, route: Route, number: int, sent: float, what: str) -> None:
        self.log.write(f"{kind} {route.name} {number} {sent:.6f} {time.time():.6f} {what}\n")


async def serve(log: str, routes: list[Route]) -> None:
    """Run the clients until standard input ends."""
    loop = asyncio.get_running_loop()
    numbers = count(1)
    with open(log, "a", buffering=1) as file:
        clients = Clients(file, lambda: next(numbers))
        tasks = [
            asyncio.create_task(clients.write(route, several=bool(each % 2)))
            for route in routes
            for each in range(WRITERS if len(route.hosts) == 1 else 2)
        ]
        tasks += [
            asyncio.create_task(clients.probe(route, host, port)) for route in routes for host, port in route.hosts
        ]
        await loop.run_in_executor(None, sys.stdin.read)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], [Route.parse(each) for each in sys.argv[2:]]))
