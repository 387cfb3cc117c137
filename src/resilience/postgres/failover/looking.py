"""What one member of a group says about itself, in one question (PostgreSQL 9.28, 28.2): read-only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from attrs import define, field, frozen

from resilience.model.log import Branch
from resilience.postgres.instance import INSTANCE
from resilience.postgres.wal.names import history_name, parse_history

from .conninfo import Upstream
from .links import Link
from .owners import SETTINGS
from .sync_names import SyncNames

_OWNERS = ", ".join(f"'{name}', current_setting('{name}', true)" for name in SETTINGS)
ASLEEP = "RecoveryRetrieveRetryInterval"
"""What a startup process waits for that has tried everywhere to get more WAL."""

# A primary shows, and with synchronous_commit = off has acknowledged, what it has not flushed; where nothing follows
# the header of a page or of a segment yet (access/xlog_internal.h), its WAL ends before that.
# A standby has no function for its timeline. It is the newest that the receiver has, that the control file knows of, or
# that a segment at its position belongs to: all of these follow the timeline, none is ahead of it.
LOOK = f"""
with known as (
  select name, setting, source from pg_settings
  where name in ('wal_segment_size', 'primary_conninfo', 'synchronous_standby_names')
), segment as (
  select setting::bigint as size from known where name = 'wal_segment_size'
), here as (
  select pg_is_in_recovery() as standby, pg_last_wal_receive_lsn() as received, pg_last_wal_replay_lsn() as replayed
), at as (
  select standby, received, coalesce(replayed, '0/0') as replayed,
         case when standby then greatest(received, replayed, '0/0') else pg_current_wal_flush_lsn() end as durable,
         case when not standby then (pg_current_wal_insert_lsn() - '0/0')::bigint end as inserted
  from here
), written as (
  select inserted - case when inserted % size = 40 then 40
                         when inserted % current_setting('wal_block_size')::int = 24 then 24 else 0 end as upto
  from at, segment
), named as (
  select greatest(durable - '0/0' - 1, 0)::bigint / size as number, 4294967296 / size as per_file from at, segment
), receiver as (
  select pid, status, received_tli, last_msg_receipt_time, sender_host, sender_port, slot_name, latest_end_lsn
  from pg_stat_wal_receiver
)
select current_setting('server_version') as version,
       {INSTANCE} as instance,
       (select system_identifier::text from pg_control_system()) as lineage,
       standby,
       received is not null as fetched,
       clock_timestamp() as now,
       pg_conf_load_time() as loaded,
       (durable - '0/0')::bigint as durable,
       case when standby then (replayed - '0/0')::bigint else (select upto from written) end as applied,
       case when standby then greatest(
              (select timeline_id from pg_control_checkpoint()),
              (select min_recovery_end_timeline from pg_control_recovery()),
              (select received_tli from receiver),
              (select max(('x' || left(name, 8))::bit(32)::int) from pg_ls_waldir()
               where name ~ '^[0-9A-F]{{24}}$' and right(name, 16) = (
                 select upper(lpad(to_hex(number / per_file), 8, '0') || lpad(to_hex(number % per_file), 8, '0'))
                 from named)))
            else ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int end as timeline,
       pg_last_xact_replay_timestamp() as complete_at,
       current_setting('transaction_read_only') = 'off' as writable,
       case when standby then pg_get_wal_replay_pause_state() end as paused,
       (select wait_event from pg_stat_activity where backend_type = 'startup') as startup,
       (select pid from receiver) as receiver,
       (select status from receiver) as receiving,
       extract(epoch from clock_timestamp() - (select last_msg_receipt_time from receiver))::float8 as silent,
       (select sender_host from receiver) as sender_host,
       (select sender_port::text from receiver) as sender_port,
       current_setting('primary_conninfo') as conninfo,
       current_setting('primary_slot_name') as slot_name,
       current_setting('cluster_name') as cluster_name,
       current_setting('port') as port,
       current_setting('synchronous_standby_names') as sync_names,
       current_setting('synchronous_commit') as sync_commit,
       (select coalesce(json_agg(concat_ws(' in ', case when setrole <> 0 then 'role ' || pg_get_userbyid(setrole) end,
                 'database ' || datname)), '[]')
        from pg_db_role_setting left join pg_database on pg_database.oid = setdatabase
        where setconfig && array['synchronous_commit=off', 'synchronous_commit=local'])::text as impatient,
       current_setting('recovery_target_timeline') as target_timeline,
       current_setting('recovery_min_apply_delay') as delay,
       current_setting('restore_command') <> '' as restores,
       current_setting('wal_log_hints') = 'on' or current_setting('data_checksums') = 'on' as rewindable,
       current_setting('max_wal_senders')::int as max_senders,
       current_setting('shared_preload_libraries') as libraries,
       (select coalesce(json_agg(name order by name), '[]') from known where source = 'command line')::text as pinned,
       current_setting('allow_alter_system', true) is distinct from 'off' as alterable,
       json_build_object({_OWNERS})::text as managed,
       (select coalesce(json_agg(distinct application_name), '[]') from pg_stat_activity
        where application_name <> '')::text as applications,
       (select coalesce(json_agg(json_build_object('name', application_name, 'state', state, 'sync', sync_state,
                'lag', (durable - coalesce(flush_lsn, sent_lsn))::bigint) order by application_name), '[]')
        from pg_stat_replication)::text as senders,
       (select coalesce(json_agg(json_build_object('name', slot_name, 'active', active, 'status', wal_status,
                'kind', slot_type, 'kept', (durable - restart_lsn)::bigint) order by slot_name), '[]')
        from pg_replication_slots)::text as slots
