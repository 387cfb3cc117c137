"""The conformance suite of logs: what `primitives.Log` promises, one test a promise."""

# ruff: noqa: D102  # the names of the tests are the promises

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import ClassVar

import pytest
from attrs import evolve

from resilience.concurrency import closing
from resilience.model.errors import Corrupt, LineageBroken, ObjectMissing
from resilience.model.log import Branch, LogEntry, Watermark
from resilience.primitives import Archiver

from .cancellation import cancellations, nothing_left_running
from .log_entries import (
    FIRST,
    LINEAGE,
    MOMENT,
    SIZE,
    covering,
    gap,
    here,
    joined,
    numbers,
    opened,
    piece,
    plain,
    reach,
    stretch,
    watermark,
    whole,
)


class LogSuite:
    """Subclass it, override the fixture `archive` and the methods below it, and pytest proves every promise of `Log`.

    `archive` is empty, and keeps logs of the system `memory`. It cuts an entry of some thousand bytes into several
    frames, if it cuts at all. `cancel_step` skips await points where cancelling at each of them takes too long.
    """

    cancel_step: ClassVar[int] = 1

    @pytest.fixture
    def archive(self) -> Archiver:
        """Make an empty archive."""
        raise NotImplementedError("override the fixture `archive`")

    def again(self, archive: Archiver) -> Archiver:
        """Return another handle to the same logs; the same handle where there can be no other."""
        return archive

    async def damage(self, archive: Archiver, entry: LogEntry) -> str:
        """Change a byte near the end of a stored entry, and return what an error has to name."""
        raise NotImplementedError("override `damage`")

    async def test_an_empty_log_has_nothing(self, archive: Archiver) -> None:
        async with opened(archive) as log:
            assert log.lineage == LINEAGE
            assert await reach(log) is None
            assert await covering(log) == []
            facts = await log.survey()
        assert (facts.lineage, facts.branches, facts.watermarks, facts.gaps) == (LINEAGE, (), (), ())
        assert await archive.lineages("orders") == ()

    @pytest.mark.parametrize("size", [1, 699, 700, 701, 1400, SIZE])
    @pytest.mark.parametrize("pieces", [1, 700, SIZE])
    async def test_what_is_appended_is_read_back(self, archive: Archiver, size: int, pieces: int) -> None:
        entry = stretch(0, size)
        data = memoryview(plain(entry))
        async with nothing_left_running():
            async with opened(archive) as log:
                await log.record(FIRST)
                assert await log.append(entry, [data[at : at + pieces] for at in range(0, size, pieces)])
            async with opened(self.again(archive)) as log:
                assert await joined(log, entry) == data
                assert await covering(log) == [(0, size)]

    async def test_the_same_again_is_not_new(self, archive: Archiver) -> None:
        for entry in (whole(3), piece(4, 0, 100)):
            async with opened(archive, entry) as log, opened(self.again(archive)) as other:
                for each in (log, other):
                    assert not await each.append(entry, [plain(entry)])
                    assert await joined(each, entry) == plain(entry)

    async def test_other_bytes_at_the_same_place_are_refused_and_change_nothing(self, archive: Archiver) -> None:
        for entry in (whole(3), piece(4, 0, 100)):
            async with opened(archive, entry), opened(self.again(archive)) as other:
                with pytest.raises(LineageBroken, match="orders"):
                    await other.append(entry, [plain(entry)[::-1]])
                assert await joined(other, entry) == plain(entry)
                assert await reach(other) == (3 * SIZE, entry.ends.offset)

    async def test_the_slices_of_a_segment_are_found_beside_it_whole_up_to_their_first_hole(
        self, archive: Archiver
    ) -> None:
        parts = [piece(4, 0, 100), piece(4, 0, 40), piece(4, 100, 250), piece(4, 300, 400)]
        async with opened(archive, *parts, whole(4), whole(5)) as log:
            for end, covered in ((5 * SIZE, [100, 250]), (4 * SIZE + 60, [100])):
                found = [entry async for entry in log.slices("1", begins=4 * SIZE, ends=end)]
                assert [entry.ends.offset - 4 * SIZE for entry in found] == covered
            assert [entry async for entry in log.slices("1", begins=5 * SIZE, ends=6 * SIZE)] == []

    async def test_an_entry_that_is_not_what_it_says_is_misuse(self, archive: Archiver) -> None:
        async with opened(archive) as log:
            await log.record(FIRST)
            for size in (0, SIZE - 1, SIZE + 1):
                with pytest.raises(ValueError, match=str(SIZE)):
                    await log.append(whole(0), [bytes(size)])
            for entry, data in (
                (stretch(10, 10), b""),
                (stretch(10, 20, segment=11), bytes(10)),
                (evolve(stretch(10, 20), begins=here(10, "2")), bytes(10)),
                (stretch(10, 20, branch="2"), bytes(10)),  # not recorded
            ):
                with pytest.raises(ValueError, match=r"segment|branch"):
                    await log.append(entry, [data])
            assert await covering(log) == []

    async def test_appending_cancelled_anywhere_leaves_the_entry_whole_or_absent(self, archive: Archiver) -> None:
        async def append(number: int) -> None:
            async with opened(archive, whole(number)):
                pass

        async with nothing_left_running():
            for number, attempt in enumerate(cancellations(step=self.cancel_step), 1):
                completed = await attempt(append(number))
                async with opened(self.again(archive)) as log:
                    there = await covering(log, number * SIZE, (number + 1) * SIZE)
                    assert there or not completed
                    await log.record(FIRST)
                    assert await log.append(whole(number), [plain(whole(number))]) != bool(there)
                    assert await joined(log, whole(number)) == plain(whole(number))

    async def test_of_the_same_entry_appended_twice_at_once_one_is_new(self, archive: Archiver) -> None:
        async with opened(archive, whole(0)) as log, opened(self.again(archive)) as other:
            ends = await asyncio.gather(*(each.append(whole(1), [plain(whole(1))]) for each in (log, other, log)))
            assert sorted(ends) == [False, False, True]
            assert await joined(log, whole(1)) == plain(whole(1))

    async def test_of_two_entries_at_one_place_at_once_one_is_refused(self, archive: Archiver) -> None:
        data = [plain(whole(1)), plain(whole(1))[::-1]]
        async with opened(archive, whole(0)) as log, opened(self.again(archive)) as other:
            ends = await asyncio.gather(
                log.append(whole(1), [data[0]]), other.append(whole(1), [data[1]]), return_exceptions=True
            )
            assert sorted(type(end).__name__ for end in ends) == ["LineageBroken", "bool"]
            assert await joined(log, whole(1)) == data[isinstance(ends[0], LineageBroken)]

    async def test_a_branch_is_recorded_once_and_may_be_recorded_again(self, archive: Archiver) -> None:
        second = Branch(name="2", parent="1", forked_at=here(5000), text="1\t#5000\twhy\n")
        async with opened(archive) as log, opened(self.again(archive)) as other:
            await asyncio.gather(log.record(second), other.record(second))
            await other.record(FIRST)
            await log.record(second)
            for wrong in (evolve(second, text=""), evolve(second, parent="3"), evolve(second, forked_at=here(5001))):
                with pytest.raises(LineageBroken, match="branch 2"):
                    await other.record(wrong)
            assert (await log.survey()).branches == (FIRST, second)

    async def test_recording_cancelled_anywhere_leaves_the_record_whole_or_absent(self, archive: Archiver) -> None:
        async def record(branch: Branch) -> None:
            async with opened(archive) as log:
                await log.record(branch)

        async with nothing_left_running():
            for number, attempt in enumerate(cancellations(step=self.cancel_step), 1):
                completed = await attempt(record(Branch(name=str(number))))
                async with opened(archive) as log:
                    there = Branch(name=str(number)) in (await log.survey()).branches
                assert there or not completed

    async def test_a_survey_says_what_is_recorded_and_how_far_each_branch_reaches(self, archive: Archiver) -> None:
        names = ["1", "2", "10"]
        async with opened(archive, *(whole(int(name), name) for name in reversed(names))) as log:
            await log.record(gap(5000, 6000, "2"))
            await log.record(gap(5000, 6000, "2"))
            facts = await log.survey()
            assert [branch.name for branch in facts.branches] == names
            assert [each.branch for each in facts.watermarks] == names
            assert numbers(*(whole(int(name)) for name in names)) == [
                (each.begins.offset, each.ends.offset) for each in facts.watermarks
            ]
            assert facts.gaps == (gap(5000, 6000, "2"),)

    async def test_logs_of_other_lineages_are_apart(self, archive: Archiver) -> None:
        async with opened(archive, whole(1)) as log, opened(archive, whole(2), lineage="7400000000000000002") as other:
            assert await covering(log) == numbers(whole(1))
            assert await covering(other) == numbers(whole(2))
            with pytest.raises(ObjectMissing):
                await other.read(whole(1))
        assert await self.again(archive).lineages("orders") == (LINEAGE, "7400000000000000002")
        assert await archive.lineages("order") == ()

    async def test_a_watermark_goes_as_far_as_there_is_no_hole(self, archive: Archiver) -> None:
        async with opened(archive, whole(3), whole(4), whole(6)) as log:
            assert await reach(log) == (3 * SIZE, 5 * SIZE)
            for entry, ends in (
                (piece(5, 0, 100), 5 * SIZE + 100),
                (piece(5, 200, 300), 5 * SIZE + 100),
                (piece(5, 100, 200), 5 * SIZE + 300),
                (piece(5, 300, SIZE), 7 * SIZE),
                (whole(5), 7 * SIZE),
                (piece(7, 0, 1), 7 * SIZE + 1),
            ):
                assert await log.append(entry, [plain(entry)])
                assert await reach(log) == (3 * SIZE, ends)

    async def test_slices_of_the_first_segment_are_a_beginning(self, archive: Archiver) -> None:
        async with opened(archive, piece(3, 0, 10), piece(3, 10, 30)) as log:
            assert await reach(log) == (3 * SIZE, 3 * SIZE + 30)
            assert await covering(log) == numbers(piece(3, 0, 10), piece(3, 10, 30))

    async def test_a_watermark_says_the_times_of_the_last_entry_as_the_system_writes_them(
        self, archive: Archiver
    ) -> None:
        async with opened(archive, whole(3), piece(4, 0, 50)) as log:
            last = piece(4, 0, 50)
            assert await log.watermark("1") == Watermark(
                begins=here(3 * SIZE), ends=last.ends, latest=last.latest, complete_at=last.complete_at
            )

    async def test_a_recorded_watermark_is_believed_and_goes_on(self, archive: Archiver) -> None:
        later = MOMENT + timedelta(days=1)
        async with opened(archive, whole(3)) as log:
            for ends in (5 * SIZE, 5 * SIZE + 100):
                recorded = watermark(SIZE, ends, complete_at=later)
                await log.record(recorded)
                await log.record(watermark(SIZE, 4 * SIZE))
                assert await log.watermark("1") == recorded
            for entry in (piece(5, 100, 150), piece(5, 0, 200), whole(5), whole(6), piece(7, 0, 9)):
                await log.append(entry, [plain(entry)])
                assert await log.watermark("1") == evolve(
                    watermark(SIZE, entry.ends.offset), latest=entry.latest, complete_at=entry.complete_at
                )

    async def test_idle_time_moves_a_watermark_that_is_recorded_again(self, archive: Archiver) -> None:
        async with opened(archive, whole(3)) as log:
            for seconds in range(3):
                moved = watermark(3 * SIZE, 4 * SIZE, complete_at=MOMENT + timedelta(days=1, seconds=seconds))
                await log.record(moved)
                await asyncio.sleep(0.002)  # until the clock has moved
            assert await log.watermark("1") == moved

    async def test_a_watermark_never_passes_a_hole_unless_it_was_acknowledged(self, archive: Archiver) -> None:
        async with opened(archive, whole(3), piece(4, 0, 10), whole(7)) as log:
            await log.record(watermark(3 * SIZE, 4 * SIZE))
            before = (3 * SIZE, 4 * SIZE + 10)
            assert await reach(log) == before
            for wrong in (gap(4 * SIZE + 11, 7 * SIZE), gap(4 * SIZE + 10, 6 * SIZE), gap(0, 7 * SIZE, "2")):
                await log.record(wrong)
                assert await reach(log) == before
            await log.record(gap(4 * SIZE + 10, 7 * SIZE))
            assert await reach(log) == (7 * SIZE, 8 * SIZE)
            await log.record(watermark(7 * SIZE, 9 * SIZE))
            assert await reach(log) == (7 * SIZE, 9 * SIZE)

    async def test_a_gap_with_nothing_behind_it_moves_no_watermark(self, archive: Archiver) -> None:
        async with opened(archive, whole(3)) as log:
            await log.record(gap(4 * SIZE, 7 * SIZE))
            assert await reach(log) == (3 * SIZE, 4 * SIZE)
            await log.append(piece(7, 0, 5), [plain(piece(7, 0, 5))])
            assert await reach(log) == (7 * SIZE, 7 * SIZE + 5)

    async def test_a_small_file_is_kept_once_and_moves_nothing(self, archive: Archiver) -> None:
        name = "000000010000000000000004.00000028.backup"
        async with opened(archive) as log, opened(self.again(archive)) as other:
            for _ in range(2):
                await log.keep(name, b"some bytes")
                await other.keep(name, b"some bytes")
            for wrong in (b"", b"some bytez", b"some bytes and more"):
                with pytest.raises(LineageBroken, match=name):
                    await other.keep(name, wrong)
            assert await reach(log) is None
            assert await covering(log) == []
            for no_name in ("", ".", "../x", "a/b", "a b"):
                with pytest.raises(ValueError, match="name"):
                    await log.keep(no_name, b"")

    async def test_keeping_and_reading_can_be_cancelled_anywhere(self, archive: Archiver) -> None:
        async def keep(name: str) -> None:
            async with opened(archive) as log:
                await log.keep(name, plain(whole(3)))

        async def look() -> None:
            async with opened(archive) as log:
                await log.survey()
                async with closing(log.entries("1")) as entries:
                    async for entry in entries:
                        await log.describe(entry)
                        await log.read(entry)

        async with nothing_left_running():
            async with opened(archive, whole(3), piece(4, 0, 9)):
                pass
            for number, attempt in enumerate(cancellations(step=self.cancel_step)):
                await attempt(keep(f"{number}.partial"))
                await keep(f"{number}.partial")
            for attempt in cancellations(step=self.cancel_step):
                await attempt(look())

    @pytest.mark.parametrize(
        ("begins", "ends", "found"),
        [
            (0, None, [0, 1, 2, 5, 6, 7, 8]),
            (0, 3 * SIZE, []),
            (0, 3 * SIZE + 1, [0]),
            (3 * SIZE, 4 * SIZE, [0]),
            (3 * SIZE + 10, 4 * SIZE + 10, [0, 1]),
            (4 * SIZE, 5 * SIZE, [1, 2]),
            (4 * SIZE, 4 * SIZE + 3, [1]),
            (4 * SIZE + 60, 4 * SIZE + 120, [2]),
            (4 * SIZE + 150, None, [5, 6, 7, 8]),
            (5 * SIZE, 6 * SIZE, []),
            (5 * SIZE - 1, 7 * SIZE, [5]),
            (6 * SIZE + 7, 7 * SIZE, [5]),
            (7 * SIZE, 8 * SIZE, [6, 7]),
            (7 * SIZE + 2, 7 * SIZE + 11, [6, 7]),
            (7 * SIZE + SIZE - 1, 8 * SIZE, [7]),
            (7 * SIZE + SIZE - 1, None, [7, 8]),
            (8 * SIZE + 3, None, [8]),
            (8 * SIZE + 20, None, []),
            (50 * SIZE, None, []),
        ],
    )
    async def test_a_stretch_is_covered_by_segments_and_the_longest_slices(
        self, archive: Archiver, begins: int, ends: int | None, found: list[int]
    ) -> None:
        there = [
            whole(3),
            piece(4, 0, 60),
            piece(4, 20, 150),
            piece(4, 0, 20),  # superseded by a longer slice
            piece(6, 0, 100),  # superseded by the segment
            whole(6),
            piece(7, 0, 10),
            piece(7, 10, SIZE),
            piece(8, 0, 20),
        ]
        async with opened(archive, *there) as log:
            assert await covering(log, begins, ends) == numbers(*(there[number] for number in found))

    async def test_a_log_reaches_beyond_four_gibibytes_and_further(self, archive: Archiver) -> None:
        border = 1 << 32
        there = [
            stretch(border - SIZE, border),
            stretch(border, border + SIZE),
            stretch(border + SIZE, border + SIZE + 9, segment=border + SIZE),
            stretch(40 * border, 40 * border + SIZE),
        ]
        async with opened(archive, *there) as log:
            assert await covering(log) == numbers(*there)
            for begins in (border - SIZE, border - 1):
                assert await covering(log, begins, border + 1) == numbers(*there[:2])
                assert await covering(log, begins, 41 * border) == numbers(*there)
            assert await covering(log, border + SIZE, 40 * border + 1) == numbers(*there[2:])
            assert await covering(log, border + SIZE, 40 * border) == numbers(there[2])
            assert await reach(log) == (border - SIZE, border + SIZE + 9)
            await log.record(watermark(border - SIZE, border))
            assert await reach(log) == (border - SIZE, border + SIZE + 9)
            await log.record(gap(border + SIZE + 9, 40 * border))
            assert await reach(log) == (40 * border, 40 * border + SIZE)
            assert await covering(log, border + 1) == numbers(*there[1:])

    async def test_branches_do_not_cover_each_other(self, archive: Archiver) -> None:
        there = [whole(3), whole(3, "2"), piece(4, 0, 9), piece(4, 0, 19, "2"), whole(4, "12")]
        async with opened(archive, *there) as log:
            assert await covering(log) == numbers(there[0], there[2])
            assert await covering(log, branch="2") == numbers(there[1], there[3])
            assert await covering(log, branch="12") == numbers(there[4])
            assert await covering(log, branch="3") == []
            assert await reach(log, "2") == (3 * SIZE, 4 * SIZE + 19)

    async def test_an_entry_is_described_as_it_was_appended(self, archive: Archiver) -> None:
        there = [whole(3), piece(4, 0, 9), evolve(piece(4, 9, 20), latest=None, complete_at=None)]
        async with opened(archive, *there) as log:
            async with closing(log.entries("1")) as entries:
                assert [await log.describe(entry) async for entry in entries] == there
            for missing in (whole(4), piece(4, 0, 8), stretch(4 * SIZE, 4 * SIZE + 9)):
                with pytest.raises(ObjectMissing):
                    await log.describe(missing)
                with pytest.raises(ObjectMissing):
                    await log.read(missing)

    async def test_no_byte_of_a_damaged_entry_is_handed_out(self, archive: Archiver) -> None:
        async with nothing_left_running(), opened(archive, whole(3), whole(4)) as log:
            named = await self.damage(archive, whole(3))
            with pytest.raises(Corrupt, match=named):
                await log.read(whole(3))
            with pytest.raises(Corrupt, match=named):
                await log.append(whole(3), [plain(whole(3))])
            assert await joined(log, whole(4)) == plain(whole(4))
