"""Entries and records to try a log with, and short ways to write and to read them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from resilience.concurrency import closing
from resilience.model.json import Offset
from resilience.model.log import Branch, Gap, LogEntry, Watermark
from resilience.model.positions import Position
from resilience.primitives import Archiver, Log

from .stores import content

LINEAGE = "7400000000000000001"
SIZE = 4096
"""Bytes of a whole segment."""
MOMENT = datetime(2026, 11, 21, 20, 30, tzinfo=UTC)
FIRST = Branch(name="1")
_BYTES = content(1 << 16, 9) * 2


def here(offset: int, branch: str = "1") -> Position:
    """Make a position, written as no log would."""
    return Position(branch=branch, offset=Offset(offset), text=f"#{offset}")


def whole(number: int, branch: str = "1") -> LogEntry:
    """Make the entry for the segment of that number, written so many minutes after MOMENT."""
    return stretch(number * SIZE, (number + 1) * SIZE, branch=branch)


def stretch(begins: int, ends: int, *, segment: int | None = None, branch: str = "1") -> LogEntry:
    """Make an entry; a slice if it is told where its segment begins."""
    time = MOMENT + timedelta(minutes=ends / SIZE)
    return LogEntry(
        begins=here(begins, branch),
        ends=here(ends, branch),
        segment=None if segment is None else here(segment, branch),
        latest=time,
        complete_at=time - timedelta(seconds=1),
    )


def piece(number: int, begins: int, ends: int, branch: str = "1") -> LogEntry:
    """Make a slice of the segment of that number."""
    at = number * SIZE
    return stretch(at + begins, at + ends, segment=at, branch=branch)


def plain(entry: LogEntry) -> bytes:
    """Return the bytes that belong between an entry's ends; entries that overlap agree about them."""
    begins = entry.begins.offset % (len(_BYTES) // 2)
    return _BYTES[begins : begins + entry.size]


def watermark(begins: int, ends: int, branch: str = "1", complete_at: datetime | None = None) -> Watermark:
    """Make a watermark."""
    return Watermark(begins=here(begins, branch), ends=here(ends, branch), complete_at=complete_at)


def gap(begins: int, ends: int, branch: str = "1") -> Gap:
    """Make an acknowledged gap."""
    return Gap(begins=here(begins, branch), ends=here(ends, branch), reason="a slot was lost", noted_at=MOMENT)


@asynccontextmanager
async def opened(archive: Archiver, *entries: LogEntry, lineage: str = LINEAGE) -> AsyncGenerator[Log]:
    """Open a log, record the entries' branches and append them."""
    async with archive.log("orders", system="memory", lineage=lineage) as log:
        for branch in dict.fromkeys(entry.branch for entry in entries):
            await log.record(Branch(name=branch))
        for entry in entries:
            assert await log.append(entry, [plain(entry)])
        yield log


async def covering(log: Log, begins: int = 0, ends: int | None = None, branch: str = "1") -> list[tuple[int, int]]:
    """Return the ends of the entries that cover a stretch, having read each of them."""
    found = []
    async with closing(log.entries(branch, begins=begins, ends=ends)) as entries:
        async for entry in entries:
            assert await joined(log, entry) == plain(entry)
            found.append((int(entry.begins.offset), int(entry.ends.offset)))
    return found


async def joined(log: Log, entry: LogEntry) -> bytes:
    """Read an entry at once."""
    return b"".join(await log.read(entry))


async def reach(log: Log, branch: str = "1") -> tuple[int, int] | None:
    """Return the ends of a branch's watermark."""
    found = await log.watermark(branch)
    return None if found is None else (int(found.begins.offset), int(found.ends.offset))


def numbers(*entries: LogEntry) -> list[tuple[int, int]]:
    """Return the ends of entries."""
    return [(int(entry.begins.offset), int(entry.ends.offset)) for entry in entries]
