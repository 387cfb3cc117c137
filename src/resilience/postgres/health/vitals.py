"""What the doctor looks at in a PostgreSQL server (28.2, 52.19 to 52.26, 9.28): read-only, as plain values.

A role that may only LOGIN and REPLICATION sees nearly all of it; what is left to pg_monitor is None for others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import asyncpg
from attrs import field, frozen
from psycopg import generators, pq, waiting

from resilience.model.errors import ResilienceError, TimedOut
from resilience.postgres.client import Dsn, replication, sql

DEADLINE_SECONDS = 60.0
SAMPLE_SECONDS = 0.5
AVERAGE_SECONDS = 600.0
"""Statistics younger than this say more about a start than about the load."""

LOCAL_ADDRESSES = ("127.0.0.1", "::1")
_UNITS = {"B": 1, "kB": 1024, "8kB": 8192, "MB": 1 << 20, "ms": 0.001, "s": 1, "min": 60}

WANTED = (
    "archive_command",
    "archive_library",
    "archive_mode",
    "archive_timeout",
    "data_checksums",
    "fsync",
    "full_page_writes",
    "idle_replication_slot_timeout",
    "max_replication_slots",
    "max_slot_wal_keep_size",
    "max_wal_senders",
    "max_wal_size",
    "password_encryption",
    "summarize_wal",
    "synchronous_commit",
    "synchronous_standby_names",
    "wal_keep_size",
    "wal_level",
    "wal_segment_size",
    "wal_sender_timeout",
    "wal_summary_keep_time",
)
"""The settings that are read, of the hundreds there are: some of the others hold secrets."""

SERVER = """
select current_setting('server_version') as version,
       current_setting('server_version_num')::int / 10000 as major,
       (select system_identifier::text from pg_control_system()) as lineage,
       pg_is_in_recovery() as standby,
       case when pg_is_in_recovery() then (select timeline_id from pg_control_checkpoint())
            else ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int end as timeline,
       current_user::text as role, r.rolsuper as superuser, r.rolreplication as replication,
       pg_has_role(current_user, 'pg_monitor', 'usage') as monitor,
       host(inet_client_addr()) as client,
       (select version from pg_stat_ssl where pid = pg_backend_pid() and ssl) as tls,
       (select count(*)::int from pg_stat_get_wal_senders()) as senders,
       exists (select from pg_stat_wal_receiver) as receiving,
       case when pg_is_in_recovery() then pg_is_wal_replay_paused() else false end as paused
from pg_roles r
where r.rolname = current_user
"""

POSITION = """
select clock_timestamp() as now,
       case when pg_is_in_recovery()
         then greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0'
         else pg_current_wal_flush_lsn() - '0/0' end::bigint as position,
       case when pg_is_in_recovery() then pg_last_wal_replay_lsn() - '0/0' end::bigint as replayed
"""

SETTINGS = """
select name, setting, unit, current_setting(name) as text, pending_restart
from pg_settings
where name = any($1)
"""

SLOTS = """
select slot_name::text as name, slot_type = 'physical' as physical, temporary, active, active_pid,
       (restart_lsn - '0/0')::bigint as restart, wal_status as status, safe_wal_size as safe,
       (to_jsonb(s) ->> 'inactive_since')::timestamptz as inactive_since,
       coalesce((to_jsonb(s) ->> 'synced')::boolean, false) as synced
from pg_replication_slots s
order by slot_name
"""

ARCHIVER = """
select archived_count::int as archived, last_archived_wal as last_archived, last_archived_time as archived_at,
       failed_count::int as failed, last_failed_wal as last_failed, last_failed_time as failed_at