from at
"""  # noqa: S608  # the names of settings are ours
_HISTORY = "select pg_read_file('pg_wal/' || $1::text, 0, 1048576, true) as text"


@frozen(kw_only=True)
class Look:
    """One member as it is now; `upstream` holds secrets and does not show them.

    `sources` are the members that it receives from, or that its `upstream` names.
    """

    version: str
    instance: str
    lineage: str
    standby: bool
    fetched: bool
    now: datetime
    loaded: datetime
    durable: int
    applied: int
    timeline: int
    branches: tuple[Branch, ...]
    complete_at: datetime | None
    writable: bool
    paused: str | None
    startup: str | None
    receiver: int | None
    receiving: str | None
    silent: float | None
    sender: tuple[str, str] | None
    sources: tuple[str, ...] = ()
    upstream: Upstream
    slot_name: str
    cluster_name: str
    port: str
    sync: SyncNames
    sync_commit: str
    impatient: Sequence[str]
    target_timeline: str
    delay: str
    restores: bool
    rewindable: bool
    max_senders: int
    libraries: str
    pinned: Sequence[str]
    alterable: bool
    managed: Mapping[str, str | None]
    applications: Sequence[str]
    senders: Sequence[Mapping[str, Any]] = field(repr=False)  # `Any`: rows as the SQL above makes them
    slots: Sequence[Mapping[str, Any]] = field(repr=False)

    @property
    def application_name(self) -> str:
        """What a primary knows it by (20.6.3)."""
        return self.upstream.parameters.get("application_name") or self.cluster_name or "walreceiver"

    @property
    def exhausted(self) -> bool:
        """Whether a standby that receives nothing shows all that it has.

        One that has asked nobody for WAL since it started (not `fetched`) has not come to the end of its own: it says
        what it has applied, and nobody can tell how much more it has on disk.
        """
        return self.receiver is None and (self.startup == ASLEEP or (self.fetched and self.applied >= self.durable))


@define(eq=False)
class Looker:
    """Looks at one member; what cannot change it remembers."""

    link: Link
    _histories: dict[tuple[str, int], tuple[Branch, ...]] = field(factory=dict, init=False)

    async def look(self, *, seconds: float, operation: str) -> Look:
        """Ask it. Raises Unreachable, TimedOut, Refused."""
        row = dict(await self.link.row(LOOK, seconds=seconds, operation=operation))
        host, port = row.pop("sender_host"), row.pop("sender_port")
        branches = await self._branches(row["lineage"], row["timeline"], seconds, operation)
        return Look(
            branches=branches,
            sender=(host, port) if host else None,
            upstream=Upstream.parse(row.pop("conninfo")),
            sync=SyncNames.parse(row.pop("sync_names")),
            pinned=json.loads(row.pop("pinned")),
            managed=json.loads(row.pop("managed")),
            applications=json.loads(row.pop("applications")),
            impatient=json.loads(row.pop("impatient")),
            senders=json.loads(row.pop("senders")),
            slots=json.loads(row.pop("slots")),
            **row,
        )

    async def _branches(self, lineage: str, timeline: int, seconds: float, operation: str) -> tuple[Branch, ...]:
        """Return the history of a timeline, oldest branch first; its own text names all of its ancestors."""
        if (known := self._histories.get((lineage, timeline))) is not None:
            return known
        text = None
        if timeline > 1:
            row = await self.link.row(_HISTORY, history_name(timeline), seconds=seconds, operation=operation)
            text = row["text"]
        branches = branches_of(timeline, text)
        if timeline == 1 or text is not None:
            self._histories[lineage, timeline] = branches
        return branches


def branches_of(timeline: int, text: str | None) -> tuple[Branch, ...]:
    """Return the branches that a timeline's history file names, oldest first, it last. Raises Corrupt."""
    if text is None:
        return (Branch(name=str(timeline)),)
    lines = [line for line in text.splitlines() if line.split("#", 1)[0].split()]
    found: list[Branch] = []
    names = [*(line.split()[0] for line in lines), str(timeline)]
    for number, name in enumerate(names):
        if number == 0:
            found.append(Branch(name=name))
        else:
            found.append(parse_history(name, "\n".join(lines[:number]) + "\n"))
    return (*found[:-1], parse_history(timeline, text))
