"""What a PostgreSQL server says about itself, to a role that may do no more than log in."""

from __future__ import annotations

from typing import Any

from resilience.model.facts import TargetFacts
from resilience.model.findings import Finding, blocker
from resilience.model.json import Json

from .client import Dsn, sql

OLDEST, NEWEST = 15, 18
ANSWER_SECONDS = 60.0
"""A survey's statements read a few catalogs; a server that takes longer does not answer."""

SERVER = """
select current_setting('server_version') as version,
       current_setting('server_version_num')::int as version_num,
       (select system_identifier::text from pg_control_system()) as lineage,
       current_setting('wal_segment_size') as wal_segment_size,
       current_setting('block_size') as block_size,
       current_setting('data_checksums') as data_checksums,
       current_setting('wal_level') as wal_level,
       current_setting('max_wal_senders')::int as max_wal_senders,
       current_setting('max_replication_slots')::int as max_replication_slots,
       (select full_page_writes from pg_control_checkpoint()) as full_page_writes,
       pg_is_in_recovery() as standby,
       (select rolreplication or rolsuper from pg_roles where rolname = current_user) as may_replicate,
       (select rolname from pg_roles where oid = 10) as bootstrap_role,
       (select rolname from pg_roles where rolcanlogin
        order by (oid = 10) desc, rolsuper desc, oid limit 1) as login_role,
       case when pg_is_in_recovery() then
         to_char(pg_last_xact_replay_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
       end as replayed_until,
       case when pg_is_in_recovery()
         then greatest((select timeline_id from pg_control_checkpoint()),
                       (select min_recovery_end_timeline from pg_control_recovery()))
         else ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int
       end as timeline,
       current_setting('summarize_wal', true) as summarize_wal,
       pg_snapshot_xmax(pg_current_snapshot())::text as next_xid,
       to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as server_time,
       current_user::text as role
"""

DATABASES = """
select oid::text, datname as name, pg_encoding_to_char(encoding) as encoding, datcollate as collate, datctype as ctype,
       datlocprovider::text as provider,
       coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale') as locale,
       datcollversion as collation_version,
       pg_database_collation_actual_version(oid) as library_version
from pg_database d
where datallowconn
order by datname
"""


async def survey(dsn: Dsn, *, target: str, kind: str) -> TargetFacts:
    """Survey a server for a physical backup; every obstacle becomes a finding."""
    async with sql(dsn, operation="survey", seconds=ANSWER_SECONDS) as connection:
        (server,) = [dict(row) for row in await connection.fetch(SERVER)]
        databases: list[Json] = [dict(row) for row in await connection.fetch(DATABASES)]
    return TargetFacts(
        target=target,
        system="postgresql",
        kind=kind,
        lineage=server["lineage"],
        branch=str(server["timeline"]),
        only_full=_only_full(server),
        findings=(*_obstacles(server, dsn), *_several(dsn)),
        details={
            "version": server["version"],
            "major": server["version_num"] // 10000,
            "wal_segment_size": server["wal_segment_size"],
            "block_size": server["block_size"],
            "data_checksums": server["data_checksums"],
            "from_standby": server["standby"],
            "bootstrap_role": server["bootstrap_role"],
            "login_role": server["login_role"],
            "replayed_until": server["replayed_until"],
            "next_xid": server["next_xid"],
            "server_time": server["server_time"],
            "databases": databases,
        },
    )


def _only_full(server: dict[str, Any]) -> str:
    """Say why the server cannot give an incremental backup, or nothing. `Any`: the values of one row."""
    if server["summarize_wal"] is None:
        return f"PostgreSQL {server['version']} has no incremental backups, 17 and newer have"
    if server["summarize_wal"] != "on":
        return "summarize_wal is off, so the server does not know what has changed; set summarize_wal = on and reload"
    return ""


def unsupported(version_num: int, version: str, dsn: Dsn) -> list[Finding]:
    """Find out whether this release knows a server's version."""
    if OLDEST <= version_num // 10000 <= NEWEST:
        return []
    text = f"PostgreSQL {version} is not supported, {OLDEST} to {NEWEST} are"
    hint = "use a release of resilience that knows this version"
    return [blocker(dsn.where, text, hint)]


def _several(dsn: Dsn) -> list[Finding]:
    """Warn where each connection may reach another server."""
    if len(dsn.addresses) < 2 or "target_session_attrs" in dsn.parameters:
        return []
    text = "the dsn names several hosts: the survey and the backup may reach different servers"
    hint = "name one host, or set target_session_attrs"
    return [Finding(severity="warning", subject=dsn.where, text=text, hint=hint)]


def _obstacles(server: dict[str, Any], dsn: Dsn) -> list[Finding]:
    """Judge what the server said. `Any`: the values of one row, each of the type its SQL says."""
    checks = [
        (
            not server["may_replicate"],
            f"the role {server['role']} may not replicate",
            f'run: ALTER ROLE "{server["role"]}" REPLICATION',
        ),
        (
            server["wal_level"] == "minimal",
            "wal_level is minimal, a physical backup needs replica",
            "set wal_level = replica and restart the server",
        ),
        (
            server["max_wal_senders"] < 1,
            "max_wal_senders is 0, nobody may take a backup",
            "set max_wal_senders = 5 and restart the server",
        ),
        (
            server["max_replication_slots"] < 1,
            "max_replication_slots is 0, a backup needs one for as long as it takes",
            "set max_replication_slots = 5 and restart the server",
        ),
        (
            server["standby"] and not server["full_page_writes"],
            "a backup from a standby needs full_page_writes, which was off on the primary at the last checkpoint",
            "set full_page_writes = on on the primary and wait for the next checkpoint",
        ),
    ]
    return unsupported(server["version_num"], server["version"], dsn) + [
        blocker(dsn.where, text, hint) for wrong, text, hint in checks if wrong
    ]