from pg_stat_archiver
"""
WAL_WRITTEN = "select wal_bytes::bigint as bytes, stats_reset as since from pg_stat_wal"
WAL_FOLDER = "select coalesce(sum(size), 0)::bigint from pg_ls_waldir()"
WAITING = "select count(*)::int from pg_ls_archive_statusdir() where name like '%.ready'"
SENDERS = "select pid, application_name from pg_stat_replication"


@frozen(kw_only=True)
class Setting:
    """One setting: as the server writes it, and in bytes or seconds where it is a number (-1 where that has a meaning).

    `pending`: its file says otherwise, and a restart is needed until it does.
    """

    text: str
    number: float | None = None
    pending: bool = False


@frozen(kw_only=True)
class Slot:
    """One replication slot. `retained` are the bytes of WAL it keeps, `safe` how many may come until it is lost."""

    name: str
    physical: bool = True
    temporary: bool = False
    active: bool = False
    active_pid: int | None = None
    retained: int | None = None
    status: str | None = "reserved"
    safe: int | None = None
    inactive_since: datetime | None = None
    synced: bool = False


@frozen(kw_only=True)
class Archived:
    """What archive_command (or archive_library) has done, by pg_stat_archiver."""

    archived: int = 0
    last_archived: str | None = None
    archived_at: datetime | None = None
    failed: int = 0
    last_failed: str | None = None
    failed_at: datetime | None = None

    @property
    def failing(self) -> bool:
        """Whether the last attempt failed."""
        return self.failed_at is not None and (self.archived_at is None or self.failed_at > self.archived_at)


@frozen(kw_only=True)
class Vitals:
    """A server as it is now. `skew` is how far its clock is ahead of ours, in seconds; rates are bytes a second.

    `refused` is why a replication connection was, empty if it was not; `authenticated` how the role proved who it is,
    empty if it did not have to, None where a server older than 16 does not tell.
    """

    version: str
    major: int
    lineage: str
    timeline: int
    standby: bool = False
    now: datetime
    skew: float = 0.0
    uncertain: float = 0.0
    position: int
    replayed: int | None = None
    settings: Mapping[str, Setting] = field(repr=False)
    role: str
    superuser: bool = False
    replication: bool = True
    monitor: bool = False
    client: str | None = None
    tls: str | None = None
    sslmode: str = "prefer"
    authenticated: str | None = None
    refused: str = ""
    senders: int = 0
    receiving: bool = False
    paused: bool = False
    names: Mapping[int, str] | None = None
    slots: tuple[Slot, ...] = ()
    archiver: Archived = field(factory=Archived)
    rate_now: float = 0.0
    rate_average: float | None = None
    folder: int | None = None
    waiting: int | None = None

    @property
    def rate(self) -> float:
        """The WAL rate that arithmetic is done with: now or on average, whichever is more."""
        return max(self.rate_now, self.rate_average or 0.0)

    @property
    def local(self) -> bool:
        """Whether the connection stays on the machine."""
        return self.client is None or self.client in LOCAL_ADDRESSES

    def text(self, name: str) -> str:
        """Return a setting as the server writes it; empty if this major does not have it."""
        return self.settings[name].text if name in self.settings else ""

    def number(self, name: str) -> float:
        """Return a setting in bytes or seconds; 0 if this major does not have it."""
        return (self.settings[name].number or 0.0) if name in self.settings else 0.0


async def look(dsn: Dsn, *, clock: Callable[[], datetime]) -> Vitals:
    """Look at a server, for at most a minute. Raises Unreachable, TimedOut or Refused.

    It writes nothing; cancelled, both connections are closed.
    """
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await _look(dsn, clock)
    except TimeoutError as error:
        raise TimedOut("no answer within the deadline", operation="diagnose", subject=dsn.where) from error


async def _look(dsn: Dsn, clock: Callable[[], datetime]) -> Vitals:
    async with sql(dsn, operation="diagnose", seconds=DEADLINE_SECONDS) as connection:
        asked = clock()
        first = dict(await connection.fetchrow(POSITION) or {})
        answered = clock()
        server = dict(await connection.fetchrow(SERVER) or {})
        settings = {row["name"]: _setting(dict(row)) for row in await connection.fetch(SETTINGS, WANTED)}
        archived = Archived(**dict(await connection.fetchrow(ARCHIVER) or {}))
        written = dict(await connection.fetchrow(WAL_WRITTEN) or {})
        slots = await connection.fetch(SLOTS)
        names = await connection.fetch(SENDERS) if server["monitor"] else None
        folder = await _allowed(connection, WAL_FOLDER)
        waits = await _allowed(connection, WAITING)
        authenticated = await _authenticated(connection, server["major"])
        timeline, refused = await _tried(dsn)
        await asyncio.sleep(SAMPLE_SECONDS)
        second = dict(await connection.fetchrow(POSITION) or {})
    server["timeline"] = timeline or server["timeline"]
    seconds = (second["now"] - first["now"]).total_seconds()
    return Vitals(
        **server,
        now=second["now"],
        skew=(first["now"] - asked - (answered - asked) / 2).total_seconds(),
        uncertain=(answered - asked).total_seconds() / 2,
        position=second["position"],
        replayed=second["replayed"],
        settings=settings,
        sslmode=dsn.parameters.get("sslmode", "prefer"),
        authenticated=authenticated,
        refused=refused,
        names=None if names is None else {row["pid"]: row["application_name"] for row in names},
        slots=tuple(_slot(dict(row), second["position"]) for row in slots),
        archiver=archived,
        rate_now=max(0, second["position"] - first["position"]) / seconds if seconds > 0 else 0.0,
        rate_average=_average(written, second["now"]),
        folder=folder,
        waiting=waits,
    )


async def _tried(dsn: Dsn) -> tuple[int | None, str]:
    """Try what an archiver will do: connect for replication. Returns the timeline, or why it was refused."""
    try:
        async with replication(dsn, operation="diagnose") as connection:
            connection.send_query(b"IDENTIFY_SYSTEM")
            (result,) = await waiting.wait_async(generators.execute(connection), connection.socket)
            if result.status != pq.ExecStatus.TUPLES_OK:
                return None, connection.error_message.decode(errors="replace").strip()
            return int(result.get_value(0, 1) or 0), ""
    except ResilienceError as error:
        return None, error.what


async def _allowed(connection: asyncpg.Connection, question: str) -> int | None:
    """Ask what only pg_monitor may; None if this role may not."""
    try:
        answer: int | None = await connection.fetchval(question)
    except asyncpg.InsufficientPrivilegeError:
        return None
    return answer


async def _authenticated(connection: asyncpg.Connection, major: int) -> str | None:
    """Return how this connection was authenticated, `scram-sha-256` for one; empty: on trust; None: not told."""
    if major < 16:
        return None
    user = await connection.fetchval("select system_user")
    return str(user).partition(":")[0] if user else ""


def _average(written: Mapping[str, Any], now: datetime) -> float | None:
    """Return the average rate since the statistics began; None if that is too short a while to say."""
    since: datetime | None = written["since"]
    seconds = (now - since).total_seconds() if since is not None else 0.0
    return float(written["bytes"]) / seconds if seconds >= AVERAGE_SECONDS else None


def _setting(row: Mapping[str, Any]) -> Setting:
    """Read a row of pg_settings."""
    number = None
    try:
        number = float(row["setting"])
    except ValueError:
        pass
    else:
        number = number if number < 0 else number * _UNITS.get(row["unit"] or "", 1)
    return Setting(text=row["text"], number=number, pending=row["pending_restart"])


def _slot(row: Mapping[str, Any], position: int) -> Slot:
    """Read a row of pg_replication_slots."""
    known = dict(row)
    restart = known.pop("restart")
    return Slot(**known, retained=None if restart is None else max(0, position - restart))
