"""What covers a stretch of a log, found by the names of its entries alone and with as few lists as can be."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from operator import attrgetter
from typing import NamedTuple

from attrs import frozen

from resilience.concurrency import closing
from resilience.model.json import Offset
from resilience.model.log import LogEntry
from resilience.model.positions import Position
from resilience.primitives import ObjectStore

from . import layout


class Slice(NamedTuple):
    """What the name of a slice says."""

    begins: int
    ends: int
    segment: int


@frozen(kw_only=True)
class Finder:
    """Finds the entries of one branch, below the prefixes of its segments and its slices; see `Log.entries`.

    Whole segments never overlap, unless somebody added one: then those stay that are `proven`, where that can be told.
    """

    store: ObjectStore
    branch: str
    segments: str
    slices: str
    proven: Callable[[LogEntry], Awaitable[bool]] | None = None

    async def entries(self, begins: int, ends: int | None, *, known: int = 0) -> AsyncGenerator[LogEntry]:
        """Yield what covers a stretch.

        Without `ends` it looks up to `known` at least, and from there on until 4 GiB have no whole segment.
        """
        if ends is not None and ends <= begins:
            return
        at, aligned = begins, False  # whether `at` is known to be where a segment begins
        leading = await self._first_slice() if begins == 0 else None
        async with aclosing(self._segments(begins, ends, known)) as segments:
            async for entry in segments:
                if leading is not None:
                    at, leading = min(leading, entry.begins.offset), None
                async with aclosing(self._slices(at, entry.begins.offset, aligned=aligned)) as pieces:
                    async for piece in pieces:
                        yield piece
                yield entry
                at, aligned = entry.ends.offset, True
        async with aclosing(self._slices(at if leading is None else leading, ends, aligned=aligned)) as pieces:
            async for piece in pieces:
                yield piece

    async def sliced(self, begins: int, ends: int) -> AsyncGenerator[LogEntry]:
        """Yield the slices that cover a stretch which begins with a segment, up to the first hole."""
        async with aclosing(self._slices(begins, ends, aligned=True)) as pieces:
            async for piece in pieces:
                yield piece

    async def _segments(self, begins: int, ends: int | None, known: int) -> AsyncGenerator[LogEntry]:
        if ends is not None and ends - begins <= layout.LARGEST_SEGMENT:
            there = await self._settled([each async for each in self._whole(layout.segment_at(begins))])
            meant = [each for each in there if each.ends.offset >= ends]
            if meant:  # nothing else need be listed
                yield meant[0]
                return
        unbounded = ends is None and begins > 0
        listed = self._open_ended(begins, known) if unbounded else self._whole(*layout.highs(begins, ends))
        async with aclosing(self._undisputed(listed)) as entries:
            async for entry in entries:
                if begins < entry.ends.offset and (ends is None or entry.begins.offset < ends):
                    yield entry

    async def _open_ended(self, begins: int, known: int) -> AsyncGenerator[LogEntry]:
        high = surely = max(begins, known - 1) >> layout.HIGH
        prefixes, found = [*layout.highs(begins, high + 1 << layout.HIGH)], True
        while found:
            found = high == surely
            async with aclosing(self._whole(*prefixes)) as entries:
                async for entry in entries:
                    found = True
                    yield entry
            high += 1
            prefixes = [*layout.highs(high << layout.HIGH, high + 1 << layout.HIGH)]

    async def _whole(self, *prefixes: str) -> AsyncGenerator[LogEntry]:
        for prefix in prefixes:
            async with closing(self.store.list(self.segments + prefix)) as infos:
                async for info in infos:
                    if stretch := layout.stretch(info.key):
                        yield self._entry(*stretch)

    async def _undisputed(self, entries: AsyncGenerator[LogEntry]) -> AsyncGenerator[LogEntry]:
        group: list[LogEntry] = []
        reach = 0
        async with aclosing(entries):
            async for entry in entries:
                if group and entry.begins.offset >= reach:
                    for each in await self._settled(group):
                        yield each
                    group = []
                group.append(entry)
                reach = max(reach, entry.ends.offset)
        for each in await self._settled(group):
            yield each

    async def _settled(self, entries: list[LogEntry]) -> list[LogEntry]:
        """Return entries without those that overlap others and are not proven; the longest, which hide most, first."""
        if self.proven is None or len(entries) < 2:
            return entries
        left = list(entries)
        for each in sorted(entries, key=_length, reverse=True):
            if any(_overlap(each, other) for other in left if other is not each) and not await self.proven(each):
                left.remove(each)
        return left

    async def _slices(self, at: int, ends: int | None, *, aligned: bool) -> AsyncGenerator[LogEntry]:
        """Yield the longest slices from `at` on, up to the first hole or `ends`."""
        while ends is None or at < ends:
            chosen = await self._chain(at, ends, aligned=aligned)
            if not chosen:
                return
            for each in chosen:
                yield self._entry(*each)
            at, aligned = chosen[-1].ends, True

    async def _chain(self, at: int, ends: int | None, *, aligned: bool) -> list[Slice]:
        for within in [layout.slices_at(at)] if aligned else layout.slices_about(at):
            found = [each async for each in self._sliced(within)]
            if any(each.begins <= at <= each.ends for each in found):
                return longest(found, at, ends)
        return []

    async def _first_slice(self) -> int | None:
        async with closing(self._sliced("")) as found:
            async for each in found:
                return each.begins
        return None

    async def _sliced(self, within: str) -> AsyncGenerator[Slice]:
        async with closing(self.store.list(self.slices + within)) as infos:
            async for info in infos:
                if sliced := layout.sliced(info.key):
                    yield Slice(*sliced)

    def _entry(self, begins: int, ends: int, segment: int | None = None) -> LogEntry:
        return LogEntry(
            begins=_position(self.branch, begins),
            ends=_position(self.branch, ends),
            segment=None if segment is None else _position(self.branch, segment),
        )


def longest(slices: Iterable[Slice], at: int, ends: int | None) -> list[Slice]:
    """Choose slices that go on from `at` without a hole, up to `ends`: always the one that reaches furthest."""
    chosen: list[Slice] = []
    waiting, best = deque(sorted(slices)), Slice(at, at, at)
    while ends is None or at < ends:
        while waiting and waiting[0].begins <= at:
            best = max(best, waiting.popleft(), key=attrgetter("ends", "begins"))
        if best.ends <= at:
            break
        chosen.append(best)
        at = best.ends
    return chosen


def _length(entry: LogEntry) -> int:
    return entry.ends.offset - entry.begins.offset


def _overlap(one: LogEntry, other: LogEntry) -> bool:
    return one.begins.offset < other.ends.offset and other.begins.offset < one.ends.offset


def _position(branch: str, offset: int) -> Position:
    return Position(branch=branch, offset=Offset(offset), text=f"{offset:016X}")
