"""WAL in an archive without an archiver: what a server has flushed to its pg_wal is copied into a log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from resilience import Archive, Manifest
from resilience.model.capture import Restored
from resilience.model.log import Branch, LogEntry, Stretch
from resilience.model.moments import utc_now
from resilience.model.plans import RestorePlan
from resilience.model.positions import Position
from resilience.model.targets import RecoveryTarget
from resilience.postgres import PostgresDataDirectory, PostgresScratch
from resilience.postgres.lsn import parse_lsn, position
from resilience.postgres.wal_names import WalName, parse_history
from resilience.primitives import Log
from resilience.testing.postgres import TestServer

TARGET = "orders"


@asynccontextmanager
async def log_of(archive: Archive, manifest: Manifest) -> AsyncIterator[Log]:
    """Open the log that continues a backup."""
    async with archive.log(manifest.target, system=manifest.system, lineage=manifest.lineage) as log:
        yield log


async def archive_wal(server: TestServer, archive: Archive, manifest: Manifest) -> Position:
    """Append all WAL that a server has flushed, the open segment as a slice; return where it ends."""
    timeline, lsn, size = server.psql(
        "select timeline_id, pg_current_wal_flush_lsn(), "
        "(select setting from pg_settings where name = 'wal_segment_size') from pg_control_checkpoint()"
    ).split("|")
    ends, segment_size = parse_lsn(lsn), int(size)
    async with log_of(archive, manifest) as log:
        await log.record(Branch(name="1"))
        for path in sorted((server.data / "pg_wal").iterdir()):
            if path.suffix == ".history":
                await log.record(parse_history(int(path.stem, 16), path.read_text()))
        for path in sorted((server.data / "pg_wal").iterdir()):
            if path.is_dir() or path.suffix:
                continue
            name = WalName.parse(path.name, segment_size=segment_size)
            if name.begins is not None and name.begins < ends and name.timeline <= int(timeline):
                await _append(log, name.timeline, name.begins, min(ends, name.begins + segment_size), path.read_bytes())
    return position(timeline, ends)


async def _append(log: Log, timeline: int, begins: int, ends: int, data: bytes) -> None:
    now = utc_now()
    whole = ends - begins == len(data)
    entry = LogEntry(
        begins=position(timeline, begins),
        ends=position(timeline, ends),
        segment=None if whole else position(timeline, begins),
        latest=now,
        complete_at=now,
    )
    await log.append(entry, [data[: ends - begins]])


def replay_plan(
    manifest: Manifest,
    until: RecoveryTarget,
    *ends: Position,
    to_the_end: bool | None = None,
) -> RestorePlan:
    """Plan by hand to restore one backup and to replay up to where each branch ends, oldest first."""
    begins, replay = manifest.begins, []
    for end in ends:
        replay.append(Stretch(begins=position(end.branch, begins.offset), ends=end))
        begins = end
    return RestorePlan(
        target=manifest.target,
        destination="here",
        chain=(manifest.id,),
        until=until,
        replay=tuple(replay),
        to_the_end=until.kind == "latest" if to_the_end is None else to_the_end,
        read=0,
        written=0,
    )


async def replayed(
    archive: Archive, plan: RestorePlan, manifest: Manifest, into: PostgresDataDirectory | PostgresScratch
) -> Restored:
    """Carry out such a plan."""
    async with log_of(archive, manifest) as log, archive.open(manifest) as stored:
        return await into.apply(plan, chain=[stored], log=log)
