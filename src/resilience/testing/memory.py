"""A system in memory: the double that operations are tested with, and the smallest example of what a system is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import ClassVar

from attrs import define, evolve, field, frozen

from resilience.concurrency import closing
from resilience.model.capture import Captured, Part, Restored
from resilience.model.errors import (
    ChecksumMismatch,
    DestinationNotEmpty,
    LogGap,
    NotIncremental,
    NotRecoverable,
    Refused,
)
from resilience.model.facts import DestinationFacts, TargetFacts
from resilience.model.findings import Finding
from resilience.model.ids import checked_name
from resilience.model.json import Offset
from resilience.model.log import Branch, Gap, LogEntry
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

    `capturing` is how many captures are open: its backup mode. `revision` is where its log stands: so many bytes have
    been written to it. `findings` are what its survey says besides. With `damaged` it finds out at the end of a capture
    that its own data is damaged.

    `write` and `mark` are logged; `ship` brings what has been logged since into a log. `promoted` is a copy that goes
    on by itself on a new branch.
    """

    system: ClassVar[str] = SYSTEM
    kind: ClassVar[str] = KIND

    name: str = field(converter=checked_name)
    values: dict[str, bytes] = field(factory=dict)
    lineage: str = field(default=LINEAGE, kw_only=True)
    revision: int = field(default=1, kw_only=True)
    branch: Branch = field(factory=lambda: Branch(name="1"), kw_only=True)
    chunk_size: int = field(default=1 << 20, kw_only=True)
    findings: tuple[Finding, ...] = field(default=(), kw_only=True)
    damaged: bool = field(default=False, kw_only=True)
    capturing: int = field(default=0, init=False)
    _unshipped: bytearray = field(factory=bytearray, init=False, repr=False)

    def write(self, name: str, value: bytes, *, at: datetime) -> int:
        """Change a value, at a time of its own clock; return where its log stands then."""
        self.values[name] = value
        return self._log({"at": at.isoformat(), "name": name, "value": value.hex()})

    def mark(self, point: str, *, at: datetime) -> int:
        """Give the point that its log has come to a name; return where its log stands then."""
        return self._log({"at": at.isoformat(), "point": point})

    async def ship(self, log: Log, *, at: datetime, latest: datetime | None = None) -> LogEntry:
        """Append to a log what is not there yet: all that is acknowledged at the time `at`."""
        begins = _position(self.revision - len(self._unshipped), self.branch.name)
        ends = _position(self.revision, self.branch.name)
        entry = LogEntry(begins=begins, ends=ends, latest=latest or at, complete_at=at)
        await log.record(self.branch)
        await log.append(entry, [bytes(self._unshipped)])
        self._unshipped.clear()
        return entry

    def lose(self, *, at: datetime, reason: str = "the log was lost") -> Gap:
        """Forget what has been logged and not shipped; return what is missing from now on."""
        begins, ends = self.revision - len(self._unshipped), self.revision
        self._unshipped.clear()
        return Gap(
            begins=_position(begins, self.branch.name),
            ends=_position(ends, self.branch.name),
            reason=reason,
            noted_at=at,
        )

    def promoted(self, branch: str) -> MemoryTarget:
        """Return a copy that goes on by itself from here, on a branch of that name."""
        here = _position(self.revision, self.branch.name)
        return evolve(
            self,
            values=dict(self.values),
            branch=Branch(name=branch, parent=self.branch.name, forked_at=here, text=f"{branch} from {here}"),
        )

    def _log(self, record: Mapping[str, str]) -> int:
        line = json.dumps(record).encode() + b"\n"
        self._unshipped += line
        self.revision += len(line)
        return self.revision

    async def survey(self) -> TargetFacts:
        """Say what there is."""
        await asyncio.sleep(0)
        return TargetFacts(
            target=self.name,
            system=self.system,
            kind=self.kind,
            lineage=self.lineage,
            branch=self.branch.name,
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
                values=dict(self.values),
                position=_position(self.revision, self.branch.name),
                chunk_size=self.chunk_size,
                damaged=self.damaged,
            )
        finally:
            self.capturing -= 1


