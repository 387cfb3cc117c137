"""How long commits take to become durable: in our archive, by streaming, and in pg_receivewal's files."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import asyncpg

from resilience import Archive
from resilience.postgres import WalArchiver
from resilience.postgres.lsn import parse_lsn
from resilience.postgres.tools import Tools
from resilience.stores import LocalStore
from resilience.testing.postgres import TestServer
from shippers import OURS

PROBE_SECONDS = 0.05
INTERVAL = 0.5
FLUSHED = "select flush_lsn::text from pg_stat_replication where application_name = 'pg_receivewal'"


async def delays(server: TestServer, root: Path, seconds: float) -> dict[str, Sequence[float]]:
    """Measure from commits' answers to their WAL being durable: in our archive, and in pg_receivewal's file."""
    found: dict[str, Sequence[float]] = {}
    with pgbench(server, seconds * 2 + 30):
        archive = Archive(LocalStore(root))
        async with WalArchiver("bench", dsn=server.dsn("backup"), archive=archive, interval=INTERVAL) as wal:

            async def archived() -> int:
                durable = wal.status.durable_lsn
                return durable.offset if durable else 0

            found[OURS] = await probe(server, archived, seconds)
        with receivewal(server, root.parent / "received"):
            async with contextlib.AsyncExitStack() as stack:
                watching = await asyncpg.connect(server.uri())
                stack.push_async_callback(watching.close)

                async def received() -> int:
                    return parse_lsn(await watching.fetchval(FLUSHED) or "0/0")

                found["pg_receivewal --synchronous"] = await probe(server, received, seconds)
    return found


async def probe(server: TestServer, durable: Callable[[], Awaitable[int]], seconds: float) -> list[float]:
    """Commit something now and then, and wait each time until its WAL is durable; seconds from the commit's answer."""
    connection = await asyncpg.connect(server.uri())
    await connection.execute("create table if not exists probe (made timestamptz)")
    waiting: deque[tuple[int, float]] = deque()
    waits: list[float] = []
    ended = time.monotonic() + seconds

    async def watch() -> None:
        while waiting or time.monotonic() < ended:
            reached = await durable()
            while waiting and waiting[0][0] <= reached:
                waits.append(time.monotonic() - waiting.popleft()[1])
            await asyncio.sleep(0.002)

    watching = asyncio.create_task(watch())
    while time.monotonic() < ended:
        await connection.execute("insert into probe values (now())")
        answered = time.monotonic()
        waiting.append((parse_lsn(await connection.fetchval("select pg_current_wal_flush_lsn()::text")), answered))
        await asyncio.sleep(PROBE_SECONDS)
    await watching
    await connection.close()
    return waits


@contextlib.contextmanager
def pgbench(server: TestServer, seconds: float) -> Iterator[None]:
    """Run pgbench at full speed until leaving."""
    server.run("pgbench", "-i", "-q", "-s", "10", server.dsn())
    tools = Tools.at(server.bin_dir)
    command = [tools.path("pgbench"), "-n", "-c", "2", "-T", str(int(seconds)), server.dsn()]
    with ended(
        subprocess.Popen(command, env=tools.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ):
        yield


@contextlib.contextmanager
def receivewal(server: TestServer, folder: Path) -> Iterator[None]:
    """Run pg_receivewal, syncing what it writes, until leaving."""
    folder.mkdir()
    tools = Tools.at(server.bin_dir)
    command = [tools.path("pg_receivewal"), "-D", str(folder), "--synchronous", "-n", "-d", server.dsn()]
    with ended(subprocess.Popen(command, env=tools.environment(), stderr=subprocess.DEVNULL)):
        yield


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End a process on leaving."""
    try:
        yield
    finally:
        process.terminate()
        process.wait()
