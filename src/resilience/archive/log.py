"""The log of one lineage in a store; docs/archive-format.md specifies what it writes."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import TypeVar

from attrs import define, field

from resilience.concurrency import closing, in_thread
from resilience.model.errors import (
    AlreadyExists,
    ChecksumMismatch,
    Corrupt,
    KeyMissing,
    LineageBroken,
    ManifestInvalid,
    NotRehydrated,
    ObjectMissing,
    Unsupported,
)
from resilience.model.findings import Finding
from resilience.model.log import Branch, Gap, LogEntry, LogFacts, Stretch, Watermark
from resilience.model.positions import Position
from resilience.primitives import ObjectInfo, ObjectStore

from . import layout
from .covering import Finder
from .entries import HEAD_AT_MOST, Head
from .offline import unreadable
from .packing import Packing
from .records import Records
from .small import RECORD, whole

R = TypeVar("R", Branch, Watermark, Gap)

logger = logging.getLogger(__name__)

ANOTHER = "another server of this lineage writes here: give one of them a name of its own"


@define(kw_only=True)
class ArchiveLog:
    """One lineage's log; see `primitives.Log`."""

    records: Records
    lineage: str
    packing: Packing = field(repr=False)
    clock: Callable[[], datetime] = field(repr=False)
    register: Callable[[], Awaitable[None]] = field(repr=False)
    _registered: bool = field(default=False, init=False, repr=False)
    _branches: set[str] = field(factory=set, init=False, repr=False)

    @property
    def store(self) -> ObjectStore:
        """Where it is kept."""
        return self.records.store

    @property
    def target(self) -> str:
        """Whose log it is."""
        return self.records.target

    @property
    def system(self) -> str:
        """The system whose log it is."""
        return self.records.system

    async def record(self, record: Branch | Watermark | Gap) -> None:
        """Write a record; see `Log.record`. Cancelled: it is there whole, or not at all.

        Raises LineageBroken if a branch is recorded with another history.
        """
        key = self._name_of(record)
        if isinstance(record, Watermark):
            key += layout.at_time(int(self.clock().timestamp() * 1000))
        await self._register()
        try:
            await self.records.put(key, record)
        except AlreadyExists:
            if isinstance(record, Branch) and await self._read(key, Branch) != record:
                raise self._broken(f"branch {record.name} is recorded with another history") from None

    async def append(self, entry: LogEntry, data: Sequence[bytes | memoryview]) -> bool:
        """Store an entry durably; see `Log.append`. Cancelled: it is there whole, or not at all."""
        if (size := sum(map(len, data))) != entry.size:
            raise ValueError(f"an entry of {entry.size} bytes was given {size}")
        key = self._key_of_entry(entry)
        await self._register()
        await self._look_for(entry.branch)
        packed = await self.packing.entry(key, entry, data)
        try:
            await self.store.put(key, packed)
        except AlreadyExists:
            if await in_thread(_same, await self.read(entry), data):
                return False
            raise self._broken(f"{entry} is in the archive with other bytes") from None
        return True

    async def keep(self, name: str, data: bytes) -> None:
        """Store a small file; see `Log.keep`. Cancelled: it is there whole, or not at all."""
        key = layout.file(self.system, self.target, self.lineage, name)
        await self._register()
        packed = await self.packing.file(key, name, data)
        try:
            await self.store.put(key, packed)
        except AlreadyExists:
            there = await whole(self.store, key)
            if there is None or not await self.packing.holds(key, there, data):
                raise self._broken(f"{name} is in the archive with other bytes") from None

    async def survey(self) -> LogFacts:
        """Return the branches, how far each is durable, and the gaps that were acknowledged.

        An entry whose head is damaged is there all the same: only its times are not known. In a sealed archive a record
        that cannot be trusted is passed over, which is a finding.
        """
        findings: list[Finding] = []
        branches = await self._all(layout.histories(self.system, self.target, self.lineage), Branch, findings)
        branches.sort(key=lambda branch: (len(branch.name), branch.name))
        watermarks = [await self._watermark(branch.name, self._told, findings) for branch in branches]
        return LogFacts(
            lineage=self.lineage,
            branches=tuple(branches),
            watermarks=tuple(watermark for watermark in watermarks if watermark is not None),
            gaps=tuple(await self._all(layout.gaps(self.system, self.target, self.lineage), Gap, findings)),
            findings=tuple(findings),
        )

    async def watermark(self, branch: str) -> Watermark | None:
        """Return how far a branch is durable; None if nothing of it is.

        The newest record is the first one listed; what was appended after it is found from there.
        """
        return await self._watermark(branch, self.describe, [])

    async def _watermark(
        self, branch: str, told: Callable[[LogEntry], Awaitable[LogEntry]], findings: list[Finding]
    ) -> Watermark | None:
        recorded = await self._recorded(branch, findings)
        first, last = await self._going_on(branch, recorded.ends.offset if recorded else None)
        reached = last or recorded
        if reached is None:
            return None
        begins = recorded.begins if recorded else None
        for gap in await self._all(layout.gaps(self.system, self.target, self.lineage, branch), Gap):
            if gap.begins.offset <= reached.ends.offset < gap.ends.offset:
                _, behind = await self._going_on(branch, gap.ends.offset)
                if behind is not None:
                    begins, reached, last = gap.ends, behind, behind
        if last is None:
            return recorded
        if begins is None and first is not None:
            begins = (await told(first)).begins
        return _moved(recorded, begins or last.begins, await told(last))

    async def entries(self, branch: str, *, begins: int = 0, ends: int | None = None) -> AsyncGenerator[LogEntry]:
        """Yield what covers a stretch; see `Log.entries`. Only names are looked at."""
        known = await self._known(branch) if ends is None and begins else 0
        async with closing(self._finder(branch).entries(begins, ends, known=known)) as entries:
            async for entry in entries:
                yield entry

    async def slices(self, branch: str, *, begins: int, ends: int) -> AsyncGenerator[LogEntry]:
        """Yield what slices alone cover of a stretch; see `Log.slices`. Only names are looked at."""
        async with closing(self._finder(branch).sliced(begins, ends)) as entries:
            async for entry in entries:
                yield entry

    async def offline(self, stretch: Stretch) -> AsyncGenerator[ObjectInfo]:
        """Yield the whole segments of a stretch that cannot be read; see `Log.offline`. Slices are never moved."""
        begins, ends = stretch.begins.offset, stretch.ends.offset

        def overlaps(key: str) -> bool:
            found = layout.stretch(key)
            return found is not None and found[0] < ends and begins < found[1]

        prefix = layout.segments(self.system, self.target, self.lineage, stretch.branch)
        for high in layout.highs(begins, ends):
            async with aclosing(unreadable(self.store, prefix + high, wanted=overlaps)) as infos:
                async for info in infos:
                    yield info

    async def read(self, entry: LogEntry) -> Sequence[bytes]:
        """Return an entry's bytes in verified pieces; see `Log.read`."""
        key = self._key_of_entry(entry)
        data = await whole(self.store, key, at_most=2 * entry.size + HEAD_AT_MOST + RECORD)
        if data is None:
            raise ObjectMissing("there is no such entry", operation="read log", subject=key)
        if (found := await self._head(data, entry, key)) is None:
            raise _cut_short(key)
        head, length = found
        return await self.packing.plain(key, head, memoryview(data)[length:])

    async def describe(self, entry: LogEntry) -> LogEntry:
        """Return an entry with all that its head says; see `Log.describe`."""
        key = self._key_of_entry(entry)
        data = bytearray()
        async with self.store.get(key) as chunks:
            async for chunk in chunks:
                data += chunk
                if (found := await self._head(data, entry, key)) is not None:
                    return found[0].entry
        raise _cut_short(key)

    async def _told(self, entry: LogEntry) -> LogEntry:
        """Return an entry with what its head says, or as its name says if that cannot be read."""
        try:
            return await self.describe(entry)
        except (Corrupt, NotRehydrated, KeyMissing, Unsupported):
            return entry

    async def _head(self, data: bytes | bytearray, entry: LogEntry, key: str) -> tuple[Head, int] | None:
        found = await self.packing.head(key, data)
        if found is not None:
            head = found[0]
            if (head.target, head.lineage) != (self.target, self.lineage) or _place(head.entry) != _place(entry):
                raise ChecksumMismatch("it belongs under another name", operation="read log", subject=key)
        return found

    async def _recorded(self, branch: str, findings: list[Finding]) -> Watermark | None:
        async with closing(self._watermarks(branch)) as keys:
            async for key in keys:
                if (watermark := await self._trusted(key, Watermark, findings)) is not None:
                    return watermark
        return None

    async def _watermarks(self, branch: str) -> AsyncGenerator[str]:
        prefix = layout.watermarks(self.system, self.target, self.lineage, branch)
        async with closing(self.store.list(prefix)) as infos:
            async for info in infos:
                if layout.until(info.key) is not None:
                    yield info.key

    async def _known(self, branch: str) -> int:
        """Return up to where the records of a branch reach."""
        gaps = layout.gaps(self.system, self.target, self.lineage, branch)
        known = [gap.ends.offset for gap in await self._all(gaps, Gap)]
        async with closing(self._watermarks(branch)) as keys:
            async for key in keys:
                return max([layout.until(key) or 0, *known])
        return max(known, default=0)

    async def _going_on(self, branch: str, at: int | None) -> tuple[LogEntry | None, LogEntry | None]:
        """Return the first and last entry of the run that goes on from `at`, or of the first run of all."""
        first = last = None
        async with closing(self._finder(branch).entries(at or 0, None, known=at or 0)) as entries:
            async for entry in entries:
                if at is not None and entry.begins.offset > at:
                    break
                first, last, at = first or entry, entry, entry.ends.offset
        return first, last

    def _finder(self, branch: str) -> Finder:
        return Finder(
            store=self.store,
            branch=branch,
            segments=layout.segments(self.system, self.target, self.lineage, branch),
            slices=layout.slices(self.system, self.target, self.lineage, branch),
            proven=None if self.records.keyring.key is None else self._proven,
        )

    async def _proven(self, entry: LogEntry) -> bool:
        """Tell whether the head of an entry shows that we wrote it; one that cannot be read now is believed."""
        try:
            await self.describe(entry)
        except NotRehydrated:
            return True
        except (Corrupt, KeyMissing, Unsupported) as error:
            logger.warning("%s is passed over, for it lies over other entries: %s", self._key_of_entry(entry), error)
            return False
        return True

    async def _register(self) -> None:
        if not self._registered:
            await self.register()
            self._registered = True

    async def _look_for(self, branch: str) -> None:
        if branch not in self._branches:
            if await self.store.stat(layout.history(self.system, self.target, self.lineage, branch)) is None:
                raise ValueError(f"branch {branch} is not recorded: nobody would find what is appended to it")
            self._branches.add(branch)

    async def _all(self, prefix: str, kind: type[R], findings: list[Finding] | None = None) -> list[R]:
        keys = [info.key async for info in self.store.list(prefix)]
        passed: list[Finding] = [] if findings is None else findings
        found = [await self._trusted(key, kind, passed) for key in keys]
        return [record for record in found if record is not None]

    async def _trusted(self, key: str, kind: type[R], passed: list[Finding]) -> R | None:
        """Return a record; with a key None for one that cannot be trusted, which is a finding."""
        try:
            return await self._read(key, kind)
        except (Corrupt, KeyMissing, Unsupported) as error:
            if self.records.keyring.key is None:
                raise
            text = f"this record of the log is passed over: {error.what}"
            passed.append(Finding(severity="warning", subject=key, text=text, hint=error.hint))
            return None

    async def _read(self, key: str, kind: type[R]) -> R:
        record = await self.records.read(key, kind)
        if record is None:
            raise ManifestInvalid("it was there a moment ago", operation="read log", subject=key)
        if not key.startswith(self._name_of(record)):
            raise ManifestInvalid("it belongs under another name", operation="read log", subject=key)
        return record

    def _name_of(self, record: Branch | Watermark | Gap) -> str:
        """Return the key of a record; of a watermark without the time."""
        whose = (self.system, self.target, self.lineage)
        if isinstance(record, Branch):
            return layout.history(*whose, record.name)
        if isinstance(record, Watermark):
            return layout.watermarks(*whose, record.branch) + layout.watermark(record.ends.offset)
        return layout.gaps(*whose, record.branch) + layout.gap(record.begins.offset, record.ends.offset)

    def _key_of_entry(self, entry: LogEntry) -> str:
        branch, segment, begins, ends = _place(entry)
        if branch != entry.begins.branch or (entry.segment and entry.segment.branch != branch):
            raise ValueError(f"{entry!r} lies on more than one branch")
        if segment is None:
            return layout.segments(self.system, self.target, self.lineage, branch) + layout.segment(begins, ends)
        return layout.slices(self.system, self.target, self.lineage, branch) + layout.slice_of(segment, begins, ends)

    def _broken(self, what: str) -> LineageBroken:
        return LineageBroken(what, operation="archive", subject=self.target, hint=ANOTHER)


def _place(entry: LogEntry) -> tuple[str, int | None, int, int]:
    segment = None if entry.segment is None else entry.segment.offset
    return entry.branch, segment, entry.begins.offset, entry.ends.offset


def _moved(recorded: Watermark | None, begins: Position, last: LogEntry) -> Watermark:
    """Return the watermark at the end of an entry; what was known before still holds where the entry says nothing."""
    latest, complete_at = last.latest, last.complete_at
    if recorded is not None:
        complete_at = complete_at or recorded.complete_at
        latest = latest and max(latest, recorded.latest or latest)
    return Watermark(begins=begins, ends=last.ends, latest=latest, complete_at=complete_at)


def _cut_short(key: str) -> ChecksumMismatch:
    return ChecksumMismatch("it ends within its head", operation="read log", subject=key)


def _same(stored: Sequence[bytes], data: Sequence[bytes | memoryview]) -> bool:
    return b"".join(stored) == b"".join(data)
