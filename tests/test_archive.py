"""The archive keeps what `Archiver` promises, over every store, and refuses what is damaged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from resilience import Archive
from resilience.archive import layout
from resilience.archive.reading import OBJECTS_AHEAD
from resilience.archive.writing import PUTS_AT_ONCE
from resilience.concurrency import stop_tasks
from resilience.model.capture import Part
from resilience.model.errors import StorageFailed
from resilience.model.manifests import Manifest
from resilience.model.plans import BackupPlan
from resilience.primitives import Archiver, Chunks, ObjectInfo, ObjectStore
from resilience.stores import LocalStore, MemoryStore
from resilience.stores.keys import each
from resilience.testing.archivers import PARTS, ArchiverSuite, plan, read_all, write
from resilience.testing.cancellation import nothing_left_running
from resilience.testing.faults import WatchedStore, change, flipped
from resilience.testing.stores import content, listed, read
from resilience.version import WRITER

from .faults import small_archive


class TestArchiveInMemory(ArchiverSuite):
    @pytest.fixture
    def archive(self) -> Archiver:
        return small_archive(MemoryStore())

    def again(self, archive: Archiver) -> Archiver:
        return small_archive(store_of(archive))

    async def outcome(self, archive: Archiver, of: BackupPlan) -> str | None:
        store = store_of(archive)
        if await store.stat(layout.run(of.system, of.target, of.id, "started")) is None:
            return None
        key = layout.run(of.system, of.target, of.id, "ended")
        if await store.stat(key) is None:
            return "running"
        outcome: str = json.loads(await read(store, key))["outcome"]
        return outcome

    async def remains(self, archive: Archiver, of: BackupPlan) -> int:
        infos = await listed(store_of(archive), f"{of.system}/{of.target}/")
        return sum(of.id in info.key and "/runs/" not in info.key and "/retired/" not in info.key for info in infos)

    async def damage(self, archive: Archiver, manifest: Manifest, part: str) -> str:
        store, key = store_of(archive), manifest.part(part).objects[-1].key
        await change(store, key, flipped(-1))
        return key

    async def spoil(self, archive: Archiver, manifest: Manifest) -> None:
        key = layout.manifest(manifest.system, manifest.target, manifest.id)
        await change(store_of(archive), key, flipped(-100))


class TestArchiveInADirectory(TestArchiveInMemory):
    cancel_step = 17

    @pytest.fixture
    def archive(self, tmp_path: Path) -> Archiver:
        return small_archive(LocalStore(tmp_path))


def store_of(archive: Archiver) -> ObjectStore:
    assert isinstance(archive, Archive)
    return archive.store


class Slow(MemoryStore):
    """Takes an object's bytes at once, and then a while to make it durable."""

    def __init__(self) -> None:
        super().__init__()
        self.at_once = self.most = 0

    async def put(self, key: str, chunks: Chunks) -> ObjectInfo:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        data = [chunk async for chunk in each(chunks)]
        for _ in range(50):
            await asyncio.sleep(0)
        self.at_once -= 1
        return await super().put(key, data)


async def test_the_next_objects_begin_while_others_are_made_durable_but_not_too_many() -> None:
    store = Slow()
    archive = small_archive(store)
    manifest = await write(archive, plan(), {"part": content(20_000)})
    assert store.most == PUTS_AT_ONCE
    assert await read_all(archive, manifest) == {"part": content(20_000)}


class Forgetful(MemoryStore):
    """Keeps the first chunk of an object of data and believes that this was all."""

    async def put(self, key: str, chunks: Chunks) -> ObjectInfo:
        async for chunk in each(chunks):
            return await super().put(key, [chunk])
        return await super().put(key, [])


async def test_frames_that_the_store_never_asked_for_count_as_lost() -> None:
    archive = Archive(Forgetful(), frame_size=700, workers=2)
    with pytest.raises(StorageFailed, match="the store kept"):
        await write(archive, plan(), {"part": content(1500)})


