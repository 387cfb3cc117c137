"""The log of one lineage in a store; docs/archive-format.md specifies what it writes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from datetime import datetime
from typing import TypeVar

from attrs import define, evolve, field

from resilience.concurrency import closing, in_order, in_thread
from resilience.model.errors import AlreadyExists, ChecksumMismatch, LineageBroken, ManifestInvalid, ObjectMissing
from resilience.model.json import Offset
from resilience.model.log import Branch, Gap, LogEntry, LogFacts, Watermark
from resilience.model.positions import Position
from resilience.primitives import ObjectStore
from resilience.streams.frames import Compressor, Cutter

from . import layout
from .entries import Head, head_of, open_up, seal
from .envelope import unwrap, wrap
from .reading import whole

T = TypeVar("T")

FRAMES_AHEAD = 8
LARGEST_SEGMENT = 1 << 30
"""PostgreSQL's largest segment; an entry that covers a position begins no further before it."""


@define(kw_only=True)
class ArchiveLog:
    """One lineage's log; see `primitives.Log`."""

    store: ObjectStore
    target: str
    system: str
    lineage: str
    pool: Executor = field(repr=False)
    compressor: Compressor = field(repr=False)
    frame_size: int
    clock: Callable[[], datetime] = field(repr=False)
    register: Callable[[], Awaitable[None]] = field(repr=False)
    _registered: bool = field(default=False, init=False)

    async def record(self, record: Branch | Watermark | Gap) -> None:
        """Write a record; see `Log.record`. Raises LineageBroken if a branch is recorded otherwise."""
        key = self._key_of(record)
        await self._register()
        try:
            await self.store.put(key, [wrap(record)])
        except AlreadyExists:
            if isinstance(record, Branch) and await self._read(key, Branch) != record:
                raise LineageBroken(
                    f"branch {record.name} is recorded with another history",
                    operation="archive",
                    subject=self.target,
                    hint="another server of this lineage writes here: give one of them a name of its own",
                ) from None

    async def append(self, entry: LogEntry, data: Sequence[bytes | memoryview]) -> bool:
        """Store an entry durably; see `Log.append`. Cancelled: it is there whole, or not at all."""
        if (size := sum(map(len, data))) != entry.size:
            raise ValueError(f"an entry of {entry.size} bytes was given {size}")
        await self._register()
        cutter = Cutter(self.frame_size)
        compressed = in_order(_cut(data, cutter), self.compressor, pool=self.pool, ahead=FRAMES_AHEAD)
        async with aclosing(compressed) as items:
            frames = [frame async for frame in items]
        head = await in_thread(seal, entry, frames, self.frame_size)
        try:
            await self.store.put(self._key_of_entry(entry), [head, *frames])
        except AlreadyExists:
            if await in_thread(_same, await self.read(entry), data):
                return False
            raise LineageBroken(
                f"{entry} is in the archive with other bytes",
                operation="archive",
                subject=self.target,
                hint="another server of this lineage writes here: give one of them a name of its own",
            ) from None
        return True

    async def keep(self, name: str, data: bytes) -> None:
        """Store a small file; see `Log.keep`. Raises LineageBroken if one of that name has other content."""
        key = layout.file(self.system, self.target, self.lineage, name)
        await self._register()
        frame = await in_thread(self.compressor, [data])
        try:
            await self.store.put(key, [frame])
        except AlreadyExists:
            if await whole(self.store, key) != frame:
                raise LineageBroken(
                    f"{name} is in the archive with other bytes", operation="archive", subject=self.target
                ) from None

    async def survey(self) -> LogFacts:
        """Return the branches, how far each is durable, and the gaps that were acknowledged."""
        prefix = layout.histories(self.system, self.target, self.lineage)
        branches = [await self._read(info.key, Branch) async for info in self.store.list(prefix)]
        branches.sort(key=lambda branch: (len(branch.name), branch.name))
        watermarks = [await self.watermark(branch.name) for branch in branches]
        gaps = layout.gaps(self.system, self.target, self.lineage)
        return LogFacts(
            lineage=self.lineage,
            branches=tuple(branches),
            watermarks=tuple(watermark for watermark in watermarks if watermark is not None),
            gaps=tuple([await self._read(info.key, Gap) async for info in self.store.list(gaps)]),
        )

    async def watermark(self, branch: str) -> Watermark | None:
        """Return how far a branch is durable; None if nothing of it is.

        The newest record is the first one listed; what was appended after it is found from there.
        """
        recorded = await self._recorded(branch)
        run, last = recorded, None
        async with closing(self.entries(branch, begins=recorded.ends.offset if recorded else 0)) as entries:
            async for entry in entries:
                if run is None or entry.begins.offset > run.ends.offset:
                    if recorded is not None:
                        break  # a hole, which nobody has acknowledged
                    run, last = Watermark(begins=entry.begins, ends=entry.ends), entry
                elif entry.ends.offset > run.ends.offset:
                    run, last = evolve(run, ends=entry.ends), entry
        if run is None or last is None:
            return run
        described = await self.describe(last)
        begins = run.begins if recorded else (await self.describe(await self._first(branch, run.begins))).begins
        return Watermark(begins=begins, ends=described.ends, latest=described.latest, complete_at=described.complete_at)

    async def entries(self, branch: str, *, begins: int = 0, ends: int | None = None) -> AsyncGenerator[LogEntry]:
        """Yield what covers a stretch; see `Log.entries`."""
        at = begins
        aligned = False  # whether `at` is known to be where a segment begins
        async with closing(self._segments(branch, begins, ends)) as segments:
            async for entry in segments:
                if entry.begins.offset > at:
                    async for piece in self._slices(branch, at, entry.begins.offset, aligned=aligned):
                        yield piece
                yield entry
                at, aligned = entry.ends.offset, True
        if ends is None or at < ends:
            async for piece in self._slices(branch, at, ends, aligned=aligned):
                yield piece

    async def read(self, entry: LogEntry) -> Sequence[bytes]:
        """Return an entry's bytes in verified pieces; see `Log.read`."""
        key = self._key_of_entry(entry)
        data = await whole(self.store, key)
        if data is None:
            raise ObjectMissing("there is no such entry", operation="read log", subject=key)
        head, length = _headed(data, key)
        _belongs(head, entry, key)
        return await in_thread(open_up, head, memoryview(data)[length:], key)

    async def describe(self, entry: LogEntry) -> LogEntry:
        """Return an entry with all that its head says; see `Log.describe`."""
        key = self._key_of_entry(entry)
        data = bytearray()
        async with self.store.get(key) as chunks:
            async for chunk in chunks:
                data += chunk
                if (found := head_of(data, key)) is not None:
                    _belongs(found[0], entry, key)
                    return found[0].entry
        raise ChecksumMismatch("it ends within its head", operation="read log", subject=key)

    async def _recorded(self, branch: str) -> Watermark | None:
        prefix = layout.watermarks(self.system, self.target, self.lineage, branch)
        async with closing(self.store.list(prefix)) as infos:
            async for info in infos:
                return await self._read(info.key, Watermark)
        return None

    async def _first(self, branch: str, begins: Position) -> LogEntry:
        async with closing(self.entries(branch, begins=begins.offset)) as entries:
            return await anext(aiter(entries))

    async def _segments(self, branch: str, begins: int, ends: int | None) -> AsyncGenerator[LogEntry]:
        prefix = layout.segments(self.system, self.target, self.lineage, branch)
        within = "" if ends is None else _shared(begins, ends)
        async with closing(self.store.list(prefix + within)) as infos:
            async for info in infos:
                entry = _entry(branch, *layout.stretch(info.key))
                if ends is not None and entry.begins.offset >= ends:
                    return
                if entry.ends.offset > begins:
                    yield entry

    async def _slices(self, branch: str, begins: int, ends: int | None, *, aligned: bool) -> AsyncGenerator[LogEntry]:
        """Yield the longest slices from `begins` on, up to the first hole or `ends`."""
        at = begins
        while ends is None or at < ends:
            found = await self._sliced(branch, at, aligned=aligned)
            if not found:
                return
            for entry in found:
                yield entry
            at, aligned = found[-1].ends.offset, True

    async def _sliced(self, branch: str, begins: int, *, aligned: bool) -> list[LogEntry]:
        """Return the slices of one segment that go on from `begins`, always the longest that fits."""
        prefix = layout.slices(self.system, self.target, self.lineage, branch)
        within = f"{begins:016X}/" if aligned else _shared(begins, begins + 1).rpartition("/")[2]
        candidates = []
        async with closing(self.store.list(prefix + within)) as infos:
            async for info in infos:
                segment = int(info.key.removeprefix(prefix).partition("/")[0], 16)
                candidates.append(_entry(branch, *layout.stretch(info.key), segment=segment))
        chosen: list[LogEntry] = []
        at = begins
        while fitting := [each for each in candidates if each.begins.offset <= at < each.ends.offset]:
            chosen.append(max(fitting, key=lambda each: each.ends.offset))
            at = chosen[-1].ends.offset
        return chosen

    async def _register(self) -> None:
        if not self._registered:
            await self.register()
            self._registered = True

    async def _read(self, key: str, kind: type[T]) -> T:
        data = await whole(self.store, key)
        if data is None:
            raise ManifestInvalid("it was there a moment ago", operation="read log", subject=key)
        return unwrap(data, key, kind)

    def _key_of(self, record: Branch | Watermark | Gap) -> str:
        if isinstance(record, Branch):
            return layout.history(self.system, self.target, self.lineage, record.name)
        if isinstance(record, Watermark):
            prefix = layout.watermarks(self.system, self.target, self.lineage, record.branch)
            return prefix + layout.watermark(record.ends.offset, int(self.clock().timestamp() * 1000))
        prefix = layout.gaps(self.system, self.target, self.lineage)
        return f"{prefix}{record.branch}/{layout.between(record.begins.offset, record.ends.offset)}.json"

    def _key_of_entry(self, entry: LogEntry) -> str:
        begins, ends = entry.begins.offset, entry.ends.offset
        if entry.segment is None:
            prefix = layout.segments(self.system, self.target, self.lineage, entry.branch)
            return prefix + layout.segment(begins, ends)
        prefix = layout.slices(self.system, self.target, self.lineage, entry.branch)
        return prefix + layout.slice_of(entry.segment.offset, begins, ends)


