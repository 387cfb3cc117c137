"""What recovery asks for is given whole, or proven not to be there, or refused: a hole is never the end of the log."""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from attrs import define

from resilience import Archive
from resilience.archive import layout
from resilience.archive.log import ArchiveLog
from resilience.model.errors import ChecksumMismatch, LogGap, Unavailable, Unreachable, Unsupported
from resilience.model.log import Branch, Gap, LogEntry, Watermark
from resilience.model.moments import utc_now
from resilience.postgres.lsn import position
from resilience.postgres.wal.names import history_name, segment_name
from resilience.postgres.wal.source import WalSource
from resilience.primitives import ObjectInfo
from resilience.stores import MemoryStore
from resilience.testing.faults import Change, changed, flipped, gone

SIZE = 1 << 20
SYSTEM = {"system": "postgresql", "lineage": "7300000000000000001"}
HISTORY = "1\t0/500000\tno recovery target specified\n"


def whole(number: int, timeline: int = 1) -> LogEntry:
    """The segment `number`."""
    return LogEntry(begins=position(timeline, number * SIZE), ends=position(timeline, (number + 1) * SIZE))


def piece(number: int, begins: int, ends: int) -> LogEntry:
    """A slice of the segment `number`."""
    at = number * SIZE
    return LogEntry(begins=position(1, at + begins), ends=position(1, at + ends), segment=position(1, at))


def content(entry: LogEntry) -> bytes:
    """Bytes that differ from place to place."""
    begins, ends = entry.begins.offset, entry.ends.offset
    return array("Q", range(begins // 8, ends // 8 + 1)).tobytes()[: ends - begins]


def name(number: int, timeline: int = 1) -> str:
    return segment_name(timeline, number * SIZE, SIZE)


@asynccontextmanager
async def opened(*entries: LogEntry, store: MemoryStore | None = None) -> AsyncIterator[tuple[ArchiveLog, WalSource]]:
    """A log that has these entries, and its source."""
    archive = Archive(store or MemoryStore(), frame_size=1 << 18)
    async with archive.log("orders", **SYSTEM) as log:
        await log.record(Branch(name="1"))
        for entry in entries:
            await log.append(entry, [content(entry)])
        yield log, WalSource(log, SIZE)


async def fetched(source: WalSource, wanted: str) -> bytes | None:
    pieces = await source.fetch(wanted)
    return None if pieces is None else b"".join(pieces)


async def test_a_whole_segment_is_given_as_it_is() -> None:
    async with opened(whole(3), whole(4)) as (_, source):
        assert await fetched(source, name(4)) == content(whole(4))


async def test_slices_are_joined_and_the_rest_is_zeros() -> None:
    chain = [piece(3, 0, 1000), piece(3, 1000, 5000), piece(3, 5000, 5008)]
    async with opened(whole(2), *chain) as (_, source):
        given = await fetched(source, name(3))
        assert given == b"".join(map(content, chain)) + bytes(SIZE - 5008)


async def test_slices_that_overlap_are_joined_without_repeating_anything() -> None:
    async with opened(piece(3, 0, 1000), piece(3, 600, 4000), piece(3, 3992, 9000)) as (_, source):
        assert await fetched(source, name(3)) == content(piece(3, 0, 9000)) + bytes(SIZE - 9000)


async def test_slices_up_to_the_very_end_make_a_whole_segment() -> None:
    async with opened(piece(3, 0, 4000), piece(3, 4000, SIZE), whole(4)) as (_, source):
        assert await fetched(source, name(3)) == content(whole(3))


async def test_what_is_behind_the_end_is_absent() -> None:
    async with opened(whole(3), piece(4, 0, 800)) as (_, source):
        assert await source.fetch(name(5)) is None
        assert await source.fetch(name(50)) is None
    async with opened(whole(3)) as (_, source):
        assert await source.fetch(name(4)) is None


async def test_what_is_before_the_beginning_is_absent() -> None:
    async with opened(whole(3), whole(4)) as (_, source):
        assert await source.fetch(name(2)) is None
        assert await source.fetch(name(0)) is None


async def test_an_empty_log_and_another_timeline_have_nothing() -> None:
    async with opened() as (_, source):
        assert await source.fetch(name(3)) is None
    async with opened(whole(3), whole(4)) as (_, source):
        assert await source.fetch(name(3, timeline=2)) is None


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param([whole(3), whole(5)], id="a segment between segments"),
        pytest.param([whole(3), whole(9)], id="the first of several"),
        pytest.param([whole(3), piece(5, 0, 800)], id="before slices"),
        pytest.param([piece(3, 0, 800), whole(5)], id="after slices"),
        pytest.param([whole(3), piece(4, 0, 800), whole(5)], id="the end of a segment"),
        pytest.param([whole(3), piece(4, 800, SIZE), whole(5)], id="the beginning of a segment"),
    ],
)
async def test_a_hole_is_never_absence(entries: list[LogEntry]) -> None:
    async with opened(*entries) as (_, source):
        with pytest.raises(LogGap, match="goes on"):
            await source.fetch(name(4))


async def test_a_hole_in_the_open_segment_is_never_absence() -> None:
    async with opened(whole(3), piece(4, 0, 800), piece(4, 1000, 2000)) as (log, source):
        await log.record(Watermark(begins=position(1, 3 * SIZE), ends=position(1, 4 * SIZE + 2000)))
        with pytest.raises(LogGap, match="nothing from 0/400320 on"):
            await source.fetch(name(4))


