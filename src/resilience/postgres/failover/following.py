"""Following: a standby receives from the new primary, if its history is one that the primary has gone on with."""

from __future__ import annotations

import asyncio
from time import monotonic

import asyncpg

from resilience.model.errors import NotFollowing, Refused, TimedOut
from resilience.model.failover import Divergence
from resilience.model.log import Branch
from resilience.model.show import as_bytes
from resilience.postgres.lsn import position

from .looking import Look
from .members import LOOK_AGAIN_SECONDS, Members, nudge

OPERATION = "follow"
_SLOT = """
select pg_create_physical_replication_slot($1::text, true)
where not exists (select from pg_replication_slots where slot_name = $1::text)
"""


def parted(member: str, primary: str, *, timeline: int, end: int, history: tuple[Branch, ...], at: int) -> Divergence:
    """Say how one whose history ends at `end` of a timeline comes back behind a primary with that history, now at `at`.

    Pure; `rewind` is said where histories have parted, whether it is possible is another question.
    """
    here = position(timeline, end)
    left = {each.parent: each.forked_at for each in history if each.parent is not None}
    names = [each.name for each in history]
    if str(timeline) not in names:
        text = f"it is on timeline {timeline}, which is none of {primary}'s"
        return Divergence(member=member, primary=primary, way="rewind", end=here, why=text)
    fork = left.get(str(timeline))
    if fork is None:
        # On the primary's own timeline it can have nothing that the primary has not written.
        ahead = end > at
        text = f"it has more of timeline {timeline} than {primary}" if ahead else "its history is the primary's own"
        return Divergence(
            member=member,
            primary=primary,
            way="rewind" if ahead else "follow",
            end=here,
            lost=max(0, end - at),
            why=text,
        )
    lost = max(0, end - fork.offset)
    text = (
        f"it has {as_bytes(lost)} after {fork}, where {primary} left its history"
        if lost
        else f"it ends at {here}, before {primary} left its history at {fork.text}"
    )
    return Divergence(
        member=member,
        primary=primary,
        way="rewind" if lost else "follow",
        forked_at=fork,
        end=here,
        lost=lost,
        why=text,
    )


async def follow(members: Members, name: str, primary: str, *, epoch: int, seconds: float) -> None:
    """Have a standby receive from the primary and wait until it does; see `Promoter.follow`."""
    if name == primary:
        raise Refused("a member cannot follow itself", operation=OPERATION, subject=name)
    look, upstream = await asyncio.gather(
        members.look(name, operation=OPERATION), members.look(primary, operation=OPERATION)
    )
    check(name, primary, look, upstream)
    await members.stamp(name, look, epoch=epoch, operation=OPERATION)
    wanted = members.upstream(name, primary, epoch=epoch)
    if look.upstream.parameters != wanted.parameters:
        if look.slot_name:
            await ensure_slot(members, primary, look.slot_name)
        await members.configure(name, {"primary_conninfo": wanted.text()}, operation=OPERATION)
    await until_streaming(members, name, primary, upstream, seconds=seconds)


def check(name: str, primary: str, look: Look, upstream: Look) -> None:
    """Refuse where a member cannot follow as it is. Raises NotFollowing, Refused."""
    if upstream.standby:
        raise Refused(f"{primary} is a standby itself", operation=OPERATION, subject=name)
    if look.lineage != upstream.lineage:
        raise NotFollowing(f"it is of another cluster than {primary}", operation=OPERATION, subject=name)
    if not look.standby:
        raise NotFollowing("it takes writes itself", operation=OPERATION, subject=name, hint="fence it and rejoin it")
    found = parted(
        name, primary, timeline=look.timeline, end=look.durable, history=upstream.branches, at=upstream.durable
    )
    # What the primary has written since it was looked at, a standby of it may have: only a fork tells of a divergence.
    if found.way != "follow" and look.timeline != upstream.timeline:
        raise NotFollowing(found.why, operation=OPERATION, subject=name, hint="rejoin it")


async def ensure_slot(members: Members, primary: str, slot: str) -> None:
    """Make a standby's slot on its primary unless it is there; WAL is kept for it from now on."""

    async def make(connection: asyncpg.Connection) -> None:
        await connection.execute("set synchronous_commit = local")
        try:
            await connection.fetch(_SLOT, slot)
        except asyncpg.DuplicateObjectError:
            return
        finally:
            await connection.execute("reset synchronous_commit")

    await members.links[primary].use(make, seconds=members.seconds, operation=OPERATION)


async def until_streaming(members: Members, name: str, primary: str, upstream: Look, *, seconds: float) -> None:
    """Wait until a standby receives from the primary on its timeline. Raises TimedOut."""
    deadline, place = monotonic() + seconds, members[primary].address
    while True:
        look = await members.look(name, operation=OPERATION)
        if look.receiving == "streaming" and look.sender == place and look.timeline >= upstream.timeline:
            return
        if monotonic() > deadline:
            text = f"it does not receive from {primary} after {seconds:.0f} s"
            hint = "its log says why: access (pg_hba.conf), a slot, or WAL that is gone"
            raise TimedOut(text, operation=OPERATION, subject=name, hint=hint)
        await nudge(members, name, look.startup)
        await asyncio.sleep(LOOK_AGAIN_SECONDS)


async def until_applied(members: Members, name: str, wanted: int, *, seconds: float) -> None:
    """Wait until a standby shows all up to a position. Raises TimedOut."""
    deadline = monotonic() + seconds
    while (look := await members.look(name, operation="prepare")).applied < wanted:
        if monotonic() > deadline:
            text = f"it is {as_bytes(wanted - look.applied)} behind after {seconds:.0f} s"
            raise TimedOut(text, operation="prepare", subject=name)
        await asyncio.sleep(LOOK_AGAIN_SECONDS)
