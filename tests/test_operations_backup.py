"""backup(), on a system in memory: what it tells, what it leaves behind when something fails."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from resilience import Archive, backup, restore
from resilience.model.errors import ChecksumMismatch, Refused, ResilienceError, StorageFailed
from resilience.model.events import Event
from resilience.model.findings import Finding
from resilience.model.manifests import Manifest
from resilience.model.targets import RecoveryTarget
from resilience.primitives import Chunks, ObjectInfo, ObjectStore
from resilience.stores import LocalStore, MemoryStore
from resilience.stores.keys import each
from resilience.testing.cancellation import cancellations, nothing_left_running
from resilience.testing.faults import WatchedStore
from resilience.testing.memory import MemoryDestination, MemoryTarget
from resilience.testing.stores import content, listed, read

from .faults import FEW, VALUES, killed_everywhere, small_archive

MOMENT = datetime(2026, 11, 21, 20, 30, tzinfo=UTC)


def orders() -> MemoryTarget:
    return MemoryTarget("orders", dict(VALUES), chunk_size=1024)


async def manifests(archive: Archive, target: str = "orders") -> list[Manifest]:
    return [manifest async for manifest in archive.manifests(target)]


async def outcomes(store: ObjectStore) -> dict[str, str]:
    """How every attempt ended, by its id; `running` without a record of that."""
    found: dict[str, str] = {}
    for info in await listed(store, "memory/orders/runs/"):
        record = json.loads(await read(store, info.key))
        found[record["id"]] = record.get("outcome", found.get(record["id"], "running"))
    return found


async def comes_back(archive: Archive, manifest: Manifest, values: Mapping[str, bytes] = VALUES) -> bool:
    destination = MemoryDestination()
    await restore(archive, "orders", into=destination, until=RecoveryTarget.backup(manifest.id))
    return destination.values == values


async def test_the_report_says_what_was_done() -> None:
    note = Finding(severity="note", subject="orders", text="something to know")
    target = orders()
    target.findings = (note,)
    archive = small_archive()
    report = await backup(target, archive, clock=lambda: MOMENT, new_id=lambda now: f"{now:%Y%m%dT%H%M%S}.000Z-00000a")
    assert report.manifest == (await manifests(archive))[0]
    assert report.manifest.id == "20261121T203000.000Z-00000a"
    assert report.manifest.started_at == MOMENT
    assert report.manifest.size == sum(map(len, VALUES.values()))
    assert report.findings == (note,)
    assert report.seconds >= 0
    assert str(report).startswith("backed up orders as 20261121T203000.000Z-00000a: 7.8 KiB in ")
    assert str(report).endswith("note: orders: something to know")


async def test_progress_is_told_from_start_to_end_and_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    events: list[Event] = []
    await backup(orders(), small_archive(), observer=events.append)
    size = sum(map(len, VALUES.values()))
    assert [event.stage for event in events] == ["started", *["progress"] * 8, "completed"]
    assert [event.done for event in events] == sorted(event.done for event in events)
    assert (events[-1].done, events[-1].total) == (size, size)
    assert capsys.readouterr() == ("", "")


async def test_an_observer_that_fails_is_complained_of_once_and_disturbs_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def observer(event: Event) -> None:
        raise KeyError(event.stage)

    with caplog.at_level(logging.ERROR, "resilience"):
        await backup(orders(), small_archive(), observer=observer)
    assert [record.message for record in caplog.records] == ["the observer of backup failed"]


async def test_what_stands_in_the_way_is_said_at_once_and_nothing_is_touched() -> None:
    target, store = orders(), MemoryStore()
    target.findings = (
        Finding(severity="blocker", subject="orders", text="it is too old", hint="upgrade it"),
        Finding(severity="blocker", subject="orders", text="it is too slow", hint="speed it up"),
    )
    events: list[Event] = []
    with pytest.raises(Refused) as refused:
        await backup(target, Archive(store), observer=events.append)
    assert str(refused.value) == "backup orders: it is too old; it is too slow (upgrade it; speed it up)"
    assert await listed(store) == []
    assert [event.stage for event in events] == ["started", "failed"]
    assert events[-1].text == str(refused.value)


async def test_damage_found_at_the_end_fails_the_backup_and_is_recorded() -> None:
    target, archive = orders(), small_archive()
    target.damaged = True
    with pytest.raises(ChecksumMismatch):
        await backup(target, archive)
    assert await manifests(archive) == []
    assert list((await outcomes(archive.store)).values()) == ["failed"]
    assert target.capturing == 0


async def test_a_name_that_belongs_to_another_system_is_refused() -> None:
    class Other(MemoryTarget):
        system = "other"

    archive = small_archive()
    report = await backup(orders(), archive)
    with pytest.raises(Refused, match="orders: the name belongs to a memory target in this archive"):
        await backup(Other("orders", {"one": b"data"}), archive)
    assert await manifests(archive) == [report.manifest]


async def test_a_clock_that_does_not_know_its_time_zone_is_refused() -> None:
    naive = MOMENT.replace(tzinfo=None)
    with pytest.raises(ValueError, match="is a naive datetime: give it a time zone"):
        await backup(orders(), small_archive(), clock=lambda: naive)


@pytest.mark.parametrize("name", ["", "Orders", "a/b", "../a", "a b", ".a", "a" * 64])
def test_a_target_whose_name_cannot_be_part_of_a_key_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no name"):
        MemoryTarget(name)


async def test_a_store_that_fails_at_any_operation_leaves_no_half_backup() -> None:
    inner = MemoryStore()
    operations = 0

    async def full(operation: str, key: str) -> None:
        nonlocal operations
        operations += 1
        if operations == failing:
            raise StorageFailed("No space left on device", operation=operation, subject=key)

    failing, ended = 0, []
    async with nothing_left_running():
        while failing <= operations:
            operations, failing = 0, failing + 1
            target, archive = orders(), small_archive(WatchedStore(inner, full))
            before = await manifests(small_archive(inner))
            with suppress(StorageFailed):
                await backup(target, archive)
                ended.append(failing)
            after = await manifests(small_archive(inner))
            assert target.capturing == 0
            assert len(after) - len(before) == (failing in ended)
            assert all([await comes_back(small_archive(inner), manifest) for manifest in after[-1:]])
    # Only a last look at a prune and the record of how it ended are not worth failing a backup for that exists; the
    # last attempt did not fail at all.
    assert len(ended) <= 5


async def test_a_disk_that_is_full_in_the_middle_of_an_object_stops_the_other_puts_too() -> None:
    async def full(operation: str, key: str) -> None:
        if operation == "chunk" and key.endswith("one/000002.zst"):
            raise StorageFailed("No space left on device", operation="put", subject=key)

    store, target = MemoryStore(), orders()
    async with nothing_left_running():
        with pytest.raises(StorageFailed, match=r"put memory/orders/base/.*/one/000002.zst: No space left on device"):
            await backup(target, small_archive(WatchedStore(store, full)))
    assert target.capturing == 0
    assert await manifests(small_archive(store)) == []
    assert list((await outcomes(store)).values()) == ["failed"]


async def test_a_store_that_keeps_less_than_it_was_given_is_found_out() -> None:
    class Forgetful(MemoryStore):
        async def put(self, key: str, chunks: Chunks) -> ObjectInfo:
            kept = some(each(chunks)) if key.endswith(".zst") else chunks
            return await super().put(key, kept)

    async def some(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        yield await anext(chunks)

    store = Forgetful()
    async with nothing_left_running():
        with pytest.raises(StorageFailed, match="the store kept"):
            await backup(orders(), Archive(store, frame_size=700, object_size=3000))
    assert await manifests(Archive(store)) == []


async def test_a_credential_that_may_only_add_is_enough_to_back_up() -> None:
    async def only_add(operation: str, key: str) -> None:
        if operation == "delete":
            raise AssertionError(f"{key} would have been deleted")

    archive = small_archive(WatchedStore(MemoryStore(), only_add))
    report = await backup(orders(), archive)
    assert await comes_back(archive, report.manifest)


async def test_the_manifest_is_written_last_and_the_record_of_the_attempt_first() -> None:
    puts: list[str] = []

    async def note(operation: str, key: str) -> None:
        if operation == "put":
            puts.append(key)

    report = await backup(orders(), small_archive(WatchedStore(MemoryStore(), note)))
    prefix = f"memory/orders/runs/{report.manifest.id}"
    assert puts[:2] == ["targets/orders.json", f"{prefix}/started.json"]
    assert puts[-2:] == [f"memory/orders/manifests/{report.manifest.id}.json", f"{prefix}/ended.json"]
    assert len(puts) > 10


async def test_a_backup_cancelled_anywhere_is_listed_whole_or_not_at_all() -> None:
    archive = small_archive()
    async with nothing_left_running():
        for attempt in cancellations():
            target, before = orders(), await manifests(archive)
            completed = await attempt(backup(target, archive))
            after = await manifests(archive)
            assert target.capturing == 0
            assert len(after) > len(before) or not completed
            assert all([await comes_back(archive, manifest) for manifest in after[len(before) :]])
    ends = await outcomes(archive.store)
    assert set(ends.values()) == {"succeeded", "cancelled"}
    assert {manifest.id for manifest in await manifests(archive)} == {
        each for each, end in ends.items() if end == "succeeded"
    }


async def test_a_backup_killed_at_any_call_leaves_nothing_half_done_listed(tmp_path: Path) -> None:
    folders = killed_everywhere("backup", tmp_path, step=3)
    assert len(folders) > 20
    for folder in folders:
        archive = small_archive(LocalStore(folder / "root"))
        found = await manifests(archive)
        assert len(found) <= 1
        assert all([await comes_back(archive, manifest, FEW) for manifest in found])
        if folder in folders[::10]:
            report = await backup(orders(), archive)
            assert await comes_back(archive, report.manifest)
            assert len(await manifests(archive)) == len(found) + 1
    assert len(found) == 1


async def test_two_backups_of_one_target_at_once_are_both_whole() -> None:
    target, archive = orders(), small_archive()
    reports = await asyncio.gather(*(backup(target, archive) for _ in range(3)))
    assert sorted(report.manifest.id for report in reports) == [each.id for each in await manifests(archive)]
    for report in reports:
        assert await comes_back(archive, report.manifest)


async def test_no_error_ever_comes_in_a_group() -> None:
    async def full(operation: str, key: str) -> None:
        if operation == "chunk":
            raise StorageFailed("No space left on device", operation="put", subject=key)

    target = MemoryTarget("orders", {f"value{number}": content(5000, number) for number in range(5)})
    with pytest.raises(ResilienceError) as raised:
        await backup(target, small_archive(WatchedStore(MemoryStore(), full)))
    assert type(raised.value) is StorageFailed
