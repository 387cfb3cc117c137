"""The log of an archive keeps what `Log` promises, over every store, and whatever is in it is found by few lists."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from resilience import Archive
from resilience.archive import layout
from resilience.archive.covering import Slice, longest
from resilience.archive.log import ArchiveLog
from resilience.model.log import Branch, LogEntry
from resilience.primitives import Archiver, Log, ObjectInfo
from resilience.stores import LocalStore, MemoryStore
from resilience.testing.faults import WatchedStore, change, flipped
from resilience.testing.log_entries import (
    FIRST,
    LINEAGE,
    covering,
    gap,
    numbers,
    opened,
    plain,
    reach,
    stretch,
    watermark,
    whole,
)
from resilience.testing.logs import LogSuite

from .faults import small_archive

WAL = 16 << 20
WHOSE = ("memory", "orders", LINEAGE)


class TestLogInMemory(LogSuite):
    @pytest.fixture
    def archive(self) -> Archiver:
        return small_archive(MemoryStore())

    def again(self, archive: Archiver) -> Archiver:
        assert isinstance(archive, Archive)
        return small_archive(archive.store)

    async def damage(self, archive: Archiver, entry: LogEntry) -> str:
        assert isinstance(archive, Archive)
        key = layout.segments(*WHOSE, "1") + layout.segment(entry.begins.offset, entry.ends.offset)
        await change(archive.store, key, flipped(-1))
        return key


class TestLogInADirectory(TestLogInMemory):
    cancel_step = 17

    @pytest.fixture
    def archive(self, tmp_path: Path) -> Archiver:
        return small_archive(LocalStore(tmp_path))


@define
class Counting(MemoryStore):
    """Counts what it is asked, and what it lists."""

    asked: list[str] = field(factory=list, init=False)
    listed: int = field(default=0, init=False)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        self.asked.append(prefix)
        async for info in super().list(prefix):
            self.listed += 1
            yield info

    def forget(self) -> None:
        self.asked.clear()
        self.listed = 0


async def name_segments(log: ArchiveLog, first: int, last: int) -> None:
    """Put objects where the segments of 16 MiB would lie; nobody reads them."""
    for number in range(first, last):
        key = layout.segment(number * WAL, (number + 1) * WAL)
        await log.store.put(layout.segments(*WHOSE, "1") + key, [b""])


async def name_slices(log: ArchiveLog, number: int, count: int) -> None:
    """Put objects where slices of a segment would lie, `count` one after the other."""
    for at in range(count):
        key = layout.slice_of(number * WAL, number * WAL + at, number * WAL + at + 1)
        await log.store.put(layout.slices(*WHOSE, "1") + key, [b""])


async def names(log: Log, begins: int, ends: int | None = None) -> list[tuple[int, int]]:
    return numbers(*[entry async for entry in log.entries("1", begins=begins, ends=ends)])


async def test_a_watermark_costs_the_same_however_long_the_log_is() -> None:
    store = Counting()
    last = stretch(2004 * WAL, 2004 * WAL + 5, segment=2004 * WAL)
    async with opened(small_archive(store), last) as log:
        assert isinstance(log, ArchiveLog)
        await name_segments(log, 0, 2004)
        await name_slices(log, 1000, 500)
        await log.record(watermark(0, 100 * WAL))
        await log.record(watermark(0, 1999 * WAL))
        store.forget()
        assert await reach(log) == (0, 2004 * WAL + 5)
        assert store.listed <= 256 + 5  # a folder of segments at most
        assert len(store.asked) <= 8
        await log.record(watermark(0, 2004 * WAL + 5))
        store.forget()
        assert await reach(log) == (0, 2004 * WAL + 5)
        assert store.listed <= 256 + 5
        assert len(store.asked) <= 8


@pytest.mark.parametrize("written", [0, 56], ids=["idle", "slow"])
def test_no_folder_gets_many_watermarks_however_long_a_server_is_idle(written: int) -> None:
    minutes = range(90 * 24 * 60)  # 90 days
    names = [
        layout.watermark((5 << 32) + 7 * WAL + minute * written) + layout.at_time(1_790_000_000_000 + minute * 60_000)
        for minute in minutes
    ]
    assert names == sorted(names, reverse=True)  # the newest is listed first
    assert [layout.until(names[minute]) for minute in (0, 99)] == [(5 << 32) + 7 * WAL + m * written for m in (0, 99)]
    folders: dict[str, set[str]] = {}
    for name in names:
        for at in range(len(parts := name.split("/"))):
            folders.setdefault("/".join(parts[:at]), set()).add(parts[at])
    assert max(map(len, folders.values())) <= (500 if written == 0 else 25_000)  # a fraction of a second to list


async def test_a_segment_is_found_by_one_list_and_its_absence_by_few() -> None:
    store = Counting()
    async with opened(small_archive(store)) as log:
        assert isinstance(log, ArchiveLog)
        await name_segments(log, 200, 300)
        await name_slices(log, 300, 9)
        store.forget()
        assert await names(log, 250 * WAL, 251 * WAL) == [(250 * WAL, 251 * WAL)]
        assert (len(store.asked), store.listed) == (1, 1)
        assert await names(log, 255 * WAL, 257 * WAL) == [(255 * WAL, 256 * WAL), (256 * WAL, 257 * WAL)]
        store.forget()
        assert len(await names(log, 300 * WAL, 301 * WAL)) == 9
        assert (len(store.asked), store.listed) == (4, 44 + 9)
        store.forget()
        assert await names(log, 301 * WAL, 302 * WAL) == []
        assert len(store.asked) <= 9
        store.forget()
        assert len(await names(log, 298 * WAL + 7)) == 11
        assert len(store.asked) <= 8


async def test_what_is_recorded_is_looked_for_behind_any_hole() -> None:
    border = 1 << 32
    there = [whole(1), stretch(9 * border, 9 * border + 8), stretch(20 * border, 20 * border + 8)]
    async with opened(small_archive(), *there) as log:
        assert await covering(log) == numbers(*there)
        assert await covering(log, 1) == numbers(there[0])  # nobody has said that there is more
        await log.record(gap(there[0].ends.offset, 9 * border))
        assert await covering(log, 1) == numbers(*there[:2])
        await log.record(watermark(20 * border, 20 * border + 8))
        assert await covering(log, 1) == numbers(*there)


async def test_objects_with_names_of_their_own_are_passed_over() -> None:
    store = MemoryStore()
    async with opened(small_archive(store), whole(1)) as log:
        zeros = "0" * 16
        stray = [
            "note",
            f"{zeros}-{zeros}.zst",
            f"note/{zeros}-{zeros}.zst",
            "00000000/note.zst",
            f"{zeros}/{zeros}-1.zst",
        ]
        for prefix in (layout.segments(*WHOSE, "1"), layout.slices(*WHOSE, "1"), layout.watermarks(*WHOSE, "1")):
            for name in stray:
                await store.put(prefix + name, [b"not ours"])
        assert await covering(log) == numbers(whole(1))
        assert await covering(log, 1) == numbers(whole(1))
        assert await reach(log) == numbers(whole(1))[0]


@pytest.mark.parametrize("megabytes", [1, 16, 64, 1024])
async def test_slices_are_found_from_anywhere_in_their_segment(megabytes: int) -> None:
    size = megabytes << 20
    async with opened(small_archive()) as log:
        assert isinstance(log, ArchiveLog)
        for segment in (0, 3 * size, (5 << 32) - size, 5 << 32):
            cuts = [segment, segment + 1, segment + size // 3, segment + size - 1, segment + size]
            for begins, ends in pairwise(cuts):
                await log.store.put(layout.slices(*WHOSE, "1") + layout.slice_of(segment, begins, ends), [b""])
            for begins, ends in pairwise(cuts):
                for at in (begins, (begins + ends) // 2, ends - 1):
                    assert await names(log, at, at + 1) == [(begins, ends)]


@pytest.mark.parametrize(
    ("segment", "begins", "ends"),
    [
        (8, 7, 10),
        (8, 9, 9),
        (8, 10, 9),
        (-8, -8, 0),
        (WAL, WAL, 2 * WAL + 1),
        (0, 0, (1 << 30) + 1),
        (WAL - 8, WAL - 8, WAL + 1),
        (3 << 30, 3 << 30, (4 << 30) + 1),
        ((1 << 64) - 8, (1 << 64) - 8, 1 << 64),
    ],
)
def test_a_segment_that_could_not_be_found_again_is_refused(segment: int, begins: int, ends: int) -> None:
    with pytest.raises(ValueError, match="no segment"):
        layout.slice_of(segment, begins, ends)


def test_thousands_of_slices_are_chosen_from_at_once() -> None:
    slices = [Slice(at, at + length, 0) for at in range(20_000) for length in (1, 2)]
    assert longest(slices, 0, None) == [Slice(at, at + 2, 0) for at in range(0, 19_999, 2)] + [Slice(19_999, 20_001, 0)]


@given(first=st.integers(0, 1 << 40), count=st.integers(0, 1 << 18))
@settings(deadline=None)
def test_the_folders_of_a_stretch_are_listed_exactly_and_in_order(first: int, count: int) -> None:
    first %= 1 << 32
    last = min(first + count, (1 << 32) - 1)
    prefixes = list(layout.highs(first << 32, (last + 1) << 32))
    covered = [(int(each.ljust(8, "0"), 16), int(each.ljust(8, "F"), 16)) for each in prefixes]
    assert covered[0][0] == first
    assert covered[-1][1] == last
    assert all(before[1] + 1 == after[0] for before, after in pairwise(covered))
    assert len(prefixes) <= 2 * 15 * 5


PART = 8  # bytes of a segment in the model
BASES = [0, PART, (1 << 24) - 3 * PART, (1 << 32) - 3 * PART, 7 << 32]
small = st.integers(0, 7 * PART)


@st.composite
def slices(draw: st.DrawFn) -> tuple[int, int, int]:
    segment = draw(st.integers(0, 6)) * PART
    begins, ends = sorted(draw(st.lists(st.integers(segment, segment + PART), min_size=2, max_size=2, unique=True)))
    return segment, begins, ends


def modelled(entries: Sequence[LogEntry], begins: int, ends: int | None) -> list[tuple[int, int]]:
    """Return what covers a stretch, slowly."""
    until = 1 << 62 if ends is None else ends
    if until <= begins:
        return []
    wholes = sorted(
        each for each in numbers(*(e for e in entries if e.segment is None)) if each[1] > begins and each[0] < until
    )
    cut = numbers(*(e for e in entries if e.segment is not None))
    at, found = begins, []
    if begins == 0:
        at = min([each[0] for each in [*wholes, *cut]], default=0)
    for segment in [*wholes, (until, until)]:
        while at < segment[0] and (fitting := [each for each in cut if each[0] <= at < each[1]]):
            found.append(max(fitting, key=lambda each: (each[1], each[0])))
            at = found[-1][1]
        found.append(segment)
        at = segment[1]
    return found[:-1]


def modelled_watermark(
    entries: Sequence[LogEntry], recorded: tuple[int, int] | None, gaps: set[tuple[int, int]]
) -> tuple[int, int] | None:
    """Return how far a log is durable, byte by byte."""
    durable = {at for begins, ends in numbers(*entries) for at in range(begins, ends)}
    if recorded is None and not durable:
        return None
    begins, at = recorded or (min(durable), min(durable))
    while at in durable:
        at += 1
    for lost, again in sorted(gaps):
        if lost <= at < again and again in durable:
            begins = at = again
            while at in durable:
                at += 1
    return begins, at


@given(
    base=st.sampled_from(BASES),
    whole_ones=st.sets(st.integers(0, 6), max_size=5),
    cut_ones=st.sets(slices(), max_size=12),
    recorded=st.none() | small,
    gaps=st.sets(st.tuples(small, small).filter(lambda each: each[0] < each[1]), max_size=3),
    asked=st.lists(st.tuples(small, small | st.none()), min_size=3, max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_any_log_is_covered_as_a_simple_model_says(
    base: int,
    whole_ones: set[int],
    cut_ones: set[tuple[int, int, int]],
    recorded: int | None,
    gaps: set[tuple[int, int]],
    asked: list[tuple[int, int | None]],
) -> None:
    entries = [stretch(base + number * PART, base + (number + 1) * PART) for number in whole_ones]
    entries += [stretch(base + begins, base + ends, segment=base + segment) for segment, begins, ends in cut_ones]

    async def compare() -> None:
        async with small_archive().log("orders", system="memory", lineage=LINEAGE) as log:
            await log.record(FIRST)
            for entry in entries:
                assert await log.append(entry, [plain(entry)])
            for begins, ends in asked:
                for first in {0, base + begins}:
                    last = None if ends is None else base + ends
                    assert await names(log, first, last) == modelled(entries, first, last)
            acknowledged = {(base + begins, base + ends) for begins, ends in gaps}
            for each in acknowledged:
                await log.record(gap(*each))
            stands = None if recorded is None else (base, base + recorded)
            if stands is not None:
                await log.record(watermark(*stands))
            assert await reach(log) == modelled_watermark(entries, stands, acknowledged)

    asyncio.run(compare())


async def test_a_branch_is_looked_for_once() -> None:
    stats: list[str] = []

    async def note(operation: str, key: str) -> None:
        if operation == "stat":
            stats.append(key)

    async with opened(small_archive(WatchedStore(MemoryStore(), note)), whole(1), whole(2)) as log:
        await log.append(whole(3), [plain(whole(3))])
        assert len(stats) == len(set(stats)) == 2  # the target's name, and the branch
        await log.record(Branch(name="2"))
        await log.append(whole(3, "2"), [plain(whole(3, "2"))])
        assert len(stats) == len(set(stats)) == 3
