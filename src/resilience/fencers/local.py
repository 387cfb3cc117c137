"""How a server on this machine is fenced, whatever it is: marked, ended, proven dead. Its room knows the server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Protocol

from attrs import define, evolve, field

from resilience.concurrency import in_thread
from resilience.model.errors import (
    Conflict,
    Corrupt,
    FencedOff,
    FencingUnproven,
    Refused,
    ResilienceError,
    TimedOut,
    Unavailable,
)
from resilience.model.groups import Fence
from resilience.model.positions import Position

from .mark import Fenced, FenceMark


class Fenceable(Protocol):
    """A server on this machine that works in the folder `data`; see `LocalServer` of a system's room."""

    @property
    def data(self) -> Path:
        """The folder."""
        ...

    async def running(self) -> list[int]:
        """Return the ids of its processes. Raises Refused where an empty answer would prove nothing."""
        ...

    async def kill(self) -> None:
        """End it at once. Raises TimedOut."""
        ...

    async def start(self) -> None:
        """Start it; nothing happens if it runs. Raises Interrupted."""
        ...


@define
class Epochs:
    """The newest epoch that was seen, member by member."""

    _seen: dict[str, int] = field(factory=dict)

    def check(self, member: str, epoch: int) -> None:
        """Take note of an epoch. Raises FencedOff if a newer one was seen."""
        if epoch < self._seen.setdefault(member, epoch):
            text = f"epoch {epoch} is over: it has seen epoch {self._seen[member]}"
            raise FencedOff(text, operation="fence", subject=member)
        self._seen[member] = epoch


Stopped = Callable[[], Awaitable[Position | None]]
"""Stops a server in order, and returns where its history ends if it can tell."""
Ended = Callable[[], tuple[str, Position | None]]
"""Looks how a server that is dead has ended, in a word, and where if it ended in order."""


async def fence(
    member: str,
    server: Fenceable,
    mark: FenceMark,
    *,
    epoch: int,
    stop: Stopped | None,
    ended: Ended,
    clock: Callable[[], datetime],
) -> Fence:
    """Mark a server's folder, end the server, and prove that it is dead and stays so; `stop` ends it in order.

    One that is killed is so too where its disk takes no mark: dead it writes nothing, and may leave room. Raises
    FencingUnproven, FencedOff.
    """
    with proving(member):
        return await _fence(member, server, mark, epoch, stop, ended, clock)


@contextmanager
def proving(member: str) -> Iterator[None]:
    """Raise FencingUnproven for whatever keeps us from looking or marking, a disk that is full or gone too."""
    try:
        yield
    except (Conflict, FencingUnproven):
        raise
    except (Refused, Corrupt, OSError) as error:
        what, hint = (error.what, error.hint) if isinstance(error, ResilienceError) else (str(error), "")
        raise FencingUnproven(what, operation="fence", subject=member, hint=hint) from error


async def _fence(
    member: str,
    server: Fenceable,
    mark: FenceMark,
    epoch: int,
    stop: Stopped | None,
    ended: Ended,
    clock: Callable[[], datetime],
) -> Fence:
    found = await in_thread(mark.check, epoch)
    running = bool(await _running(member, server))
    known = found if found is not None and not found.lifted else Fenced(epoch=epoch)
    # A server that ran behind the mark has acknowledged what it liked.
    at, end = (None, None) if running else (known.at, known.end)
    fenced = evolve(known, epoch=epoch, ran=known.ran or running, at=at, end=end)
    try:
        await in_thread(mark.set, fenced)
    except OSError:
        if stop is not None:
            raise
    if running:
        fenced = evolve(fenced, end=await _end(member, server, stop))
    await _dead(member, server)
    fenced = evolve(fenced, at=fenced.at or clock())
    try:
        await in_thread(mark.set, fenced)
    except OSError as error:
        text = f"no process works in {server.data}, and nothing keeps one from starting there: {error}"
        hint = "make room on its disk, and start it again if nobody takes its place"
        raise FencingUnproven(text, operation="fence", subject=member, hint=hint) from error
    # The server may have rewritten its file without our line as it ended, and somebody may have started it at once.
    await _dead(member, server)
    word, seen = await in_thread(ended)
    return Fence(
        member=member,
        kind="proven",
        epoch=epoch,
        at=fenced.at or clock(),
        end=(seen or fenced.end) if stop is not None else None,
        evidence=f"no process works in {server.data}, and none can start there ({word})",
    )


async def lift(server: Fenceable, mark: FenceMark, *, epoch: int) -> None:
    """Undo it; a server that it has stopped is started again. Raises FencedOff, Interrupted.

    Also where there is nothing to undo, nobody fences it in an older epoch any more.
    """
    found = await in_thread(mark.check, epoch)
    if found is None or found.lifted:
        if (found is None or found.epoch < epoch) and server.data.is_dir():
            await in_thread(mark.note, Fenced(epoch=epoch, lifted=True))
        return
    # Started first in the mark's own words: who dies between finds that it is still to be started.
    if found.ran:
        await in_thread(mark.lift, epoch, keep=found)
        await server.start()
    await in_thread(mark.lift, epoch)


async def _end(member: str, server: Fenceable, stop: Stopped | None) -> Position | None:
    try:
        if stop is not None:
            return await stop()
        await server.kill()
    except TimedOut as error:
        raise FencingUnproven(error.what, operation="fence", subject=member, hint=error.hint) from error
    return None


async def _dead(member: str, server: Fenceable) -> None:
    if await _running(member, server):
        raise FencingUnproven("a process works in its data directory again", operation="fence", subject=member)


async def _running(member: str, server: Fenceable) -> list[int]:
    try:
        return await server.running()
    except (Refused, Unavailable) as error:
        raise FencingUnproven(error.what, operation="fence", subject=member, hint=error.hint) from error
