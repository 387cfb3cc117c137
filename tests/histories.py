"""An archive of a system in memory with a log: a value that is changed every minute, and what becomes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from attrs import define, field

from resilience import Archive, backup
from resilience.model.manifests import Manifest
from resilience.primitives import Log
from resilience.stores import MemoryStore
from resilience.testing.memory import LINEAGE, MemoryTarget

START = datetime(2026, 11, 21, 12, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def said(minutes: float) -> str:
    return f"{at(minutes):%Y-%m-%d %H:%M:%S UTC}"


@define
class History:
    """Writes the minute into the value `minute`, and ships it; the archive's and the store's clock is the target's."""

    lineage: str = LINEAGE
    now: float = 0
    archive: Archive = field(init=False)
    target: MemoryTarget = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.archive = Archive(MemoryStore(clock=lambda: at(self.now)), workers=1, clock=lambda: at(self.now))
        self.target = MemoryTarget("orders", {"minute": b"none"}, lineage=self.lineage)

    async def write(self, *minutes: float, target: MemoryTarget | None = None, ship: bool = True) -> None:
        """Change the value in each of these minutes."""
        target = target or self.target
        async with self.log(target.lineage) as log:
            for self.now in minutes:
                target.write("minute", str(self.now).encode(), at=at(self.now))
                if ship:
                    await target.ship(log, at=at(self.now))

    async def back_up(self, minute: float, target: MemoryTarget | None = None) -> Manifest:
        """Back up in a minute."""
        self.now = minute
        return (await backup(target or self.target, self.archive, clock=lambda: at(minute))).manifest

    async def lose(self, *, reason: str = "") -> None:
        """Lose what was not shipped; with a reason that is acknowledged."""
        gap = self.target.lose(at=at(self.now), reason=reason)
        if reason:
            async with self.log() as log:
                await log.record(gap)

    @asynccontextmanager
    async def log(self, lineage: str = "") -> AsyncIterator[Log]:
        """Open the log."""
        async with self.archive.log("orders", system="memory", lineage=lineage or self.lineage) as log:
            yield log


async def usual() -> History:
    """Backups in minutes 2 and 10, a change in every other minute up to 20."""
    history = History()
    await history.write(0, 1)
    await history.back_up(2)
    await history.write(*range(3, 10))
    await history.back_up(10)
    await history.write(*range(11, 21))
    return history