async def test_a_store_that_stalls_stops_the_source_after_a_few_frames() -> None:
    taken = 0

    async def endless() -> AsyncGenerator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield bytes(700)

    async def stall(operation: str, key: str) -> None:
        if operation == "chunk" and key.endswith(".zst"):
            await asyncio.Event().wait()

    archive = small_archive(WatchedStore(MemoryStore(), stall))
    async with nothing_left_running(), archive.draft(plan()) as draft:
        storing = asyncio.create_task(draft.store(Part(name="part", chunks=endless())))
        await asyncio.sleep(0.1)
        assert taken <= archive.workers + 5
        await stop_tasks([storing])


async def test_a_reader_that_stalls_stops_the_fetching_after_a_few_objects() -> None:
    fetched: list[str] = []

    async def note(operation: str, key: str) -> None:
        if operation == "get" and key.endswith(".zst"):
            fetched.append(key)

    store = MemoryStore()
    manifest = await write(small_archive(store), plan(), {"part": content(50_000)})
    archive = small_archive(WatchedStore(store, note))
    async with nothing_left_running(), archive.open(manifest) as backup, backup.read("part") as chunks:
        await anext(chunks)
        await asyncio.sleep(0.1)
        assert len(fetched) <= archive.workers + 2 + OBJECTS_AHEAD
    assert len(manifest.parts[0].objects) > 50


async def test_a_put_that_fails_late_stops_the_backup_and_everything_in_flight() -> None:
    class Failing(Slow):
        async def put(self, key: str, chunks: Chunks) -> ObjectInfo:
            info = await super().put(key, chunks)
            if key.endswith("/000001.zst"):
                raise StorageFailed("it could not be made durable", operation="put", subject=key)
            return info

    async with nothing_left_running():
        with pytest.raises(StorageFailed, match=r"part/000001.zst: it could not be made durable"):
            await write(small_archive(Failing()), plan(), {"part": content(20_000)})


async def test_two_puts_that_fail_raise_one_error_and_nobody_complains_of_the_other() -> None:
    class Failing(Slow):
        async def put(self, key: str, chunks: Chunks) -> ObjectInfo:
            info = await super().put(key, chunks)
            if key.endswith(".zst"):
                raise StorageFailed("it could not be made durable", operation="put", subject=key)
            return info

    async with nothing_left_running():
        with pytest.raises(StorageFailed):
            await write(small_archive(Failing()), plan(), {"part": content(20_000)})


async def test_a_run_record_that_cannot_be_written_is_logged_and_the_backup_stays(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(operation: str, key: str) -> None:
        if operation == "put" and key.endswith("ended.json"):
            raise OSError("not even one of ours")

    archive = small_archive(WatchedStore(MemoryStore(), fail))
    manifest = await write(archive, plan())
    assert await read_all(archive, manifest) == PARTS
    (record,) = caplog.records
    assert record.message == f"the run record of {manifest.id} was not ended: not even one of ours"


async def test_run_records_say_what_happened() -> None:
    archive = small_archive()
    manifest = await write(archive, plan())
    with pytest.raises(StorageFailed):
        await _fail(archive)
    started = json.loads(await read(archive.store, layout.run("memory", "orders", manifest.id, "started")))
    assert started == {
        "actor": "",
        "id": manifest.id,
        "kind": "base",
        "parent": None,
        "reason": "",
        "started_at": "2026-11-21T20:31:00Z",
        "system": "memory",
        "target": "orders",
        "writer": WRITER,
    }
    ended = json.loads(await read(archive.store, layout.run("memory", "orders", manifest.id, "ended")))
    assert (ended["id"], ended["outcome"], ended["error"]) == (manifest.id, "succeeded", "")
    assert ended["stored"] == manifest.stored
    failed = json.loads(await read(archive.store, layout.run("memory", "orders", plan(2).id, "ended")))
    assert (failed["outcome"], failed["error"]) == ("failed", "put somewhere: it is full (make room)")


async def _fail(archive: Archive) -> None:
    async with archive.draft(plan(2)):
        raise StorageFailed("it is full", operation="put", subject="somewhere", hint="make room")