def _entry(branch: str, begins: int, ends: int, *, segment: int | None = None) -> LogEntry:
    return LogEntry(
        begins=_position(branch, begins),
        ends=_position(branch, ends),
        segment=None if segment is None else _position(branch, segment),
    )


def _position(branch: str, offset: int) -> Position:
    return Position(branch=branch, offset=Offset(offset), text=f"{offset:016X}")


def _shared(begins: int, ends: int) -> str:
    """Return what the names of all segments that may cover a stretch have in common."""
    first, last = max(0, begins - LARGEST_SEGMENT), ends - 1
    if first >> 32 != last >> 32:
        return ""
    digits = f"{first:016X}"
    while digits and not f"{last:016X}".startswith(digits):
        digits = digits[:-1]
    return f"{first >> 32:08X}/{digits}"


async def _cut(data: Sequence[bytes | memoryview], cutter: Cutter) -> AsyncIterator[Sequence[bytes | memoryview]]:
    for piece in data:
        for frame in cutter.feed(piece):
            yield frame
    for frame in cutter.finish():
        yield frame


def _headed(data: bytes, key: str) -> tuple[Head, int]:
    found = head_of(data, key)
    if found is None:
        raise ChecksumMismatch("it ends within its head", operation="read log", subject=key)
    return found


def _belongs(head: Head, entry: LogEntry, key: str) -> None:
    named = (entry.branch, entry.begins.offset, entry.ends.offset)
    if (head.ends.branch, head.begins.offset, head.ends.offset) != named:
        raise ChecksumMismatch("it belongs under another name", operation="read log", subject=key)


def _same(stored: Sequence[bytes], data: Sequence[bytes | memoryview]) -> bool:
    return b"".join(stored) == b"".join(data)
