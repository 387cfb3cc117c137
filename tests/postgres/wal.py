"""What the tests of archived WAL share: writing some, waiting for it, reading the log back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

from attrs import define, field

from resilience import Archive
from resilience.model.log import LogEntry
from resilience.postgres.lsn import parse_lsn
from resilience.postgres.wal.archiver import WalArchiver
from resilience.postgres.wal.names import segment_name
from resilience.primitives import Archiver, Log
from resilience.stores import MemoryStore
from resilience.testing.cancellation import nothing_left_running
from resilience.testing.postgres import TestServer

MIB = 1 << 20
SOON = 0.05
"""Seconds between slices, where a test waits for them."""
NEVER = 3600.0
"""The same where a test wants none."""
SECONDS = 30.0
PAUSE = 0.02


def write(server: TestServer, kilobytes: int = 100) -> int:
    """Have a server write about so much WAL; return up to where it is flushed."""
    server.psql(f"select pg_logical_emit_message(true, 'test', repeat('x', {kilobytes * 1024}))")
    return flushed(server)


def flushed(server: TestServer) -> int:
    """Return up to where a server has written its WAL."""
    return parse_lsn(server.psql("select pg_current_wal_flush_lsn()"))


def fill(server: TestServer, segments: int = 1) -> int:
    """Have a server finish some segments; return where the last one ends."""
    for _ in range(segments):
        write(server, 1)
        server.psql("select pg_switch_wal()")
    size = segment_size(server)
    end = parse_lsn(server.psql("select pg_current_wal_insert_lsn()"))
    return end - end % size


def segment_size(server: TestServer) -> int:
    """Return how many bytes a server's segments have."""
    return int(server.psql("select setting from pg_settings where name = 'wal_segment_size'"))


async def until(true: Callable[[], object]) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(PAUSE)


async def durable(wal: WalArchiver, lsn: int) -> None:
    """Wait until the archive has everything before `lsn`."""
    await until(lambda: (reached := wal.status.durable_lsn) is not None and reached.offset >= lsn)


async def received(wal: WalArchiver, lsn: int) -> None:
    """Wait until everything before `lsn` has come."""
    await until(lambda: (reached := wal.status.received_lsn) is not None and reached.offset >= lsn)


async def complete(wal: WalArchiver, moment: datetime) -> None:
    """Wait until everything acknowledged before a moment is known to be durable."""
    await until(lambda: (reached := wal.status.complete_at) is not None and reached > moment)


async def reconnected(wal: WalArchiver, times: int) -> None:
    """Wait until the archiver has connected again so many times."""
    await until(lambda: wal.status.reconnects >= times)


@asynccontextmanager
async def log_of(archive: Archiver, server: TestServer, name: str = "orders") -> AsyncGenerator[Log]:
    """Open the log of a server's lineage."""
    lineage = await asyncio.to_thread(server.psql, "select system_identifier from pg_control_system()")
    async with archive.log(name, system="postgresql", lineage=lineage) as log:
        yield log


@define
class Logged:
    """One branch of a log, read back; `entries` are what a reader needs for it."""

    begins: int
    data: bytearray = field(factory=bytearray)
    entries: list[LogEntry] = field(factory=list)

    @property
    def ends(self) -> int:
        return self.begins + len(self.data)


async def logged(log: Log, branch: str = "1") -> Logged:
    """Read all that a reader would of a branch; it has no hole."""
    found: Logged | None = None
    async for entry in log.entries(branch):
        if found is None:
            found = Logged(entry.begins.offset)
        at = entry.begins.offset - found.begins
        assert 0 <= at <= len(found.data), f"a hole before {entry}"
        data = b"".join(await log.read(entry))
        overlap = found.data[at:]
        assert overlap == data[: len(overlap)], f"{entry} differs from the one before"
        found.data[at:] = data
        found.entries.append(entry)
    assert found is not None, "nothing is logged"
    return found


async def as_the_server_has_it(
    archive: Archiver, server: TestServer, *, branch: str = "1", ends: int | None = None, data: Path | None = None
) -> Logged:
    """Insist that the log of a branch is, byte for byte, what the server has in its pg_wal, up to `ends` at least."""
    async with log_of(archive, server) as log:
        found = await logged(log, branch)
        watermark = await log.watermark(branch)
    assert watermark is not None and watermark.ends.offset == found.ends
    assert ends is None or found.ends >= ends
    size, compared = segment_size(server), 0
    for at in range(found.begins, found.ends, size):
        file = (data or server.data) / "pg_wal" / segment_name(branch, at, size)
        if file.exists():
            expected = file.read_bytes()[: found.ends - at]
            assert found.data[at - found.begins : at - found.begins + size] == expected, f"{file.name} differs"
            compared += 1
    assert compared
    return found


def drop_slot(server: TestServer, slot: str = "resilience_orders") -> None:
    """Drop a slot if it is there, whoever uses it."""
    mine = f"from pg_replication_slots where slot_name = '{slot}'"
    server.psql(f"select pg_terminate_backend(active_pid) {mine} and active")
    deadline = time.monotonic() + SECONDS
    while server.psql(f"select count(*) {mine} and active") != "0" and time.monotonic() < deadline:
        time.sleep(PAUSE)
    server.psql(f"select pg_drop_replication_slot(slot_name) {mine}")


def archiver(server: TestServer, archive: Archiver | None = None, **options: object) -> WalArchiver:
    """Make an archiver of a server as the role that may only replicate."""
    made = {"dsn": server.dsn("backup"), "archive": archive or Archive(MemoryStore()), "interval": SOON, **options}
    return WalArchiver("orders", **made)  # type: ignore[arg-type]


@asynccontextmanager
async def archiving(
    server: TestServer, archive: Archiver | None = None, **options: object
) -> AsyncGenerator[WalArchiver]:
    """Enter an archiver, and insist that nothing of it is left running."""
    async with nothing_left_running(), archiver(server, archive, **options) as wal:
        yield wal
