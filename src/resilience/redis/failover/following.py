"""Standbys: have them stop receiving, follow the new master, and tell how far a member has left its history."""

from __future__ import annotations

import asyncio
from time import monotonic

from resilience.concurrency import stop_tasks
from resilience.model.errors import FencedOff, NotFollowing, Refused, ResilienceError, TimedOut, Unavailable
from resilience.model.failover import Divergence
from resilience.model.show import as_bytes

from .group import Seen, position
from .looking import NOWHERE, Look
from .members import LOOK_AGAIN_SECONDS, Members


async def settle(members: Members, *, epoch: int, seconds: float) -> None:
    """Have all replicas stop receiving, side by side; one that cannot be frozen has an error. Raises FencedOff."""
    tasks = [asyncio.create_task(_settle_one(members, name, epoch, seconds)) for name in members.links]
    try:
        for task in tasks:
            await task
    finally:
        await stop_tasks(tasks)


async def follow(members: Members, name: str, *, primary: str, epoch: int, seconds: float) -> None:
    """Have a replica receive from the master; see `Promoter.follow`. Raises NotFollowing, FencedOff, TimedOut."""
    operation = "follow"
    look = await members.look(name, operation=operation)
    upstream = await members.look(primary, operation=operation)
    await members.stamp(name, look, epoch=epoch, operation=operation)
    found = compared(name, primary, look, upstream)
    if look.master or found.way != "follow":
        raise NotFollowing(found.why, operation=operation, subject=name, hint="plan a failback")
    if not look.receiving or await members.who(look) != primary:
        await replicate(members, name, primary, operation=operation)
    await until_linked(members, name, primary, seconds=seconds, operation=operation)


async def replicate(members: Members, name: str, primary: str, *, operation: str) -> None:
    """Have a server be the replica of the master, and start again as that."""
    host, port = members[primary].address
    await members.run(name, ("REPLICAOF", host, port), operation=operation)
    await members.keep(name, operation=operation)


async def until_linked(members: Members, name: str, primary: str, *, seconds: float, operation: str) -> None:
    """Wait until a replica, which may have just been started, receives from the master. Raises TimedOut."""
    deadline = monotonic() + seconds
    while True:
        try:
            look = await members.look(name, operation=operation)
            if look.receiving and await members.who(look) == primary:
                return
            problem = f"its link to {primary} is {look.link or 'none'}"
        except Unavailable as error:
            problem = error.what
        if monotonic() > deadline:
            raise TimedOut(problem, operation=operation, subject=name, hint="see the logs of both")
        await asyncio.sleep(LOOK_AGAIN_SECONDS)


async def until_applied(members: Members, name: str, wanted: Look, *, seconds: float, operation: str) -> None:
    """Wait until a replica has what its master had. Raises TimedOut."""
    deadline = monotonic() + seconds
    while True:
        look = await members.look(name, operation=operation)
        if look.replid == wanted.replid and look.offset >= wanted.offset:
            return
        if monotonic() > deadline:
            text = f"it has not caught up: {look.offset} of {wanted.offset}"
            raise TimedOut(text, operation=operation, subject=name)
        await asyncio.sleep(LOOK_AGAIN_SECONDS)


async def divergence(members: Members, name: str, primary: str) -> Divergence:
    """Tell how a member can come back behind the master; nothing is written. Raises Unavailable for the master."""
    upstream = await members.look(primary, operation="divergence")
    try:
        look = await members.look(name, operation="divergence")
    except ResilienceError as error:
        server = members[name].server
        if server is None:
            text = f"it does not answer ({error.what}), and nobody here controls its server; the Sentinels see to it"
            return Divergence(member=name, primary=primary, way="none", why=text)
        if await server.running():
            return Divergence(
                member=name, primary=primary, way="none", why=f"it runs and does not answer: {error.what}"
            )
        text = f"it does not run: what it had since {primary} was promoted is given up, and it is copied anew"
        return Divergence(member=name, primary=primary, way="rebuild", why=text)
    return compared(name, primary, look, upstream)


def compared(name: str, primary: str, look: Look, upstream: Look) -> Divergence:
    """Compare a server's history with the master's: the same replication ID, or the one before up to the fork.

    One that has more gives that up, and Redis copies it anew by itself: it is rewound, for whoever looks at it. Some of
    what it has may be PINGs of a master to its replicas; they count as bytes of its history like any other.
    """
    end = position(look.replid, look.offset)
    if look.replid == upstream.replid:
        same = Divergence(member=name, primary=primary, way="follow", end=end, why=f"it is on {primary}'s history")
        return same if not look.master else _parted(same, upstream.offset, look.offset)
    if look.replid == upstream.parent:
        fork = position(upstream.parent, upstream.forked_at)
        if look.offset <= upstream.forked_at:
            text = f"it has no more than {primary} had when it was promoted, at {fork}"
            return Divergence(member=name, primary=primary, way="follow", forked_at=fork, end=end, why=text)
        lost = look.offset - upstream.forked_at
        text = f"it has {as_bytes(lost)} since {fork} that {primary} has not: it is copied anew"
        return Divergence(member=name, primary=primary, way="rewind", forked_at=fork, end=end, lost=lost, why=text)
    if look.parent and look.parent in (upstream.replid, upstream.parent):
        lost = max(0, look.offset - look.forked_at)
        fork = position(look.parent, look.forked_at)
        text = f"it left the history of {primary} at {fork} and wrote {as_bytes(lost)} of its own: it is copied anew"
        return Divergence(member=name, primary=primary, way="rewind", forked_at=fork, end=end, lost=lost, why=text)
    text = f"it is on a history that {primary} knows nothing of: it is copied anew"
    return Divergence(member=name, primary=primary, way="rebuild", end=end, lost=look.offset or None, why=text)


def _parted(same: Divergence, fork: int, end: int) -> Divergence:
    """A master on the same replication ID: it has been written to since, or will be."""
    return (
        same
        if end <= fork
        else Divergence(
            member=same.member,
            primary=same.primary,
            way="rewind",
            end=same.end,
            lost=end - fork,
            why="it takes writes",
        )
    )


async def _settle_one(members: Members, name: str, epoch: int, seconds: float) -> None:
    operation = "settle"
    try:
        look = await members.look(name, operation=operation)
        if not look.master:
            await members.stamp(name, look, epoch=epoch, operation=operation)
            if not look.frozen:
                await members.run(name, ("REPLICAOF", *NOWHERE), operation=operation)
            deadline = monotonic() + seconds
            while (look := await members.look(name, operation=operation)).receiving or not look.frozen:
                if monotonic() > deadline:
                    raise Refused("it goes on receiving", operation=operation, subject=name)
                await asyncio.sleep(LOOK_AGAIN_SECONDS)
    except FencedOff:
        raise
    except ResilienceError as error:
        members.seen[name] = Seen(member=members[name], error=error)
        return
    members.seen[name] = Seen(member=members[name], look=look)
