"""Brings a data directory that was just unpacked to where it was asked to stop, and reads back what it became."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from datetime import datetime
from functools import partial

import asyncpg
from attrs import Factory, define, evolve, field, frozen

from resilience.concurrency import closing, in_thread
from resilience.folders import write_durably
from resilience.model.capture import Restored
from resilience.model.errors import Corrupt, Interrupted, ResilienceError, StorageFailed
from resilience.model.findings import Finding
from resilience.model.manifests import Manifest
from resilience.model.plans import RestorePlan
from resilience.model.positions import RecoveryPoint
from resilience.primitives import Reached

from . import stopping
from .buffers import shared_buffers
from .client import sql
from .ending import NOTHING_MORE, Ending, lines
from .isolation import Isolation, Server
from .lsn import parse_lsn, position
from .mark import Mark
from .new_tablespaces import NewTablespaces
from .wal.end import WalEnd
from .wal.names import segment_name
from .wal.prefetch import Feeder

RECOVERY, STANDBY = "recovery.signal", "standby.signal"
STUCK_SECONDS = 30.0
_DISK_FULL = os.strerror(errno.ENOSPC)
_OUTGROWN = "insufficient parameter settings"
_LOOK = """
select pg_is_in_recovery() as recovering,
       case when pg_is_in_recovery() then pg_get_wal_replay_pause_state() = 'paused' end as paused,
       pg_last_wal_replay_lsn()::text as lsn,
       pg_last_xact_replay_timestamp() as time
