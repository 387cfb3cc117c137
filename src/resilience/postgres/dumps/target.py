"""PostgresDumpTarget: a logical backup of chosen databases and the cluster's globals, by pg_dump and pg_dumpall."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import ClassVar

import attrs
import msgspec
from attrs import define, field, frozen

from resilience.concurrency import in_background
from resilience.model.capture import Captured, Part
from resilience.model.errors import Corrupt, NotIncremental, Refused, ResilienceError, Unavailable, Unsupported
from resilience.model.facts import TargetFacts
from resilience.model.findings import Finding, Severity
from resilience.model.ids import checked_name
from resilience.model.moments import utc_now
from resilience.model.plans import BackupPlan
from resilience.model.positions import RecoveryPoint
from resilience.postgres import survey
from resilience.postgres.client import Dsn, parse_dsn, sql
from resilience.postgres.lsn import position
from resilience.postgres.tools import Running, Tools
from resilience.primitives import StoredBackup
from resilience.streams.frames import FRAME_SIZE

from . import staging
from .contents import GLOBALS, Contents, Database, part_name

CHUNKS_AHEAD = 2
PROGRAMS = ("pg_dump", "pg_dumpall")

_ACCESS = """
select oid::text, datistemplate as template, has_database_privilege(oid, 'connect') as may_connect,
       case when has_database_privilege(oid, 'connect') or pg_has_role('pg_read_all_stats', 'usage')
            then pg_database_size(oid) end as size
from pg_database
where datallowconn
"""

_ROLES = """
select array(select rolname::text from pg_roles where rolname !~ '^pg_' order by rolname) as roles,
       has_table_privilege('pg_catalog.pg_authid', 'select') as passwords
"""

# On a standby the timeline that is being received is current; the control file knows it only since the last checkpoint.
_NOW = """
select (select system_identifier::text from pg_control_system()) as lineage,
       coalesce(pg_last_wal_replay_lsn(), case when not pg_is_in_recovery() then pg_current_wal_lsn() end)::text as lsn,
       case when not pg_is_in_recovery()
            then ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int
            else coalesce((select received_tli from pg_stat_wal_receiver),
                          (select timeline_id from pg_control_checkpoint())) end as timeline,
       clock_timestamp() as now