@define(kw_only=True)
class MemoryCapture:
    """The values of one moment, being read."""

    values: Mapping[str, bytes]
    position: Position
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
        return Captured(begins=self.position, recovery_point=RecoveryPoint(position=self.position))

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
    replays: ClassVar[tuple[str, ...]] = (KIND,)

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
        """Take over the values of the last backup in the chain, and replay what the plan says of the log."""
        if self.values:
            raise DestinationNotEmpty(f"{self.name} is not empty", operation="restore", subject=plan.target)
        backup = chain[-1]
        for part in backup.manifest.parts:
            self.values[part.name] = b""
            async with backup.read(part.name) as chunks:
                async for chunk in chunks:
                    self.values[part.name] += chunk
        point = backup.manifest.recovery_point
        if log is not None and plan.replay:
            point = await Replay(plan, log, self.values, point, reached).run()
        elif reached is not None:
            reached(point)
        self.startable = True
        return Restored(reached=point)

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


@define
class Replay:
    """Replays what a plan says of a log onto values, up to where the plan says."""

    plan: RestorePlan
    log: Log
    values: dict[str, bytes]
    point: RecoveryPoint
    reached: Reached | None

    async def run(self) -> RecoveryPoint:
        """Replay, and return where it stopped. Raises LogGap, and NotRecoverable if the target is not in the log."""
        start = int(self.point.position.offset)
        data = await self._data(start)
        at = start
        for line in data.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break  # the log ends within it
            if self._stops(at, record := json.loads(line)):
                return self.point
            at += len(line)
            self._take(at, record)
            if not self.plan.to_the_end and record.get("point") == self.plan.until.value != "":
                return self.point
        if not self.plan.to_the_end and self.plan.until.kind in ("name", "transaction"):
            raise NotRecoverable(f"{self.plan.until} is not in the log", operation="restore", subject=self.plan.target)
        return self.point

    async def _data(self, start: int) -> bytes:
        """Read the log from `start` on, not further than the record behind the target."""
        data = bytearray()
        for stretch in self.plan.replay:
            at = max(start, stretch.begins.offset)
            async with closing(self.log.entries(stretch.branch, begins=at, ends=stretch.ends.offset)) as entries:
                async for entry in entries:
                    if entry.begins.offset > start + len(data):
                        raise LogGap(
                            f"nothing from {start + len(data)} on", operation="restore", subject=self.plan.target
                        )
                    read = b"".join(await self.log.read(entry))
                    data += read[start + len(data) - entry.begins.offset : stretch.ends.offset - entry.begins.offset]
                    if self._enough(start, data):
                        return bytes(data)
        return bytes(data)

    def _enough(self, start: int, data: bytes | bytearray) -> bool:
        at = start
        for line in data.splitlines(keepends=True):
            if line.endswith(b"\n") and self._stops(at, json.loads(line)):
                return True
            at += len(line)
        return False

    def _stops(self, at: int, record: Mapping[str, str]) -> bool:
        until = self.plan.until
        if self.plan.to_the_end:
            return False
        if until.moment is not None:
            return datetime.fromisoformat(record["at"]) > until.moment
        return until.offset is not None and at >= until.offset

    def _take(self, at: int, record: Mapping[str, str]) -> None:
        if "name" in record:
            self.values[record["name"]] = bytes.fromhex(record["value"])
        branch = next((each.branch for each in self.plan.replay if at <= each.ends.offset), self.plan.replay[-1].branch)
        self.point = RecoveryPoint(position=_position(at, branch), time=datetime.fromisoformat(record["at"]))
        if self.reached is not None:
            self.reached(self.point)


def _position(revision: int, branch: str) -> Position:
    return Position(branch=branch, offset=Offset(revision), text=str(revision))
