"""What is damaged in a log is named and refused, whatever happened to it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from functools import partial

import msgspec
import pytest
from attrs import evolve

from resilience.archive import layout
from resilience.archive.entries import HEAD_AT_MOST, Head, head_of, stored
from resilience.archive.log import ArchiveLog
from resilience.model.errors import ChecksumMismatch, Corrupt, ManifestInvalid, ResilienceError, Unsupported
from resilience.model.log import Branch, Gap, LogEntry, Watermark
from resilience.primitives import ObjectInfo
from resilience.stores import MemoryStore
from resilience.testing.cancellation import nothing_left_running
from resilience.testing.faults import change, changed, flipped, gone, truncated
from resilience.testing.log_entries import LINEAGE, SIZE, gap, opened, piece, plain, stretch, watermark, whole
from resilience.testing.stores import listed, read

from .faults import small_archive

WHOSE = ("memory", "orders", LINEAGE)
SMALL = piece(4, 10, 1000)


def key_of(entry: LogEntry) -> str:
    begins, ends = entry.begins.offset, entry.ends.offset
    if entry.segment is None:
        return layout.segments(*WHOSE, entry.branch) + layout.segment(begins, ends)
    return layout.slices(*WHOSE, entry.branch) + layout.slice_of(entry.segment.offset, begins, ends)


async def key_under(store: MemoryStore, prefix: str) -> str:
    (info,) = await listed(store, prefix)
    return info.key


async def test_every_flipped_byte_of_an_entry_is_refused() -> None:
    store, key = MemoryStore(), key_of(SMALL)
    async with nothing_left_running(), opened(small_archive(store), SMALL) as log:
        size, (head, length) = len(await read(store, key)), headed(await read(store, key))
        assert len(head.frames) == 2
        for at in range(size):
            async with changed(store, key, flipped(at)):
                with pytest.raises(ChecksumMismatch, match=key):
                    await log.read(SMALL)
                if at < length:
                    with pytest.raises(ChecksumMismatch, match=key):
                        await log.describe(SMALL)
        assert b"".join(await log.read(SMALL)) == plain(SMALL)


async def test_every_truncated_or_longer_entry_is_refused() -> None:
    store, key = MemoryStore(), key_of(SMALL)
    async with nothing_left_running(), opened(small_archive(store), SMALL) as log:
        data = await read(store, key)
        for damage in [*map(truncated, range(len(data))), lambda data: data + b"\0", lambda data: data + data]:
            async with changed(store, key, damage):
                with pytest.raises(ChecksumMismatch, match=key):
                    await log.read(SMALL)
        for length in range(headed(data)[1]):
            async with changed(store, key, truncated(length)):
                with pytest.raises(ChecksumMismatch, match=key):
                    await log.describe(SMALL)


@pytest.mark.parametrize(
    "record", [Branch(name="2", parent="1"), watermark(0, SIZE), gap(5, 9)], ids=lambda x: type(x).__name__
)
async def test_every_flipped_or_missing_byte_of_a_record_is_refused(record: Branch | Watermark | Gap) -> None:
    store = MemoryStore()
    kind = {Branch: "history", Watermark: "watermarks", Gap: "gaps"}[type(record)]
    async with nothing_left_running(), opened(small_archive(store), whole(0)) as log:
        await log.record(record)
        key = [info.key for info in await listed(store, f"memory/orders/{kind}/")][-1]
        size = len(await read(store, key))
        for damage in [*map(flipped, range(size)), *map(truncated, range(size))]:
            async with changed(store, key, damage):
                with pytest.raises(ManifestInvalid, match=key):
                    await log.survey()


async def test_a_record_that_vanishes_while_it_is_read_is_named() -> None:
    class Vanishing(MemoryStore):
        async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
            async for info in super().list(prefix):
                await self.delete(info.key)
                yield info

    async with opened(small_archive(Vanishing()), whole(0)) as log:
        with pytest.raises(ManifestInvalid, match=r"history/.*/1.json: it was there a moment ago"):
            await log.survey()


def headed(data: bytes) -> tuple[Head, int]:
    found = head_of(data, "key")
    assert found is not None
    return found


def with_head(data: bytes, /, **changes: object) -> bytes:
    """Say other things in the head of an entry."""
    head, length = headed(data)
    return stored(evolve(head, **changes)) + data[length:]  # type: ignore[arg-type]


OTHERS = {
    "another segment": key_of(whole(5)),
    "another branch": key_of(whole(4, "2")),
    "a slice of itself": key_of(stretch(4 * SIZE, 5 * SIZE, segment=4 * SIZE)),
    "another lineage": key_of(whole(4)).replace(LINEAGE, "74"),
    "another target": key_of(whole(4)).replace("/orders/", "/other/"),
}


@pytest.mark.parametrize("moved", OTHERS.values(), ids=OTHERS)
async def test_an_entry_under_another_name_is_refused(moved: str) -> None:
    archive = small_archive()
    async with opened(archive, whole(4)) as log:
        assert isinstance(log, ArchiveLog)
        data = await read(log.store, key_of(whole(4)))
        await log.store.put(moved, [data])
    _, target, _, lineage, branch, _, name = moved.split("/")
    begins, ends = (int(part[:16], 16) for part in name.split("-"))
    entry = stretch(begins, ends, segment=begins if "/slices/" in moved else None, branch=branch)
    async with archive.log(target, system="memory", lineage=lineage) as log:
        for look in (log.read, log.describe):
            with pytest.raises(ChecksumMismatch, match=f"{moved}: it belongs under another name"):
                await look(entry)


async def test_a_slice_of_another_segment_is_refused() -> None:
    async with opened(small_archive(), SMALL) as log:
        assert isinstance(log, ArchiveLog)
        data = await read(log.store, key_of(SMALL))
        other = stretch(SMALL.begins.offset, SMALL.ends.offset, segment=SMALL.begins.offset)
        await log.store.put(key_of(other), [data])
        with pytest.raises(ChecksumMismatch, match=f"{key_of(other)}: it belongs under another name"):
            await log.read(other)


async def test_a_record_under_another_name_is_refused() -> None:
    store = MemoryStore()
    async with opened(small_archive(store), whole(0)) as log:
        for record, kind, old, new in (
            (Branch(name="2"), "history", "/2.json", "/3.json"),
            (gap(5, 9), "gaps", "9.json", "8.json"),
            (watermark(0, SIZE), "watermarks", "EFFF-", "EFFE-"),
            (watermark(0, SIZE, "2"), "watermarks", "/2/", "/1/"),
        ):
            await log.record(record)
            (key,) = [info.key for info in await listed(store, f"memory/orders/{kind}/") if old in info.key]
            moved = key.replace(old, new)
            await store.put(moved, [await read(store, key)])
            with pytest.raises(ManifestInvalid, match=f"{moved}: it belongs under another name"):
                await log.survey()
            await store.delete(moved)
            await store.delete(key)
        await log.survey()


async def test_an_entry_of_a_newer_format_is_refused_with_advice() -> None:
    store, key = MemoryStore(), key_of(SMALL)
    async with opened(small_archive(store), SMALL) as log:
        for look in (log.read, log.describe):
            async with changed(store, key, lambda data: with_head(data, format=3)):
                with pytest.raises(Unsupported, match=f"{key}: .* archive format 3, .* \\(install a newer resilience"):
                    await look(SMALL)


async def test_a_record_of_a_newer_format_is_refused_with_advice() -> None:
    store = MemoryStore()
    async with opened(small_archive(store)) as log:
        await log.record(Branch(name="1"))
        key = layout.history(*WHOSE, "1")
        async with changed(store, key, lambda data: data.replace(b'"format":1', b'"format":3')):
            with pytest.raises(Unsupported, match=f"{key}: .* archive format 3"):
                await log.survey()


async def test_fields_that_a_later_version_of_this_format_adds_are_passed_over() -> None:
    def add(data: bytes) -> bytes:
        head, length = headed(data)
        text = msgspec.json.encode({**msgspec.json.decode(stored(head)[40:]), "added": [1, 2]})
        lead = stored(head)[:4] + (32 + len(text)).to_bytes(4, "little")
        return lead + hashlib.sha256(text).digest() + text + data[length:]

    store = MemoryStore()
    async with opened(small_archive(store), SMALL) as log, changed(store, key_of(SMALL), add):
        assert b"".join(await log.read(SMALL)) == plain(SMALL)
        assert await log.describe(SMALL) == SMALL


async def test_a_head_that_contradicts_its_frames_is_refused() -> None:
    store, key = MemoryStore(), key_of(SMALL)
    async with nothing_left_running(), opened(small_archive(store), SMALL) as log:
        one, two = headed(await read(store, key))[0].frames
        contradictions: list[dict[str, object]] = [
            {"frames": (one,)},
            {"frames": (one, two, 1)},
            {"frames": (two, one)},
            {"frames": (one + two,)},
            {"frames": (one, two, 0)},
            {"frames": (one, two, -1, 1)},
            {"frame_size": 699},
            {"frame_size": 989},
            {"frame_size": 1 << 60},
            {"sha256": "0" * 64},
        ]
        for wrong in contradictions:
            async with changed(store, key, partial(with_head, **wrong)):
                with pytest.raises(ChecksumMismatch, match=key):
                    await log.read(SMALL)


@pytest.mark.parametrize("text", [b"{}", b"[]", b"\xff", b"", b'{"format":1}', b'{"format":"1"}'])
async def test_a_head_that_says_nothing_is_refused(text: bytes) -> None:
    def behead(data: bytes) -> bytes:
        return data[:4] + (32 + len(text)).to_bytes(4, "little") + hashlib.sha256(text).digest() + text

    store = MemoryStore()
    async with opened(small_archive(store), SMALL) as log, changed(store, key_of(SMALL), behead):
        with pytest.raises(ChecksumMismatch, match=key_of(SMALL)):
            await log.read(SMALL)


async def test_a_head_is_not_waited_for_for_ever() -> None:
    store = MemoryStore()
    async with opened(small_archive(store), SMALL) as log:
        endless = (HEAD_AT_MOST + 1).to_bytes(4, "little")
        async with changed(store, key_of(SMALL), lambda data: data[:4] + endless + data[8:]):
            with pytest.raises(ChecksumMismatch, match="does not begin like an entry"):
                await log.describe(SMALL)


async def test_a_kept_file_that_is_damaged_or_gone_is_not_the_same() -> None:
    store = MemoryStore()
    async with opened(small_archive(store)) as log:
        await log.keep("x.backup", b"some bytes")
        key = await key_under(store, "memory/orders/files/")
        for damage in (flipped(-1), truncated(3)):
            async with changed(store, key, damage):
                with pytest.raises(ResilienceError, match="x.backup is in the archive with other bytes"):
                    await log.keep("x.backup", b"some bytes")
        async with changed(store, key, gone):
            await log.keep("x.backup", b"some bytes")
            await store.delete(key)


async def test_a_damaged_entry_stops_a_watermark_and_not_the_list() -> None:
    store = MemoryStore()
    async with nothing_left_running(), opened(small_archive(store), whole(3), whole(4)) as log:
        await change(store, key_of(whole(4)), flipped(9))
        assert len([entry async for entry in log.entries("1")]) == 2
        with pytest.raises(Corrupt, match=key_of(whole(4))):
            await log.watermark("1")
        (reached,) = (await log.survey()).watermarks
        assert (reached.ends.offset, reached.latest, reached.complete_at) == (5 * SIZE, None, None)
