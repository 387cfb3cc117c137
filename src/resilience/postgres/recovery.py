"""Brings a data directory that was just unpacked to consistency and reads back what it became."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from resilience.model.capture import Restored
from resilience.model.errors import Corrupt, Interrupted
from resilience.model.findings import Finding
from resilience.model.manifests import Manifest
from resilience.model.positions import RecoveryPoint

from .client import sql
from .isolation import Isolation
from .lsn import position

_NOT_REACHED = "before configured recovery target was reached"

_COLLATIONS = """
select datname as name, datcollversion as was, pg_database_collation_actual_version(oid) as is_now
from pg_database
where datallowconn and datcollversion <> pg_database_collation_actual_version(oid)
order by datname
"""


async def recover(isolation: Isolation, manifest: Manifest) -> Restored:
    """Replay the WAL that came with the backup, then end recovery on a new timeline.

    A primary ends its WAL where the backup ends, so all of it is replayed. A standby may have received more than it had
    replayed: there recovery stops at the backup's end. The server is isolated meanwhile and stopped cleanly afterwards.
    Raises Corrupt if it stops short of the backup's recovery point, Interrupted with the server's own words if it
    cannot start.
    """
    if manifest.details.get("from_standby"):
        # Of an idle standby there is no record at or after that point; PostgreSQL takes that for a target not reached.
        stop = {"recovery_target_inclusive": "off", "recovery_target_lsn": manifest.recovery_point.position.text}
        try:
            return await _recover(isolation, manifest, {**stop, "recovery_target_action": "promote"})
        except Interrupted as error:
            if _NOT_REACHED not in error.what:
                raise
    return await _recover(isolation, manifest, {})


async def _recover(isolation: Isolation, manifest: Manifest, target: Mapping[str, str]) -> Restored:
    settings = {
        # Recovery demands a restore_command; exit status 1 says that there is nothing more (26.3.5).
        "restore_command": "exit 1",
        "recovery_target_timeline": "current",
        # Nothing is archived now, but the new timeline's history is noted for whoever archives later.
        "archive_mode": "on",
        **target,
    }
    async with isolation.run(settings) as server:
        await server.ready("select not pg_is_in_recovery()", seconds=None)
        async with sql(server.dsn, operation="restore") as connection:
            lsn: str | None = await connection.fetchval("select pg_last_wal_replay_lsn()::text")
            time: datetime | None = await connection.fetchval("select pg_last_xact_replay_timestamp()")
            collations = await connection.fetch(_COLLATIONS)
    return Restored(
        reached=_proven(manifest, lsn, time),
        findings=tuple(_collation(row["name"], row["was"], row["is_now"]) for row in collations),
    )


def _proven(manifest: Manifest, lsn: str | None, time: datetime | None) -> RecoveryPoint:
    wanted = manifest.recovery_point
    if lsn is None:
        raise Corrupt("the server started without recovering", operation="restore", subject=manifest.target)
    reached = position(wanted.position.branch, lsn)
    if reached.offset < wanted.position.offset:
        raise Corrupt(
            f"recovery reached {reached}, the backup is consistent only from {wanted.position} on",
            operation="restore",
            subject=manifest.target,
        )
    return RecoveryPoint(position=reached, time=time or wanted.time)


def _collation(database: str, was: str, is_now: str) -> Finding:
    return Finding(
        severity="warning",
        subject=f"database {database}",
        text=f"its collation version was {was} and is {is_now} here, so indexes on text may be in the wrong order",
        hint="REINDEX what sorts text, then ALTER DATABASE … REFRESH COLLATION VERSION",
    )
