"""WAL in an archive without an archiver: what a server has flushed to its pg_wal is copied into a log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

import asyncpg

from resilience import Archive, Manifest, backup
from resilience.model.log import Branch, LogEntry
from resilience.model.moments import utc_now
from resilience.model.positions import Position
from resilience.postgres import PostgresDataDirectory, PostgresScratch, PostgresTarget
from resilience.postgres.lsn import parse_lsn, position
from resilience.postgres.wal.names import WalName, parse_history
from resilience.primitives import Log
from resilience.testing.postgres import TestServer

SETTINGS = {"wal_keep_size": "1GB", "autovacuum": "off", "track_commit_timestamp": "on"}
"""Of a server whose WAL is to be copied later, and that says when a row was committed."""
_WHERE = """
select timeline_id, pg_current_wal_flush_lsn(), (select setting from pg_settings where name = 'wal_segment_size')
from pg_control_checkpoint()
"""


async def back_up(server: TestServer, archive: Archive) -> Manifest:
    """Take a base backup."""
    return (await backup(PostgresTarget("orders", dsn=server.dsn("backup")), archive)).manifest


@asynccontextmanager
async def log_of(archive: Archive, manifest: Manifest) -> AsyncIterator[Log]:
    """Open the log that continues a backup."""
    async with archive.log(manifest.target, system=manifest.system, lineage=manifest.lineage) as log:
        yield log


async def archive_wal(
    server: TestServer, archive: Archive, manifest: Manifest, *, database: str = "postgres"
) -> Position:
    """Append all WAL that a server has flushed, the open segment as a slice; return where it ends."""
    server.psql("checkpoint", database=database)
    now = utc_now()
    timeline, lsn, size = server.psql(_WHERE, database=database).split("|")
    ends, segment_size = parse_lsn(lsn), int(size)
    files = sorted(path for path in (server.data / "pg_wal").iterdir() if path.is_file())
    async with log_of(archive, manifest) as log:
        await log.record(Branch(name="1"))
        for path in files:
            if path.suffix == ".history":
                await log.record(parse_history(int(path.stem, 16), path.read_text()))
        for path in files:
            if not path.suffix:
                name = WalName.parse(path.name, segment_size=segment_size)
                if name.begins is not None and name.begins < ends and name.timeline <= int(timeline):
                    upto = min(ends, name.begins + segment_size)
                    await append(log, name.timeline, name.begins, upto, path.read_bytes(), now=now)
    return position(timeline, ends)


async def append(log: Log, timeline: int, begins: int, ends: int, data: bytes, *, now: datetime) -> None:
    """Append a segment, or a slice of it if it is not complete."""
    whole = ends - begins == len(data)
    entry = LogEntry(
        begins=position(timeline, begins),
        ends=position(timeline, ends),
        segment=None if whole else position(timeline, begins),
        latest=now,
        complete_at=now,
    )
    await log.append(entry, [data[: ends - begins]])


def insert(server: TestServer, row: int) -> datetime:
    """Insert a row into `rows` and return when it was committed."""
    server.psql(f"insert into rows values ({row})")
    when = f"select pg_xact_commit_timestamp(xmin) at time zone 'UTC' from rows where id = {row}"
    return datetime.fromisoformat(server.psql(when) + "+00:00")


async def ask(into: PostgresDataDirectory | PostgresScratch, query: str) -> object:
    """Ask the restored data, isolated, one question."""
    async with into.live() as live:
        connection = await asyncpg.connect(live.dsn)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()


async def rows(into: PostgresDataDirectory | PostgresScratch) -> object:
    """Return the rows that came back."""
    return await ask(into, "select array_agg(id order by id) from rows")


MICROSECOND = timedelta(microseconds=1)
