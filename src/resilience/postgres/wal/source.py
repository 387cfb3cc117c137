"""What a log answers when PostgreSQL asks for a file by its name (restore_command, PostgreSQL 26.3.4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import frozen

from resilience.concurrency import closing
from resilience.model.errors import Corrupt, LogGap, ObjectMissing, Unsupported
from resilience.model.log import LogEntry
from resilience.postgres.lsn import format_lsn, position
from resilience.primitives import Log

from .names import WalName, segment_name

ZEROS = bytes(1 << 20)


@frozen
class WalSource:
    """Gives the files that recovery asks for, out of the log of one lineage with segments of `segment_size` bytes."""

    log: Log
    segment_size: int

    async def fetch(self, name: str, *, enough: int | None = None) -> Sequence[bytes] | None:
        """Return the bytes of a segment or a history file, in order; None only if it is proven not to be there.

        The segment that was still being written is given as far as the log has it, then zeros. Raises LogGap if a
        segment is missing although the log of its timeline goes on behind it, Unsupported for any other name, and what
        `Log.read` raises. A segment that is damaged is given from its slices where they hold all of it. Whoever needs
        the log up to `enough` only (an LSN) is not told of holes and damage behind that: for him the log ends there.
        """
        try:
            wanted = WalName.parse(name, segment_size=self.segment_size)
        except ValueError as error:
            raise Unsupported(str(error), operation="fetch WAL", subject=name) from error
        if wanted.begins is not None:
            return await self._segment(wanted.timeline, wanted.begins, enough)
        if wanted.kind == "history":
            return await self._history(wanted.timeline)
        raise Unsupported("recovery asks for segments and histories only", operation="fetch WAL", subject=name)

    async def whole(self, name: str) -> Sequence[bytes] | None:
        """Return the bytes of a segment that was finished; None if the log has no such entry, whatever the reason.

        Raises ValueError if it is no segment's name, and what `Log.read` raises.
        """
        wanted = WalName.parse(name, segment_size=self.segment_size)
        if wanted.begins is None:
            raise ValueError(f"{name!r} names no segment")
        return await self._whole(wanted.timeline, wanted.begins)

    async def _whole(self, timeline: int, begins: int) -> Sequence[bytes] | None:
        ends = begins + self.segment_size
        try:
            return await self.log.read(LogEntry(begins=position(timeline, begins), ends=position(timeline, ends)))
        except ObjectMissing:
            return None

    async def _history(self, timeline: int) -> Sequence[bytes] | None:
        for branch in (await self.log.survey()).branches:
            if branch.name == str(timeline) and branch.text:
                return [branch.text.encode()]
        return None

    async def _segment(self, timeline: int, begins: int, enough: int | None) -> Sequence[bytes] | None:
        ends = begins + self.segment_size
        try:
            if (pieces := await self._whole(timeline, begins)) is not None:
                return pieces
        except Corrupt as damaged:
            return await self._instead(timeline, begins, ends if enough is None else min(ends, enough), damaged)
        chain = await self._entries(str(timeline), begins, ends)
        if _reached(chain, begins) < ends:
            known = min(ends, await self._known(str(timeline), begins, ends))
            if _reached(chain, begins) < known:  # the log may have grown meanwhile
                chain = await self._entries(str(timeline), begins, ends)
            needed = known if enough is None else min(known, enough)
            if _reached(chain, begins) < needed and (chain or await self._begun(str(timeline), begins)):
                raise LogGap(
                    f"the log of timeline {timeline} has nothing from {format_lsn(_reached(chain, begins))} on, but "
                    "goes on behind it",
                    operation="fetch WAL",
                    subject=segment_name(timeline, begins, self.segment_size),
                    hint="recovery cannot pass this hole: choose a moment before it, or a later base backup",
                )
        return await self._join(chain, begins, ends) if chain else None

    async def _instead(self, timeline: int, begins: int, needed: int, damaged: Corrupt) -> Sequence[bytes] | None:
        """Return a damaged segment from its slices, if they reach as far as it is needed; None if nothing is needed."""
        if needed <= begins:
            return None
        ends = begins + self.segment_size
        async with closing(self.log.slices(str(timeline), begins=begins, ends=ends)) as entries:
            chain = [entry async for entry in entries]
        if _reached(chain, begins) < needed:
            raise damaged
        try:
            return await self._join(chain, begins, ends)
        except Corrupt:
            raise damaged from None

    async def _entries(self, branch: str, begins: int, ends: int) -> list[LogEntry]:
        """Return the entries that together hold a segment from its beginning on, as far as there is no hole."""
        chain: list[LogEntry] = []
        at = begins
        async with closing(self.log.entries(branch, begins=begins, ends=ends)) as entries:
            async for entry in entries:
                if entry.begins.offset > at:
                    break
                chain.append(entry)
                at = entry.ends.offset
        return chain

    async def _known(self, branch: str, begins: int, ends: int) -> int:
        """Return up to where the log has anything after `begins`; `begins` if nothing."""
        watermark = await self.log.watermark(branch)
        reached = begins if watermark is None else max(begins, watermark.ends.offset)
        if reached < ends:  # a watermark ends at a hole, and the log may go on behind it
            async with closing(self.log.entries(branch, begins=ends)) as entries:
                async for entry in entries:
                    return entry.ends.offset
        return reached

    async def _begun(self, branch: str, begins: int) -> bool:
        """Tell whether the log of a branch has anything before `begins`."""
        watermark = await self.log.watermark(branch)
        if watermark is not None and watermark.begins.offset < begins:
            return True
        # A lone slice is only found by who looks right at it.
        for first in (max(0, begins - self.segment_size), 0):
            async with closing(self.log.entries(branch, begins=first, ends=begins)) as entries:
                async for _ in entries:
                    return True
        return False

    async def _join(self, chain: Sequence[LogEntry], begins: int, ends: int) -> Sequence[bytes]:
        pieces: list[bytes] = []
        at = begins
        for entry in chain:
            skip = at - entry.begins.offset
            for piece in await self.log.read(entry):
                pieces.append(piece[min(skip, len(piece)) :] if skip else piece)
                skip -= min(skip, len(piece))
            at = entry.ends.offset
        return [*pieces, *_zeros(ends - at)]


def _reached(chain: Sequence[LogEntry], begins: int) -> int:
    return chain[-1].ends.offset if chain else begins


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        yield ZEROS[:count]
        count -= len(ZEROS)
