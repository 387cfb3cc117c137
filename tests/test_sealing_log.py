"""What somebody without the key can do to the log of a sealed archive is refused, or noticed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from attrs import evolve

from resilience import Archive
from resilience.archive import layout
from resilience.archive.entries import head_of
from resilience.archive.envelope import wrap
from resilience.archive.log import ArchiveLog
from resilience.keys import KeyFile
from resilience.model.errors import Corrupt, KeyMissing, LineageBroken, SealBroken
from resilience.model.log import Branch, Gap, LogEntry, Watermark
from resilience.primitives import KeyEncryptionKey
from resilience.stores import MemoryStore
from resilience.testing.cancellation import nothing_left_running
from resilience.testing.faults import changed, flipped, truncated
from resilience.testing.log_entries import (
    FIRST,
    SIZE,
    covering,
    gap,
    joined,
    numbers,
    opened,
    piece,
    plain,
    reach,
    watermark,
    whole,
)
from resilience.testing.stores import listed, read

from .faults import small_archive
from .test_archive_log_damage import WHOSE, key_of

SMALL = piece(4, 10, 1000)


@pytest.fixture
def key(tmp_path: Path) -> KeyFile:
    return KeyFile.create(tmp_path / "key")


@pytest.fixture
def archive(key: KeyFile) -> Archive:
    return small_archive(MemoryStore(), key=key)


def again(archive: Archive, *, key: KeyEncryptionKey | None) -> Archive:
    return small_archive(archive.store, key=key)


async def test_every_flipped_or_missing_byte_of_a_sealed_entry_is_refused(archive: Archive) -> None:
    name = key_of(SMALL)
    async with nothing_left_running(), opened(archive, SMALL) as log:
        data = await read(archive.store, name)
        head, length = head_of(data, name) or pytest.fail("no head")
        assert len(head.frames) == 2 and head.sealing is not None
        for at in range(len(data)):
            for damage in (flipped(at), truncated(at)):
                async with changed(archive.store, name, damage):
                    with pytest.raises(Corrupt, match=name):
                        await log.read(SMALL)
                    if at < length:
                        with pytest.raises(Corrupt, match=name):
                            await log.describe(SMALL)
        assert await joined(log, SMALL) == plain(SMALL)
        assert await log.describe(SMALL) == SMALL


async def test_nothing_of_a_log_can_be_found_in_the_store_not_even_that_two_entries_are_the_same(
    archive: Archive,
) -> None:
    async with opened(archive, whole(0)) as log:
        await log.keep("x.partial", plain(whole(0)))
    other = MemoryStore()
    async with opened(small_archive(other, key=archive.key), whole(0)):
        pass
    first, second = await read(archive.store, key_of(whole(0))), await read(other, key_of(whole(0)))
    assert first[-200:] != second[-200:]
    stored = b"".join([await read(archive.store, info.key) for info in await listed(archive.store)])
    assert plain(whole(0))[:64] not in stored and b"\x28\xb5\x2f\xfd" not in stored


ELSEWHERE = {"another segment": whole(5), "another branch": whole(4, "2"), "a slice of itself": piece(4, 0, SIZE)}


@pytest.mark.parametrize("entry", ELSEWHERE.values(), ids=ELSEWHERE)
async def test_an_entry_in_another_place_is_refused(archive: Archive, entry: LogEntry) -> None:
    async with opened(archive, whole(4)) as log:
        await archive.store.put(key_of(entry), [await read(archive.store, key_of(whole(4)))])
        for look in (log.read, log.describe):
            with pytest.raises(Corrupt, match=key_of(entry)):
                await look(entry)


async def test_frames_of_another_entry_are_refused_under_a_head_of_their_length(archive: Archive) -> None:
    async with opened(archive, whole(4), whole(5)) as log:
        name, data = key_of(whole(4)), await read(archive.store, key_of(whole(4)))
        foreign = await read(archive.store, key_of(whole(5)))
        heads = [head_of(each, name) or pytest.fail("no head") for each in (data, foreign)]
        assert isinstance(log, ArchiveLog)
        body = memoryview(foreign)[heads[1][1] :]
        head = evolve(heads[0][0], frames=heads[1][0].frames, sha256=hashlib.sha256(body).hexdigest())
        with pytest.raises(SealBroken, match=f"{name}: frame 0"):
            await log.packing.plain(name, head, body)


async def test_an_entry_that_somebody_without_the_key_adds_is_refused(archive: Archive, tmp_path: Path) -> None:
    async with opened(archive, whole(3)) as log:
        for number, forger in ((4, None), (5, KeyFile.create(tmp_path / "other"))):
            forged = small_archive(MemoryStore(), key=forger)
            async with opened(forged, whole(number)):
                pass
            await archive.store.put(key_of(whole(number)), [await read(forged.store, key_of(whole(number)))])
            for look in (log.read, log.describe):
                with pytest.raises(SealBroken, match=key_of(whole(number))):
                    await look(whole(number))
            with pytest.raises((SealBroken, LineageBroken)):
                await log.append(whole(number), [plain(whole(number))])
        facts = await log.survey()
    assert [mark.complete_at for mark in facts.watermarks] == [None]  # nothing is known of when they were written


async def test_a_record_that_somebody_without_the_key_adds_is_passed_over_and_named(archive: Archive) -> None:
    async with opened(archive, whole(3)) as log:
        await log.record(watermark(3 * SIZE, 5 * SIZE))
        trusted = await log.survey()
        assert trusted.findings == ()
        forged: list[tuple[str, Branch | Watermark | Gap]] = [
            (layout.history(*WHOSE, "2"), Branch(name="2", parent="1")),
            (layout.gaps(*WHOSE, "1") + layout.gap(5 * SIZE, 9 * SIZE), gap(5 * SIZE, 9 * SIZE)),
            (
                layout.watermarks(*WHOSE, "1") + layout.watermark(20 * SIZE) + layout.at_time(1),
                watermark(3 * SIZE, 20 * SIZE),
            ),
        ]
        for name, record in forged:
            await archive.store.put(name, [wrap(record)])
        facts = await log.survey()
        assert (facts.branches, facts.watermarks, facts.gaps) == (trusted.branches, trusted.watermarks, trusted.gaps)
        assert {finding.subject for finding in facts.findings} == {name for name, _ in forged}
        assert all("it is not sealed" in finding.text for finding in facts.findings)
        assert await reach(log) == (3 * SIZE, 5 * SIZE)
    async with opened(again(archive, key=None)) as log:
        assert [branch.name for branch in (await log.survey()).branches] == ["1", "2"]  # without a key nobody can tell


async def test_a_record_of_another_place_opens_nothing(archive: Archive) -> None:
    async with opened(archive, whole(0)) as log:
        await archive.store.put(layout.history(*WHOSE, "2"), [await read(archive.store, layout.history(*WHOSE, "1"))])
        facts = await log.survey()
    assert facts.branches == (FIRST,)
    assert ["seal is broken" in finding.text for finding in facts.findings] == [True]


async def test_without_the_key_a_log_is_listed_and_neither_read_nor_written(archive: Archive, key: KeyFile) -> None:
    async with opened(archive, whole(3)):
        pass
    async with opened(again(archive, key=None)) as log:
        assert [entry async for entry in log.entries("1")] != []
        assert await log.describe(whole(3)) == whole(3)
        with pytest.raises(KeyMissing, match=f"{key_of(whole(3))}: .*{key.id}"):
            await log.read(whole(3))
        for write in (log.append(whole(4), [plain(whole(4))]), log.record(Branch(name="2")), log.keep("x", b"")):
            with pytest.raises(KeyMissing, match="write to orders: what is there is sealed"):
                await write


async def test_writers_of_one_day_share_a_data_key_and_no_two_entries_a_key(archive: Archive) -> None:
    for number in range(3):
        async with opened(again(archive, key=archive.key), whole(number)):
            pass
    found = [head_of(await read(archive.store, key_of(whole(each))), "key") for each in range(3)]
    sealings = [each[0].sealing for each in found if each is not None]
    assert len({each.key for each in sealings if each}) == 1 and len({each.salt for each in sealings if each}) == 3
    async with opened(again(archive, key=archive.key)) as log:
        assert await covering(log) == numbers(whole(0), whole(1), whole(2))


async def test_what_is_kept_beside_a_sealed_log_is_sealed(archive: Archive) -> None:
    async with opened(archive) as log:
        await log.keep("x.backup", b"some bytes")
        await log.keep("x.backup", b"some bytes")
        name = layout.file(*WHOSE, "x.backup")
        size = len(await read(archive.store, name))
        for at in range(0, size, 3):
            async with changed(archive.store, name, flipped(at)):
                with pytest.raises((Corrupt, LineageBroken)):
                    await log.keep("x.backup", b"some bytes")
        moved = layout.file(*WHOSE, "y.backup")
        await archive.store.put(moved, [await read(archive.store, name)])
        with pytest.raises(SealBroken, match=moved):
            await log.keep("y.backup", b"some bytes")
