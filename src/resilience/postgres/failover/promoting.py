"""Promoting: one standby ends its recovery and takes writes (pg_promote, PostgreSQL 9.28.4); whom commits wait for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from time import monotonic

import asyncpg

from resilience.concurrency import stop_tasks
from resilience.model.errors import (
    Conflict,
    FencingUnproven,
    Interrupted,
    Refused,
    ResilienceError,
    TimedOut,
    Unreachable,
)
from resilience.model.failover import Promoted, PromotionOrder
from resilience.model.groups import Fence
from resilience.model.positions import RecoveryPoint
from resilience.postgres.lsn import position

from .looking import Look
from .members import LOOK_AGAIN_SECONDS, Members, nudge
from .sync_names import sync_names

OPERATION = "promote"
FENCE_SECONDS = 0.25
"""How long a fenced member may take to prove us wrong: one that does not answer does not take writes from anybody."""
WRITE_SECONDS = 10.0
MARK = "resilience.failover"

_RECOVERS = """
select pg_is_in_recovery() as recovers,
       (select wait_event from pg_stat_activity where backend_type = 'startup') as waits
"""
_MARK_HERE = "select set_config('synchronous_commit', 'local', true), pg_logical_emit_message(true, $1, $2)"
_MARK = """
select pg_logical_emit_message(true, $1, $2)::text as lsn, pg_current_xact_id()::text as xid,
       set_config('synchronous_commit', coalesce(nullif(current_setting('synchronous_commit'), 'off'), 'local'), true)
"""
_MARKED = """
select pg_xact_status($1::text::xid8) as status, pg_is_in_recovery() as recovers, clock_timestamp() as now,
       (pg_current_wal_flush_lsn() - '0/0')::bigint as at, pg_current_wal_flush_lsn() >= $2::text::pg_lsn as flushed
"""


async def promote(members: Members, order: PromotionOrder, *, seconds: float) -> Promoted:
    """Promote the candidate and wait until it takes writes; see `Promoter.promote`.

    What fails before it is told to become the primary is Refused, so that all can be undone; whatever fails from then
    on is Interrupted: it may become the primary yet, though it is seen to be a standby.
    """
    if order.candidate is None:
        raise Refused("a PostgreSQL group elects nobody", operation=OPERATION, hint="name the candidate")
    name = order.candidate
    try:
        look = await _prepared(members, order, name)
    except (Refused, Conflict):
        raise
    except ResilienceError as error:
        text = f"it was not told to become the primary: {error.what}"
        raise Refused(text, operation=OPERATION, subject=name, hint=error.hint) from error
    if look.standby:
        try:
            await members.links[name].execute("select pg_promote(false)", seconds=members.seconds, operation=OPERATION)
        except ResilienceError as error:
            raise _in_doubt(name, error.what) from error
        await _until_primary(members, name, seconds)
    return await _promoted(members, name, order.epoch)


async def _prepared(members: Members, order: PromotionOrder, name: str) -> Look:
    """Set the candidate up for its role, and recheck the fences; it is not told anything yet."""
    look = await members.look(name, operation=OPERATION)
    await members.stamp(name, look, epoch=order.epoch, operation=OPERATION)
    settings = {}
    if str(look.sync) != (sync := wanted_sync(look, order.sync, order.sync_needed)):
        settings["synchronous_standby_names"] = sync
    if look.upstream.epoch != order.epoch or not look.upstream.frozen:
        settings["primary_conninfo"] = look.upstream.to_nowhere(epoch=order.epoch).text()
    await _side_by_side(members, order.fences, name, settings)
    return look


async def require(members: Members, primary: str, sync: Sequence[str], needed: int, *, epoch: int) -> None:
    """Have the primary wait for so many of these members; see `Promoter.require`."""
    look = await members.look(primary, operation="require")
    await members.stamp(primary, look, epoch=epoch, operation="require")
    if look.standby:
        raise Refused(f"{primary} is no primary", operation="require", subject=primary)
    settings = {"synchronous_standby_names": wanted_sync(look, sync, needed)}
    await members.configure(primary, settings, operation="require")


async def verify(members: Members, primary: str, *, epoch: int) -> RecoveryPoint:
    """Write a mark, read back that it was committed, and ask for a checkpoint; see `Promoter.verify`."""
    link, operation = members.links[members[primary].name], "verify"
    text = json.dumps({"epoch": epoch, "primary": primary})

    async def write(connection: asyncpg.Connection) -> asyncpg.Record:
        (row,) = await connection.fetch(_MARK, MARK, text)
        return row

    try:
        marked = await link.use(write, seconds=WRITE_SECONDS, operation=operation)
    except TimedOut as error:
        what = f"a write was not acknowledged within {WRITE_SECONDS:.0f} s"
        hint = "does a synchronous standby follow it? see synchronous_standby_names and pg_stat_replication"
        raise TimedOut(what, operation=operation, subject=primary, hint=hint) from error
    read = await link.row(_MARKED, marked["xid"], marked["lsn"], seconds=members.seconds, operation=operation)
    if read["status"] != "committed" or read["recovers"] or not read["flushed"]:
        text = f"a mark that was written is {read['status']}"
        raise Interrupted(text, operation=operation, subject=primary, hint="look at the server's log")
    look = await members.look(primary, operation=operation)
    await checkpoint(members, primary)
    return RecoveryPoint(position=position(look.timeline, read["at"]), time=read["now"])


async def checkpoint(members: Members, name: str, *, seconds: float | None = None) -> None:
    """Ask for a checkpoint at once. Without `seconds` it is not waited for: the checkpointer goes on by itself."""
    limit = f"set statement_timeout = '{int((seconds or 0.02) * 1000)}ms'"

    async def ask(connection: asyncpg.Connection) -> None:
        await connection.execute(limit)
        try:
            await connection.execute("checkpoint")
        except asyncpg.QueryCanceledError:
            if seconds is not None:
                raise
        finally:
            if not connection.is_closed():
                await connection.execute("set statement_timeout = 0")

    await members.links[name].use(ask, seconds=(seconds or 0) + members.seconds, operation="checkpoint")


def wanted_sync(look: Look, sync: Sequence[str], needed: int) -> str:
    """Write the setting as the server's own is written: by order of preference, or any of them."""
    return str(sync_names(sync, needed, method=look.sync.method if look.sync.needed else "ANY"))