"""


def _names(databases: Sequence[str] | None) -> tuple[str, ...] | None:
    if databases is None:
        return None
    if isinstance(databases, str):
        raise TypeError("databases is a list of names, not one name")
    if not databases:
        raise ValueError("databases names none: leave it out for all of them")
    return tuple(dict.fromkeys(databases))


@frozen
class PostgresDumpTarget:
    """A PostgreSQL server (15 to 18, primary or standby) to be backed up logically.

    `databases` are those to dump; None means every one that is no template and allows connections, except what an
    interrupted restore by this library has left. The role must be able to read everything in them (`pg_read_all_data`,
    and BYPASSRLS where there is row-level security); one that may not read pg_authid gets the roles without their
    passwords. `bin_dir` has a pg_dump of the server's major version or newer; without it, it is looked for on the PATH.

    Each database is consistent in itself, as of the moment its dump began; they are not consistent with one another.
    The recovery point is where the server stood before the first dump began: everything up to there is in the backup.
    """

    system: ClassVar[str] = "postgresql"
    kind: ClassVar[str] = "dump"

    name: str = field(converter=checked_name)
    dsn: Dsn = field(converter=parse_dsn, kw_only=True)
    databases: Sequence[str] | None = field(default=None, converter=_names, kw_only=True)
    bin_dir: str | Path | None = field(default=None, kw_only=True)
    clock: Callable[[], datetime] = field(default=utc_now, kw_only=True, repr=False)

    async def survey(self) -> TargetFacts:
        """Look at the server and at the programs here; what stands in the way is a finding. Writes nothing.

        The size is that of the databases on the server, indexes included; their dumps are usually smaller.
        """
        async with sql(self.dsn, operation="survey") as connection:
            (server,) = await connection.fetch(survey.SERVER)
            (roles,) = await connection.fetch(_ROLES)
            known = [dict(row) for row in await connection.fetch(survey.DATABASES)]
            access = {row["oid"]: row for row in await connection.fetch(_ACCESS)}
        wanted = [
            database
            for database in known
            if self._wants(database["name"], template=access[database["oid"]]["template"])
        ]
        major = server["version_num"] // 10000
        pg_dump, findings = await self._programs(major)
        contents = Contents(
            version=server["version"],
            major=major,
            pg_dump_major=pg_dump,
            from_standby=server["standby"],
            bootstrap_role=server["bootstrap_role"],
            role_passwords=roles["passwords"],
            roles=tuple(roles["roles"]),
            databases=msgspec.convert(wanted, tuple[Database, ...]),
        )
        shut = [database.name for database in contents.databases if not access[database.oid]["may_connect"]]
        return TargetFacts(
            target=self.name,
            system=self.system,
            kind=self.kind,
            lineage=server["lineage"],
            size=sum(access[database.oid]["size"] or 0 for database in contents.databases),
            findings=(
                *survey.unsupported(server["version_num"], server["version"], self.dsn),
                *findings,
                *self._obstacles(contents, shut),
            ),
            details=contents.details(),
        )

    @asynccontextmanager
    async def capture(self, plan: BackupPlan, *, parent: StoredBackup | None = None) -> AsyncIterator[DumpCapture]:
        """Begin a logical backup; a program that still runs on leaving, however, is ended and waited for."""
        if parent is not None:
            raise NotIncremental("a dump is always complete", operation="backup", subject=self.name)
        async with sql(self.dsn, operation="backup") as connection:
            (now,) = await connection.fetch(_NOW)
        if now["lineage"] != plan.lineage:
            raise Refused(
                f"the server is now of lineage {now['lineage']}, the plan was made for {plan.lineage}",
                operation="backup",
                subject=self.name,
            )
        point = RecoveryPoint(position=position(now["timeline"], now["lsn"]), time=now["now"])
        capture = DumpCapture(
            tools=Tools.at(self.bin_dir), dsn=self.dsn, contents=Contents.of(plan.details), point=point, size=plan.size
        )
        try:
            yield capture
        finally:
            await capture.close()

    def _wants(self, name: str, *, template: bool) -> bool:
        if self.databases is not None:
            return name in self.databases
        return not template and not staging.is_ours(name)

    async def _programs(self, major: int) -> tuple[int, list[Finding]]:
        """Look at the programs here: which major they are, 0 if they are missing, and what is wrong with them."""
        tools = Tools.at(self.bin_dir)
        try:
            found = min([await tools.major(program) for program in PROGRAMS])
        except Unsupported as missing:
            return 0, [self._finding("blocker", missing.what, missing.hint)]
        return found, [self._finding(*misfit) for misfit in _misfits(found, major)]

    def _obstacles(self, contents: Contents, shut: Sequence[str]) -> Iterator[Finding]:
        absent = set(self.databases or ()) - {database.name for database in contents.databases}
        if absent:
            names = ", ".join(f'"{name}"' for name in sorted(absent))
            yield self._finding("blocker", f"there is no database {names} to connect to", "name databases that exist")
        if not contents.databases and not absent:
            yield self._finding("blocker", "there is no database but templates", "name a template if you want one")
        for name in shut:
            yield self._finding("blocker", f'the role may not connect to database "{name}"', "grant it CONNECT there")
        if not contents.role_passwords:
            text = "the role may not read pg_authid: roles are backed up without their passwords"
            yield self._finding("warning", text, "use a superuser to have them")

    def _finding(self, severity: Severity, text: str, hint: str) -> Finding:
        return Finding(severity=severity, subject=self.dsn.where, text=text, hint=hint)


def _misfits(found: int, major: int) -> Iterator[tuple[Severity, str, str]]:
    """Judge whether the pg_dump found can read a server of that major, and who could read what it writes."""
    fitting = f"name programs of PostgreSQL {major} with bin_dir="
    if found < major:
        yield "blocker", f"the server is PostgreSQL {major}, the pg_dump here is {found} and cannot read it", fitting
    elif found > survey.NEWEST:
        yield "blocker", f"the pg_dump here is of PostgreSQL {found}, this release knows {survey.NEWEST}", fitting
    elif found >= 17 > major:
        # Newer programs set what older servers do not know; see `loading`.
        yield "warning", f"a dump by pg_dump {found} cannot be brought back to a server older than 17", fitting


@define(kw_only=True)
class DumpCapture:
    """A logical backup being read; see `primitives.Capture`."""

    tools: Tools
    dsn: Dsn
    contents: Contents
    point: RecoveryPoint
    size: int | None
    _dumped: list[Database] = field(factory=list, init=False)
    _reading: AsyncGenerator[bytes] | None = field(default=None, init=False, repr=False)

    async def parts(self) -> AsyncIterator[Part]:
        """Yield the globals, then every database."""
        yield Part(name=GLOBALS, chunks=self._output("pg_dumpall", self._of_globals()))
        for database in self.contents.databases:
            async with sql(self.dsn.database(database.name), operation="backup") as connection:
                now = await connection.fetchval("select clock_timestamp()")
            begun = attrs.evolve(database, part=part_name(database), snapshot_at=now)
            yield Part(name=begun.part, chunks=self._output("pg_dump", self._of(database)))
            self._dumped.append(begun)

    async def finish(self) -> Captured:
        """Return what was dumped: pg_dump has ended without an error for every database."""
        contents = attrs.evolve(self.contents, databases=tuple(self._dumped))
        return Captured(begins=self.point.position, recovery_point=self.point, details=contents.details())

    async def close(self) -> None:
        """End the program that still runs, if one does, and wait for it."""
        if self._reading is not None:
            await self._reading.aclose()

    def _of_globals(self) -> list[str]:
        return [
            "--globals-only",
            "--encoding=UTF8",
            f"--database={self.dsn.parameters.get('dbname', 'postgres')}",
            *([] if self.contents.role_passwords else ["--no-role-passwords"]),
            f"--dbname={self.dsn}",
        ]

    def _of(self, database: Database) -> list[str]:
        return ["--format=custom", "--compress=0", f"--dbname={self.dsn.database(database.name)}"]

    def _output(self, program: str, arguments: Sequence[str]) -> AsyncGenerator[bytes]:
        common = ["--no-password", "--quote-all-identifiers"]
        self._reading = _output(self.tools, program, [*common, *arguments], self.dsn)
        return self._reading


async def _output(tools: Tools, program: str, arguments: Sequence[str], dsn: Dsn) -> AsyncGenerator[bytes]:
    """Run a program and yield what it writes, a frame at a time. Raises what its failure means, at the end.

    The pipe is read by a thread (2.5 GB/s here, asyncio's own reader 0.6 to 2 GB/s, on the loop). It sees the pipe's
    end when the program has ended, which is why the program is started inside and ended before the thread is awaited.
    """
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as reader, os.fdopen(write_end, "wb", buffering=0) as writer:
        chunks = iter(partial(reader.read, FRAME_SIZE), b"")
        async with (
            in_background(chunks, ahead=CHUNKS_AHEAD, stop=writer.close) as items,
            tools.start(program, arguments, stdout=writer, environment=dsn.environment()) as running,
        ):
            writer.close()
            async for chunk in items:
                yield chunk
            await _succeeded(running, dsn)


async def _succeeded(running: Running, dsn: Dsn) -> None:
    status = await running.wait()
    if status == 0:
        return
    said = running.said or "it said nothing"
    kind: type[ResilienceError] = Unavailable
    hint = ""
    if "permission denied" in said or "row-level security" in said:
        kind, hint = Refused, "grant the role pg_read_all_data, and BYPASSRLS where there is row-level security"
    elif "invalid page in block" in said or "could not read block" in said or "missing chunk number" in said:
        kind, hint = Corrupt, "the server's data is damaged: look at the server, keep older backups"
    raise kind(
        f"{running.program} failed with status {status}: {said}", operation="backup", subject=dsn.where, hint=hint
    )