"""
_OIDS = "select array_agg(oid::text) from pg_tablespace"
_COLLATIONS = """
select datname as name, datcollversion as was, pg_database_collation_actual_version(oid) as is_now
from pg_database
where datallowconn and datcollversion <> pg_database_collation_actual_version(oid)
order by datname
"""
# Nothing is synced while recovery runs: whoever runs it makes everything durable at once, before the mark is lifted.
_FAST = {
    "fsync": "off",
    "checkpoint_timeout": "30min",
    # Without it the end of recovery would remove the timestamps, had it been switched on after the backup; a server
    # that starts with it off removes them then.
    "track_commit_timestamp": "on",
}


@frozen
class _Look:
    """What the server says of its recovery."""

    recovering: bool
    paused: bool
    lsn: str | None
    time: datetime | None


class _Outgrown(Exception):
    """The WAL demands larger settings than the server was started with; pg_control knows them by now."""


@define(kw_only=True)
class Recovery:
    """Recovery on `isolation.data`, as the plan says, from the WAL that came with the backup and what `feeder` has.

    Afterwards `again` are the settings with which an isolated server stays where recovery has ended.
    """

    isolation: Isolation
    manifest: Manifest
    plan: RestorePlan
    feeder: Feeder | None = None
    ending: Ending
    new_tablespaces: NewTablespaces = field(
        default=Factory(lambda self: NewTablespaces(self.isolation.data), takes_self=True)
    )
    reached: Reached | None = None
    again: Mapping[str, str] = field(factory=dict, init=False)
    _oids: Collection[str] = field(default=(), init=False)
    _told: RecoveryPoint | None = field(default=None, init=False)
    _reads_ahead: bool = field(default=True, init=False)

    async def run(self) -> Restored:
        """Recover, compare what was reached with what was asked, end as asked, and stop the server cleanly.

        What was written is not durable yet. Raises NotRecoverable if the target is not in the log, LogGap and other
        Corrupt if the log is damaged or the recovery stops short, Unavailable if its store stays away, StorageFailed if
        the disk is full, Interrupted with the server's own words if it cannot start.
        """
        asked = self._asked()
        while True:
            try:
                with self.new_tablespaces.guarded():
                    restored = await self._attempt(asked)
                await in_thread(self.new_tablespaces.tidy, self._oids)
                return restored
            except _Outgrown:
                continue
            except Interrupted as error:
                if asked and stopping.NOT_REACHED in error.what and self._answered_by_all():
                    asked = {}
                    if self.feeder is not None:
                        self.feeder.ends = self._ends
                    continue
                if asked and self._reads_ahead and self.feeder is not None and isinstance(self.feeder.failed, Corrupt):
                    self._reads_ahead, self.feeder.failed = False, None  # what is damaged may lie behind the target
                    continue
                if (meant := self._meant(error.what)) is None:
                    raise
                raise meant from error

    def _meant(self, said: str) -> ResilienceError | None:
        """Return what a server's last words mean; None if they have to speak for themselves."""
        until, target = self.plan.until, self.manifest.target
        if self.feeder is not None and self.feeder.failed is not None:
            return self.feeder.failed
        if _DISK_FULL in said:
            return StorageFailed(said, operation="restore", subject=str(self.isolation.data), hint="make room")
        if stopping.TOO_EARLY in said:
            return stopping.too_early(until, subject=target)
        if stopping.NOT_REACHED in said:
            return stopping.missed(until, subject=target)
        return self.new_tablespaces.refusal(said, subject=target)

    def settle(self, mark: Mark) -> None:
        """Write what a server that is still in recovery needs to go on, before the mark is lifted."""
        if self.ending.end == "promote":
            return
        asked = {name: value for name, value in self.again.items() if name.startswith("recovery_target")}
        mark.configure(lines(self.ending.settings(asked, self.timeline)))
        if self.ending.end == "standby":
            self._signal(waits=True)

    @property
    def timeline(self) -> str:
        """The timeline to end on."""
        return self.plan.replay[-1].branch if self.plan.replay else self.manifest.recovery_point.position.branch

    @property
    def _ends(self) -> int:
        return self.plan.replay[-1].ends.offset

    def _asked(self) -> dict[str, str]:
        if self.plan.replay:
            return {} if self.plan.to_the_end else stopping.settings_for(self.plan.until)
        if self.manifest.details.get("from_standby"):
            # It may have received more than it had replayed; a primary's backup ends where its WAL ends.
            stop = self.manifest.recovery_point.position.text
            return {"recovery_target_inclusive": "off", "recovery_target_lsn": stop}
        return {}

    def _answered_by_all(self) -> bool:
        """Tell whether everything there is answers a target that was not met."""
        # Of an idle standby there is no record at or after the backup's end; PostgreSQL takes that for a target missed.
        return stopping.ends_before(self.plan.until, self._ends) if self.plan.replay else True

    async def _attempt(self, asked: Mapping[str, str]) -> Restored:
        waits = not asked and self.ending.end != "promote"
        await in_thread(partial(self._signal, waits=waits))
        demanded = (await self.isolation.control()).settings
        settings = {
            **_FAST,
            "shared_buffers": await in_thread(shared_buffers),
            # Recovery demands a restore_command; exit status 1 says that there is nothing more (26.3.5).
            "restore_command": self.feeder.command() if self.feeder else NOTHING_MORE,
            "recovery_target_timeline": self.timeline,
            # Nothing is archived now, but the new timeline's history is noted for whoever archives later.
            "archive_mode": "on",
            "recovery_target_action": "pause",
            "recovery_prefetch": "try" if self._reads_ahead else "off",
            **asked,
        }
        async with (
            self.feeder.feeding() if self.feeder else nullcontext(),
            self.isolation.run(settings) as server,
        ):
            look = await self._until_there(server, waits=waits)
            if look.recovering and self._outgrew(demanded, (await self.isolation.control()).settings):
                raise _Outgrown
            point = await self._proven(look, asked)
            if self.ending.end == "promote":
                await self._promote(server, look)
            elif not look.recovering:
                what = "recovery ended although it was to stay: it could not be opened for reading at its target"
                raise Interrupted(what, operation="restore", hint="restore it with end='promote'")
            async with sql(server.dsn, operation="restore") as connection:
                collations = await connection.fetch(_COLLATIONS)
                self._oids = await connection.fetchval(_OIDS)
        self.isolation = evolve(self.isolation, database=server.dsn.parameters["dbname"])
        if self.ending.end != "promote":
            self.again = {
                "restore_command": NOTHING_MORE,
                "recovery_target_timeline": self.timeline,
                "recovery_target_action": "pause",
                **asked,
            }
        return Restored(
            reached=evolve(point, time=point.time or self.manifest.recovery_point.time),
            findings=tuple(_collation(row["name"], row["was"], row["is_now"]) for row in collations),
        )

    async def _until_there(self, server: Server, *, waits: bool) -> _Look:
        """Look on until recovery has met its target, has ended, or (`waits`) has replayed all there is."""
        still: float | None = None
        try:
            async with closing(server.watch(_LOOK)) as rows:
                async for row in rows:
                    look, moved = _seen(row), self._tell(_seen(row))
                    if not look.recovering or look.paused:
                        return look
                    still = None if moved else still or time.monotonic()
                    if waits and still is not None and await self._has_all(look, time.monotonic() - still):
                        return look
        except Interrupted as error:
            if _OUTGROWN in error.what:
                raise _Outgrown from error
            raise
        raise Interrupted("the server stopped answering", operation="restore", subject=self.manifest.target)

    async def _has_all(self, look: _Look, seconds: float) -> bool:
        """Tell whether a server that waits for more, and has not moved for so long, has replayed all there is."""
        point = self._point(look)
        if self.feeder is None:
            return point.position.offset >= self.manifest.recovery_point.position.offset
        return self.feeder.exhausted and (seconds > STUCK_SECONDS or await self._is_end(point))

    def _outgrew(self, had: Mapping[str, str], demanded: Mapping[str, str]) -> bool:
        """Tell whether the WAL has raised a setting; recovery then pauses, or cannot be trusted to go on."""
        return any(value.isdigit() and int(value) > int(had[name]) for name, value in demanded.items())

    async def _proven(self, look: _Look, asked: Mapping[str, str]) -> RecoveryPoint:
        """Return where recovery stopped. Raises Corrupt or Interrupted if that is not what was asked for."""
        target = self.manifest.target
        if look.lsn is None:
            raise Corrupt("the server started without recovering", operation="restore", subject=target)
        point, wanted = self._point(look), self.manifest.recovery_point.position
        if point.position.offset < wanted.offset:
            what = f"recovery reached {point.position}, the backup is consistent only from {wanted} on"
            raise Corrupt(what, operation="restore", subject=target)
        if self.plan.replay:
            stopping.check(self.plan.until, point, met=bool(asked), subject=target)
            if not asked and not await self._is_end(point):
                raise Corrupt(
                    f"recovery stopped at {point.position}, where the WAL makes no sense to it, but the log goes on up "
                    f"to {self.plan.replay[-1].ends}",
                    operation="restore",
                    subject=target,
                    hint="what lies before it can be restored: name it as the target",
                )
        return point

    async def _is_end(self, point: RecoveryPoint) -> bool:
        """Tell whether the log ends where recovery has stopped, and not with a record that it could not read."""
        at = point.position.offset
        if self.feeder is None or at >= self._ends:
            return True
        size = self.feeder.source.segment_size
        segment = await self.feeder.fetch(segment_name(point.position.branch, at, size))
        return segment is None or WalEnd(ends=self._ends, segment_size=size).after(at, segment) != "a record"

    async def _promote(self, server: Server, look: _Look) -> None:
        if look.recovering:
            isolation = self.isolation
            arguments = ["promote", "-D", str(isolation.data), "-W", "-s"]
            async with isolation.tools.start("pg_ctl", arguments, account=isolation.account) as running:
                await running.succeed(Interrupted)
        await server.ready("select not pg_is_in_recovery()", seconds=None)

    def _tell(self, look: _Look) -> bool:
        """Tell how far recovery has come; return whether it has moved."""
        if look.lsn is None or (point := self._point(look)) == self._told:
            return False
        self._told = point
        if self.reached is not None:
            self.reached(point)
        return True

    def _point(self, look: _Look) -> RecoveryPoint:
        at = parse_lsn(look.lsn or "0/0")
        branches = (stretch.branch for stretch in self.plan.replay if at < stretch.ends.offset)
        return RecoveryPoint(position=position(next(branches, self.timeline), at), time=look.time)

    def _signal(self, *, waits: bool) -> None:
        """Choose what the server does when the WAL ends: wait for more, or end its recovery."""
        data = self.isolation.data
        mode = (data / "PG_VERSION").stat().st_mode & 0o777
        write_durably(data / (STANDBY if waits else RECOVERY), b"", self.isolation.account, mode=mode)
        (data / (RECOVERY if waits else STANDBY)).unlink(missing_ok=True)


def _seen(row: asyncpg.Record) -> _Look:
    return _Look(row["recovering"], bool(row["paused"]), row["lsn"], row["time"])


def _collation(database: str, was: str, is_now: str) -> Finding:
    return Finding(
        severity="warning",
        subject=f"database {database}",
        text=f"its collation version was {was} and is {is_now} here, so indexes on text may be in the wrong order",
        hint="REINDEX what sorts text, then ALTER DATABASE … REFRESH COLLATION VERSION",
    )