async def _side_by_side(members: Members, fences: Sequence[Fence], name: str, settings: dict[str, str]) -> None:
    """Recheck the fences while the candidate takes its settings over; neither outlives the other's failure."""
    tasks = [asyncio.create_task(_recheck(members, fence)) for fence in fences if fence.kind == "proven"]
    tasks.append(asyncio.create_task(members.configure(name, settings, operation=OPERATION)))
    try:
        for task in tasks:
            await task
    finally:
        await stop_tasks(tasks)


async def _recheck(members: Members, fence: Fence) -> None:
    """Refuse if a fenced member takes writes, or may soon. Raises FencingUnproven."""
    try:
        look = await members.look(fence.member, operation=OPERATION, seconds=FENCE_SECONDS)
    except (Unreachable, TimedOut) as error:
        if isinstance(error.__cause__, asyncpg.CannotConnectNowError):
            raise FencingUnproven(
                f"it starts again: {error.what}", operation=OPERATION, subject=fence.member
            ) from error
        return
    except ResilienceError as error:
        raise FencingUnproven(f"it answers: {error.what}", operation=OPERATION, subject=fence.member) from error
    if not look.standby:
        raise FencingUnproven("it takes writes", operation=OPERATION, subject=fence.member, hint="fence it again")


async def _until_primary(members: Members, name: str, seconds: float) -> None:
    """Wait until recovery has ended. Raises Interrupted: it may yet, or may have."""
    link, deadline, problem = members.links[name], monotonic() + seconds, "it has not ended its recovery"
    while monotonic() < deadline:
        try:
            row = await link.row(_RECOVERS, seconds=members.seconds, operation=OPERATION)
            if not row["recovers"]:
                return
            await nudge(members, name, row["waits"])
            problem = "it has not ended its recovery"
        except ResilienceError as error:
            # Whatever this is, also a query that somebody cancelled: the promotion goes on by itself.
            problem = error.what
            if isinstance(error, Unreachable) and not isinstance(error.__cause__, asyncpg.CannotConnectNowError):
                server = members[name].server
                if server is not None and not await server.running():
                    break
        await asyncio.sleep(LOOK_AGAIN_SECONDS)
    raise _in_doubt(name, problem)


def _in_doubt(name: str, problem: str) -> Interrupted:
    text = f"it was told to become the primary, and {problem}"
    return Interrupted(text, operation=OPERATION, subject=name, hint="look at its log, then resume")


async def _promoted(members: Members, name: str, epoch: int) -> Promoted:
    """Write to the new primary, which proves that it takes writes, and say what it is."""

    async def write(connection: asyncpg.Connection) -> None:
        async with connection.transaction():
            await connection.fetch(_MARK_HERE, MARK, json.dumps({"epoch": epoch, "promoted": name}))

    try:
        await members.links[name].use(write, seconds=WRITE_SECONDS, operation=OPERATION)
        look = await members.look(name, operation=OPERATION)
    except ResilienceError as error:
        text = f"it was promoted, but a write failed: {error.what}"
        raise Interrupted(text, operation=OPERATION, subject=name, hint="look at its log, then resume") from error
    members.primary = name
    return Promoted(
        primary=name,
        epoch=epoch,
        instance=look.instance,
        point=RecoveryPoint(position=position(look.timeline, look.durable), time=look.complete_at),
        forked_at=look.branches[-1].forked_at,
        at=look.now,
    )
