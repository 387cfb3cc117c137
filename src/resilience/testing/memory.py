"""A system in memory: the double that operations are tested with, and the smallest example of what a system is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar

from attrs import define, field, frozen

from resilience.model.capture import Captured, Part, Restored
from resilience.model.errors import ChecksumMismatch, DestinationNotEmpty, NotIncremental, Refused
from resilience.model.facts import DestinationFacts, TargetFacts
from resilience.model.findings import Finding
from resilience.model.ids import checked_name
from resilience.model.json import Offset
from resilience.model.manifests import Manifest
from resilience.model.plans import BackupPlan, RestorePlan
from resilience.model.positions import Position, RecoveryPoint
from resilience.primitives import Log, Reached, StoredBackup

SYSTEM = "memory"
KIND = "base"
LINEAGE = "7400000000000000001"


@define
class MemoryTarget:
    """A system that holds named values; each becomes one part of a backup.

    `capturing` is how many captures are open: its backup mode. `revision` counts its changes. `findings` are what its
    survey says besides. With `damaged` it finds out at the end of a capture that its own data is damaged.
    """

    system: ClassVar[str] = SYSTEM
    kind: ClassVar[str] = KIND

    name: str = field(converter=checked_name)
    values: dict[str, bytes] = field(factory=dict)
    lineage: str = field(default=LINEAGE, kw_only=True)
    revision: int = field(default=1, kw_only=True)
    chunk_size: int = field(default=1 << 20, kw_only=True)
    findings: tuple[Finding, ...] = field(default=(), kw_only=True)
    damaged: bool = field(default=False, kw_only=True)
    capturing: int = field(default=0, init=False)

    async def survey(self) -> TargetFacts:
        """Say what there is."""
        await asyncio.sleep(0)
        return TargetFacts(
            target=self.name,
            system=self.system,
            kind=self.kind,
            lineage=self.lineage,
            size=sum(map(len, self.values.values())),
            findings=self.findings,
        )

    @asynccontextmanager
    async def capture(self, plan: BackupPlan, *, parent: StoredBackup | None = None) -> AsyncGenerator[MemoryCapture]:
        """Read all values as they are now."""
        if plan.lineage != self.lineage:
            raise Refused(f"the lineage is now {self.lineage}", operation="backup", subject=self.name)
        if parent is not None:
            raise NotIncremental("it knows no incremental backups", operation="backup", subject=self.name)
        self.capturing += 1
        try:
            await asyncio.sleep(0)
            yield MemoryCapture(
                values=dict(self.values), revision=self.revision, chunk_size=self.chunk_size, damaged=self.damaged
            )
        finally:
            self.capturing -= 1


@define(kw_only=True)
class MemoryCapture:
    """The values of one moment, being read."""

    values: Mapping[str, bytes]
    revision: int
    chunk_size: int
    damaged: bool
    _read: list[str] = field(factory=list, init=False)

    @property
    def size(self) -> int:
        """All bytes."""
        return sum(map(len, self.values.values()))

    async def parts(self) -> AsyncGenerator[Part]:
        """Yield one part a value, in the order of their names."""
        for name in sorted(self.values):
            yield Part(name=name, chunks=self._chunks(name))

    async def finish(self) -> Captured:
        """Say what was captured. Raises ChecksumMismatch unless all of it was read, or if it is `damaged`."""
        await asyncio.sleep(0)
        if self.damaged or sorted(self._read) != sorted(self.values):
            raise ChecksumMismatch("what was read is not what is there", operation="backup")
        return Captured(
            begins=_position(self.revision), recovery_point=RecoveryPoint(position=_position(self.revision))
        )

    async def _chunks(self, name: str) -> AsyncGenerator[bytes]:
        value = self.values[name]
        for start in range(0, len(value), self.chunk_size):
            await asyncio.sleep(0)
            yield value[start : start + self.chunk_size]
        self._read.append(name)


@frozen(kw_only=True)
class MemoryServer:
    """What was restored, running."""

    values: Mapping[str, bytes]


@define
class MemoryDestination:
    """Holds restored values. They are in `values` from the first byte on, but nothing can be started before the last.

    `room` is how many bytes it can take; None: any number.
    """

    system: ClassVar[str] = SYSTEM
    accepts: ClassVar[tuple[str, ...]] = (KIND,)
    replays: ClassVar[tuple[str, ...]] = ()

    name: str = field(default="memory", converter=checked_name)
    values: dict[str, bytes] = field(factory=dict)
    room: int | None = field(default=None, kw_only=True)
    startable: bool = field(default=False, init=False)
    running: int = field(default=0, init=False)

    async def survey(self, chain: Sequence[Manifest]) -> DestinationFacts:
        """Say whether it is empty and large enough."""
        await asyncio.sleep(0)
        return DestinationFacts(
            destination=self.name,
            system=self.system,
            empty=not self.values,
            needed=sum(manifest.size for manifest in chain),
            free=self.room,
        )

    async def apply(
        self,
        plan: RestorePlan,
        *,
        chain: Sequence[StoredBackup],
        log: Log | None = None,
        reached: Reached | None = None,
    ) -> Restored:
        """Take over the values of the last backup in the chain."""
        if log is not None:
            raise ValueError("it has no log to replay")
        if self.values:
            raise DestinationNotEmpty(f"{self.name} is not empty", operation="restore", subject=plan.target)
        backup = chain[-1]
        for part in backup.manifest.parts:
            self.values[part.name] = b""
            async with backup.read(part.name) as chunks:
                async for chunk in chunks:
                    self.values[part.name] += chunk
        self.startable = True
        if reached is not None:
            reached(backup.manifest.recovery_point)
        return Restored(reached=backup.manifest.recovery_point)

    @asynccontextmanager
    async def live(self) -> AsyncIterator[MemoryServer]:
        """Start what was restored. Raises Refused if that has not come to its end."""
        if not self.startable:
            raise Refused("there is nothing that could be started", operation="start", subject=self.name)
        self.running += 1
        try:
            yield MemoryServer(values=dict(self.values))
        finally:
            self.running -= 1

    async def discard(self) -> None:
        """Forget everything."""
        self.startable = False
        await asyncio.sleep(0)
        self.values.clear()


def _position(revision: int) -> Position:
    return Position(branch="1", offset=Offset(revision), text=str(revision))
