"""rehydrate(): begin to bring back what a restore needs from a tier that cannot be read."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import datetime
from typing import TypeVar

from resilience.concurrency import awaited_in_order, closing
from resilience.model.errors import NotRehydrated
from resilience.model.events import Notifier, Observer
from resilience.model.rehydration import Rehydration
from resilience.model.show import as_span
from resilience.model.targets import RecoveryTarget
from resilience.primitives import Archiver, ObjectInfo, RestoreDestination

from .looking import Decided, decided

Live = TypeVar("Live")
BEGUN_AT_ONCE = 16


async def rehydrate(
    archive: Archiver,
    target: str,
    *,
    into: RestoreDestination[Live],
    until: datetime | RecoveryTarget | None = None,
    urgent: bool = False,
    actor: str = "",
    reason: str = "",
    observer: Observer | None = None,
) -> Rehydration:
    """Begin to make readable what `restore` with the same arguments needs, and return what cannot be read yet.

    Each object is copied to a readable tier; it stays where it is itself, so nothing is paid for leaving Archive early.
    That takes up to 15 hours, or about one if `urgent`, which costs more. Call it again to see how far it is: once it
    returns no objects, the restore can begin, and reads the copies. What was begun is not begun twice. `actor` asks for
    it, for a `reason`: both stand in every event.

    Cancelled: the copies that were begun go on. Raises as `restore` does before it touches anything, and Unsupported if
    the store cannot bring anything back; KeyMissing, Refused (it may not write) and Unavailable as stores do.
    """
    told = Notifier("rehydrate", target, observer, actor=actor, reason=reason)
    left: list[ObjectInfo] = []

    async def begin(info: ObjectInfo) -> None:
        if not await archive.rehydrate(info.key, urgent=urgent):
            left.append(info)
        told.advance(info.size, info.key)

    with told.outcome():
        async with (
            decided(archive, target, into=into, until=RecoveryTarget.of(until)) as found,
            aclosing(awaited_in_order(offline(archive, found), begin, ahead=BEGUN_AT_ONCE)) as begun,
        ):
            async for _ in begun:
                continue
    return _summed(left)


async def needed(archive: Archiver, found: Decided) -> Rehydration:
    """Return what of a decided restore cannot be read yet."""
    async with closing(offline(archive, found)) as infos:
        return _summed([info async for info in infos])


async def refuse_offline(archive: Archiver, found: Decided, *, target: str) -> None:
    """Raise NotRehydrated if something that a restore needs cannot be read: nothing was touched yet."""
    waiting = await needed(archive, found)
    if waiting.objects:
        hint = f"rehydrate() makes it readable in up to {as_span(waiting.standard)}; or restore to something newer"
        raise NotRehydrated(str(waiting), operation="restore", subject=target, hint=hint)


async def offline(archive: Archiver, found: Decided) -> AsyncGenerator[ObjectInfo]:
    """Yield what of a decided restore lies in a tier that cannot be read."""
    sources: list[AsyncIterator[ObjectInfo]] = [archive.offline(manifest) for manifest in found.course.chain]
    if found.log is not None:
        sources += [found.log.offline(stretch) for stretch in found.course.replay]
    for source in sources:
        async with closing(source) as infos:
            async for info in infos:
                yield info


def _summed(infos: list[ObjectInfo]) -> Rehydration:
    return Rehydration(objects=len(infos), bytes=sum(info.size for info in infos))