async def test_a_hole_behind_what_is_needed_is_the_end() -> None:
    async with opened(piece(4, 0, 300), whole(6)) as (_, source):
        edge = 4 * SIZE + 300
        given = await source.fetch(name(4), enough=edge)
        assert given is not None
        assert b"".join(given) == content(piece(4, 0, 300)).ljust(SIZE, b"\0")
        assert await source.fetch(name(5), enough=edge) is None
        for asked, enough in ((4, edge + 1), (5, 5 * SIZE + 1)):
            with pytest.raises(LogGap):
                await source.fetch(name(asked), enough=enough)


async def test_a_gap_that_was_acknowledged_is_a_hole_all_the_same() -> None:
    async with opened(whole(3), whole(7)) as (log, source):
        gap = Gap(begins=position(1, 4 * SIZE), ends=position(1, 7 * SIZE), reason="slot lost", noted_at=utc_now())
        await log.record(gap)
        await log.record(Watermark(begins=position(1, 7 * SIZE), ends=position(1, 8 * SIZE)))
        for number in (4, 5, 6):
            with pytest.raises(LogGap):
                await source.fetch(name(number))
        assert await source.fetch(name(8)) is None
        assert await source.fetch(name(2)) is None


async def test_a_history_is_given_byte_for_byte() -> None:
    async with opened(whole(3)) as (log, source):
        assert await source.fetch(history_name(2)) is None
        await log.record(Branch(name="2", parent="1", forked_at=position(1, 5 * SIZE), text=HISTORY))
        assert await fetched(source, history_name(2)) == HISTORY.encode()
        assert await source.fetch(history_name(3)) is None
        assert await source.fetch(history_name(1)) is None


@pytest.mark.parametrize("asked", ["RECOVERYXLOG", "00000001", name(3) + ".partial", "0000000100000000FFFFFFFF"])
async def test_a_name_that_recovery_never_asks_for_is_not_called_absent(asked: str) -> None:
    async with opened(whole(3)) as (_, source):
        with pytest.raises(Unsupported):
            await source.fetch(asked)


async def test_a_damaged_segment_is_refused() -> None:
    async with opened(whole(3), whole(4)) as (log, source):
        prefix = layout.segments("postgresql", "orders", log.lineage, "1")
        key = prefix + layout.segment(3 * SIZE, 4 * SIZE)
        async with changed(log.store, key, flipped(-1)):
            with pytest.raises(ChecksumMismatch):
                await source.fetch(name(3))


@pytest.mark.parametrize("damage", [flipped(-1), flipped(9)], ids=["bytes", "head"])
async def test_a_damaged_segment_is_given_from_its_slices_where_they_hold_it(damage: Change) -> None:
    slices = [piece(4, 0, 304), piece(4, 304, 704), piece(4, 704, SIZE)]
    async with opened(whole(3), whole(4), *slices, whole(5)) as (log, source):
        segment = layout.segments("postgresql", "orders", log.lineage, "1") + layout.segment(4 * SIZE, 5 * SIZE)
        slice_ = layout.slices("postgresql", "orders", log.lineage, "1") + layout.slice_of(
            4 * SIZE, 4 * SIZE + 704, 5 * SIZE
        )
        async with changed(log.store, segment, damage):
            assert await fetched(source, name(4)) == content(whole(4))
            for without in (gone, flipped(-1)):
                async with changed(log.store, slice_, without):
                    with pytest.raises(ChecksumMismatch, match=segment):
                        await source.fetch(name(4))
            async with changed(log.store, slice_, gone):
                given = await source.fetch(name(4), enough=4 * SIZE + 704)
                assert given is not None
                assert b"".join(given) == content(piece(4, 0, 704)).ljust(SIZE, b"\0")
                with pytest.raises(ChecksumMismatch):
                    await source.fetch(name(4), enough=4 * SIZE + 705)


async def test_damage_behind_what_is_needed_is_the_end() -> None:
    async with opened(whole(3), whole(4)) as (log, source):
        key = layout.segments("postgresql", "orders", log.lineage, "1") + layout.segment(4 * SIZE, 5 * SIZE)
        async with changed(log.store, key, flipped(-1)):
            assert await source.fetch(name(4), enough=4 * SIZE) is None
            with pytest.raises(ChecksumMismatch):
                await source.fetch(name(4), enough=4 * SIZE + 1)


@define
class Down(MemoryStore):
    """A store that can be down, and counts how often it is asked to list."""

    down: bool = False
    lists: int = 0

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        self.lists += 1
        self._check()
        return super().list(prefix)

    def get(self, key: str, *, offset: int = 0):  # type: ignore[no-untyped-def]  # noqa: ANN201
        self._check()
        return super().get(key, offset=offset)

    def _check(self) -> None:
        if self.down:
            raise Unreachable("it is down", operation="get", subject="the store")


@pytest.mark.parametrize("asked", [name(3), name(4), history_name(2)])
async def test_an_outage_is_never_absence(asked: str) -> None:
    store = Down()
    async with opened(whole(3), store=store) as (_, source):
        store.down = True
        with pytest.raises(Unavailable):
            await source.fetch(asked)


async def test_a_hit_lists_nothing() -> None:
    store = Down()
    async with opened(whole(3), whole(4), store=store) as (_, source):
        store.lists = 0
        assert await source.fetch(name(3)) is not None
        assert store.lists == 0
