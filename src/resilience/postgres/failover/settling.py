"""Settling: every standby stops receiving, and shows all that it has received."""

from __future__ import annotations

import asyncio
from time import monotonic

from resilience.concurrency import stop_tasks
from resilience.model.errors import FencedOff, ResilienceError, TimedOut

from .group import Seen
from .looking import Look
from .members import LOOK_AGAIN_SECONDS, Members

OPERATION = "settle"


async def settle(members: Members, *, epoch: int, seconds: float) -> list[Seen]:
    """Freeze all standbys side by side and wait until each shows what it has, at most so long; look at the others.

    A standby that could not be frozen has an error: nobody may rely on it. Raises FencedOff.
    """
    tasks = [asyncio.create_task(_settle_one(members, name, epoch, seconds)) for name in members.links]
    try:
        return [await task for task in tasks]
    finally:
        await stop_tasks(tasks)


async def _settle_one(members: Members, name: str, epoch: int, seconds: float) -> Seen:
    try:
        look = await members.look(name, operation=OPERATION, seconds=members.deadline(name))
        if look.standby:
            await freeze(members, name, epoch=epoch)
            look = await _settled(members, name, seconds)
    except FencedOff:
        raise
    except ResilienceError as error:
        return members.remember(Seen(member=members[name], error=error))
    free = members.seen[name].free
    return members.remember(Seen(member=members[name], look=look, free=free))


async def freeze(members: Members, name: str, *, epoch: int) -> None:
    """Have a standby receive from nobody, and apply what it has. Raises FencedOff, Refused, TimedOut, Unreachable."""
    look = members.seen[name].look
    if look is None:
        look = await members.look(name, operation=OPERATION)
    await members.stamp(name, look, epoch=epoch, operation=OPERATION)
    if not look.upstream.frozen or look.upstream.epoch != epoch:
        frozen = look.upstream.to_nowhere(epoch=epoch)
        await members.configure(name, {"primary_conninfo": frozen.text()}, operation=OPERATION)
    if look.paused not in (None, "not paused"):
        await members.links[name].execute("select pg_wal_replay_resume()", seconds=members.seconds, operation=OPERATION)


async def _settled(members: Members, name: str, seconds: float) -> Look:
    """Wait until a frozen standby has no receiver and shows all it has.

    Too late, it only must have no receiver and have come to where it asks for more: then it knows what it has. Raises
    TimedOut.
    """
    deadline = monotonic() + seconds
    while True:
        look = await members.look(name, operation=OPERATION)
        late = monotonic() > deadline
        if look.exhausted or (late and look.receiver is None and look.fetched) or not look.standby:
            return look
        if late and not look.fetched:
            text = "it has not applied yet what it had when it started, and nobody can tell how much that is"
            raise TimedOut(text, operation=OPERATION, subject=name, hint="wait until it has, then resume or plan again")
        if late:
            raise TimedOut("its WAL receiver does not stop", operation=OPERATION, subject=name)
        await asyncio.sleep(LOOK_AGAIN_SECONDS)
