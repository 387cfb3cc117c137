"""Replication slots seen through SQL (PostgreSQL 54.20, pg_replication_slots; 9.28.6).

The archiver's own is watched: how much WAL it keeps on the server. Those on the standbys are kept and moved on, so that
a failover does not lose the position. A physical slot exists on one server only; what 17 and later bring along in a
failover are logical ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import asyncpg
from attrs import frozen

from resilience.model.errors import ResilienceError
from resilience.model.findings import Finding, blocker
from resilience.model.show import as_bytes
from resilience.postgres.client import Dsn, sql
from resilience.postgres.lsn import format_lsn, parse_lsn

ANSWER_SECONDS = 10.0
OPERATION = "watch slot"

LOOK = """
select current_setting('synchronous_standby_names') as synchronous,
       pg_is_in_recovery() as standby,
       (select system_identifier::text from pg_control_system()) as lineage,
       pg_last_wal_replay_lsn()::text as replayed,
       slot.slot_type as kind, slot.wal_status as state, slot.active,
       slot.restart_lsn::text as keeps,
       pg_wal_lsn_diff(
         case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end, slot.restart_lsn
       )::bigint as bytes
from (values (1)) as one left join pg_replication_slots as slot on slot.slot_name = $1
"""


@frozen(kw_only=True)
class Seen:
    """What a look at the archiver's own slot saw; `slot_bytes` is None if it is not there or keeps nothing."""

    synchronous: str
    slot_bytes: int | None
    findings: tuple[Finding, ...]


@frozen(kw_only=True)
class Slots:
    """The slots of one archiver: of the same name on every server. `warning` and `limit` are bytes of WAL kept."""

    target: str
    name: str
    warning: int
    limit: int
    dsn: Dsn

    async def look(self) -> Seen:
        """Look at the slot that is streamed from. Raises Unavailable or Refused if that is not possible."""
        async with sql(self.dsn, operation=OPERATION, seconds=ANSWER_SECONDS) as connection:
            row = await connection.fetchrow(LOOK, self.name)
        kept = None if row is None or row["bytes"] is None else max(0, int(row["bytes"]))
        return Seen(
            synchronous="" if row is None else row["synchronous"],
            slot_bytes=kept,
            findings=tuple(self._judge(kept, None if row is None else row["state"])),
        )

    async def keep(self, standby: Dsn, *, lineage: str, durable: int) -> tuple[Finding, ...]:
        """Have the slot on a standby, and let it go of what is durable and replayed there; a finding if not."""
        where = standby.where
        try:
            async with sql(standby, operation=OPERATION, seconds=ANSWER_SECONDS) as connection:
                trouble = await self._kept(connection, lineage, durable)
        except ResilienceError as error:
            trouble = str(error)
        if not trouble:
            return ()
        text = f"the slot {self.name} is not kept on this standby: {trouble}"
        hint = "should it take over before that is mended, the archive may have a gap"
        return (Finding(severity="warning", subject=where, text=text, hint=hint),)

    async def _kept(self, connection: asyncpg.Connection, lineage: str, durable: int) -> str:
        """Make the slot if it is missing, or move it on; return what is wrong."""
        row = await connection.fetchrow(LOOK, self.name)
        if row is None or not row["standby"]:
            return ""  # the server that is streamed from may be on the list of those that may take over
        if row["lineage"] != lineage:
            return f"it is of lineage {row['lineage']}, not {lineage}"
        if row["kind"] not in (None, "physical"):
            return f"a {row['kind']} slot has that name"
        if row["active"]:
            return "another process uses it"
        lost = row["kind"] is not None and (row["keeps"] is None or row["state"] == "lost")
        if lost:
            await connection.execute("select pg_drop_replication_slot($1)", self.name)
        if lost or row["kind"] is None:
            await connection.execute("select pg_create_physical_replication_slot($1, true)", self.name)
            row = await connection.fetchrow(LOOK, self.name)
            if row is None or row["keeps"] is None:
                return "it has gone again"
        keeps, upto = parse_lsn(row["keeps"]), min(durable, parse_lsn(row["replayed"] or "0/0"))
        if upto > keeps:
            advance = "select pg_replication_slot_advance($1, $2::text::pg_lsn)"
            await connection.execute(advance, self.name, format_lsn(upto))
        return ""

    def _judge(self, kept: int | None, state: str | None) -> Iterator[Finding]:
        """Judge what the slot costs the server; wal_status says whether the server is about to give up on it."""
        if state is None or kept is None:
            text, hint = f"the slot {self.name} keeps no WAL", "it is made again with the next connection"
            yield Finding(severity="warning", subject=self.target, text=text, hint=hint)
        elif kept > self.limit:
            text = f"the slot {self.name} keeps {as_bytes(kept)} of WAL, the limit is {as_bytes(self.limit)}"
            hint = "the server's disk will run full: see why the archive falls behind, or drop the slot and lose WAL"
            yield blocker(self.target, text, hint)
        elif kept > self.warning:
            text = f"the slot {self.name} keeps {as_bytes(kept)} of WAL"
            hint = "the archive falls behind: see whether it is down or too slow"
            yield Finding(severity="warning", subject=self.target, text=text, hint=hint)
        if state in ("unreserved", "lost"):
            text = f"the slot {self.name} is about to lose WAL that is not archived yet (wal_status {state})"
            yield blocker(self.target, text, "raise max_slot_wal_keep_size")
