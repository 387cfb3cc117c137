"""Rejoining: a member comes back behind the master, as its replica from the first moment on; what only it has is lost.

Redis copies by itself: it goes on where the histories have a place in common that the master still has, or it copies
everything.
"""

from __future__ import annotations

from contextlib import suppress

from resilience.concurrency import in_thread
from resilience.model.errors import Refused, ResilienceError, Unavailable
from resilience.model.failover import Divergence

from .correcting import correct
from .fence_mark import as_replica, mark_on
from .following import replicate, until_linked
from .members import Members
from .server import LocalRedis

OPERATION = "rejoin"
CORRECT_SECONDS = 3.0


async def rejoin(members: Members, found: Divergence, *, epoch: int, seconds: float) -> None:
    """Bring a member back in the way that was found; see `Promoter.rejoin`. Raises Refused, FencedOff, TimedOut."""
    name, primary = found.member, found.primary
    if found.way == "none":
        raise Refused(f"nobody can tell how: {found.why}", operation=OPERATION, subject=name)
    upstream = await members.look(primary, operation=OPERATION)
    if not upstream.master:
        raise Refused(f"{primary} is no master itself", operation=OPERATION, subject=name)
    await members.stamp(primary, upstream, epoch=epoch, operation=OPERATION)
    server = members[name].server
    if server is not None:
        await in_thread(mark_on(server).check, epoch)
    try:
        look = await members.look(name, operation=OPERATION)
    except Unavailable:
        await _started(members, server, name, primary, epoch)
    else:
        await members.stamp(name, look, epoch=epoch, operation=OPERATION)
        if look.master or await members.who(look) != primary:
            await replicate(members, name, primary, operation=OPERATION)
        if look.master:  # who is connected to it still takes it for the master
            await members.run(name, ("CLIENT", "KILL", "TYPE", "normal"), operation=OPERATION)
            await members.run(name, ("CLIENT", "UNPAUSE"), operation=OPERATION)
    await until_linked(members, name, primary, seconds=seconds, operation=OPERATION)
    await members.keep(name, operation=OPERATION)
    with suppress(ResilienceError):  # what is still wrong with the Sentinels a survey shows
        await correct(members, primary, seconds=CORRECT_SECONDS, operation=OPERATION)


async def _started(members: Members, server: LocalRedis | None, name: str, primary: str, epoch: int) -> None:
    """Start a member that is dead as a replica: its file says so before it may start."""
    if server is None:
        text = "it does not answer, and nobody here controls its server"
        raise Refused(text, operation=OPERATION, subject=name, hint="start it; the Sentinels make it a replica")
    if await server.running():
        text = "it runs and does not answer"
        raise Refused(text, operation=OPERATION, subject=name, hint="fence it first")
    mark = mark_on(server)
    settings = as_replica(await in_thread(mark.settings), members[primary].address)
    await in_thread(mark.lift, epoch, settings=settings)
    await server.start()
