"""rotate(): a new key opens what the old one did, nothing is rewritten, and it may be killed and repeated."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from resilience import Archive, restore
from resilience.archive import layout
from resilience.keys import KeyFile, KeyVaultKey
from resilience.model.errors import KeyMissing, StorageFailed
from resilience.model.events import Event
from resilience.model.log import Branch
from resilience.operations.rotate import rotate
from resilience.primitives import KeyEncryptionKey, ObjectStore
from resilience.stores import MemoryStore
from resilience.testing.archivers import PARTS, plan, read_all, write
from resilience.testing.cancellation import cancellations, nothing_left_running
from resilience.testing.fake_key_vault import FakeKeyVault
from resilience.testing.faults import WatchedStore, change, flipped
from resilience.testing.memory import LINEAGE, MemoryDestination, MemoryTarget
from resilience.testing.stores import listed, read

from .histories import at

WHOSE = ("memory", "orders")


@pytest.fixture
def old(tmp_path: Path) -> KeyFile:
    return KeyFile.create(tmp_path / "old.key")


@pytest.fixture
def new(tmp_path: Path) -> KeyFile:
    return KeyFile.create(tmp_path / "new.key")


def opened(store: ObjectStore, key: KeyEncryptionKey | None, *older: KeyEncryptionKey) -> Archive:
    return Archive(store, workers=1, key=key, older=older)


async def filled(store: ObjectStore, key: KeyEncryptionKey) -> Archive:
    """An archive with two backups and a log, sealed with a key."""
    archive = opened(store, key)
    for number in (1, 2):
        await write(archive, plan(number))
    target = MemoryTarget("orders", {})
    async with archive.log("orders", system="memory", lineage=LINEAGE) as log:
        await log.record(Branch(name="1"))
        target.write("one", b"value", at=at(0))
        await target.ship(log, at=at(1))
    return archive


async def everything(store: ObjectStore) -> dict[str, bytes]:
    return {info.key: await read(store, info.key) for info in await listed(store)}


async def names(store: ObjectStore, key: KeyEncryptionKey) -> set[str]:
    """The data keys that are wrapped with a key."""
    wrapped = [layout.wrapped(info.key) for info in await listed(store, layout.data_keys(*WHOSE))]
    return {each[0] for each in wrapped if each is not None and each[1] == key.id}


async def opens(store: ObjectStore, key: KeyEncryptionKey) -> bool:
    """Read everything with this key alone."""
    archive = opened(store, key)
    manifests = [each async for each in archive.manifests("orders")]
    assert [await read_all(archive, each) for each in manifests] == [PARTS, PARTS]
    async with archive.log("orders", system="memory", lineage=LINEAGE) as log:
        entries = [b"".join(await log.read(each)) async for each in log.entries("1")]
    assert b"76616c7565" in entries[0]
    return True


async def test_the_new_key_alone_opens_everything_and_nothing_was_rewritten(old: KeyFile, new: KeyFile) -> None:
    store, events = MemoryStore(), list[Event]()
    await filled(store, old)
    before = await everything(store)
    report = await rotate(
        opened(store, new, old), "orders", actor="jane", reason="the yearly change", observer=events.append
    )
    assert (report.added, report.there, report.complete) == (4, 0, True)  # two backups, the log, the records
    assert str(report).startswith("rotated orders: 4 data keys wrapped anew, 0 were before; the new key opens all")
    after = await everything(store)
    assert before.items() <= after.items()
    assert {key.rpartition("/")[2] for key in after.keys() - before.keys()} == {f"{new.id}.json"}
    assert await opens(store, new) and await opens(store, old)
    assert (report.actor, report.reason) == ("jane", "the yearly change")
    assert {(event.actor, event.reason) for event in events} == {("jane", "the yearly change")}
    assert [event.stage for event in events] == ["started", *["progress"] * 4, "completed"]


async def test_it_may_be_repeated_and_then_proves_what_is_there(old: KeyFile, new: KeyFile) -> None:
    store = MemoryStore()
    await filled(store, old)
    await rotate(opened(store, new, old), "orders")
    before = await everything(store)
    report = await rotate(opened(store, new), "orders")
    assert (report.added, report.there, report.complete) == (0, 4, True)
    assert await everything(store) == before


async def test_a_rotation_cancelled_anywhere_is_ended_by_another(old: KeyFile, new: KeyFile) -> None:
    template = MemoryStore()
    await filled(template, old)
    before = await everything(template)
    async with nothing_left_running():
        for attempt in cancellations(step=3):
            store = MemoryStore()
            for key, data in before.items():
                await store.put(key, [data])
            await attempt(rotate(opened(store, new, old), "orders"))
            assert before.items() <= (await everything(store)).items()
            report = await rotate(opened(store, new, old), "orders")
            assert report.complete and report.added + report.there == 4
    assert await opens(store, new)


async def test_a_store_that_fails_in_between_leaves_what_another_rotation_ends(old: KeyFile, new: KeyFile) -> None:
    inner = MemoryStore()
    await filled(inner, old)
    puts = 0

    async def fail(operation: str, key: str) -> None:
        nonlocal puts
        puts += operation == "put"
        if puts == 3:
            raise StorageFailed("the disk is full", operation=operation, subject=key)

    async with nothing_left_running():
        with pytest.raises(StorageFailed):
            await rotate(opened(WatchedStore(inner, fail), new, old), "orders")
    assert 0 < len(await names(inner, new)) < 4
    assert await opens(inner, old)
    assert (await rotate(opened(inner, new, old), "orders")).complete
    assert await opens(inner, new)


async def test_two_rotations_at_once_are_both_complete(old: KeyFile, new: KeyFile) -> None:
    store = MemoryStore()
    await filled(store, old)
    reports = await asyncio.gather(*(rotate(opened(store, new, old), "orders") for _ in range(2)))
    assert [report.complete for report in reports] == [True, True]
    assert await opens(store, new)


async def test_a_data_key_that_cannot_be_opened_is_named_and_the_others_are_wrapped(old: KeyFile, new: KeyFile) -> None:
    store = MemoryStore()
    await filled(store, old)
    damaged = layout.wrapped_key(*WHOSE, f"backup-{plan(1).id}", old.id)
    await change(store, damaged, flipped(-30))
    report = await rotate(opened(store, new, old), "orders")
    assert (report.added, report.complete) == (3, False)
    assert [(finding.severity, finding.subject) for finding in report.findings] == [("blocker", damaged)]
    assert "NOT COMPLETE: the old key is still needed" in str(report)


async def test_without_the_old_key_nothing_is_wrapped_and_it_says_which_one_it_takes(
    old: KeyFile, new: KeyFile
) -> None:
    store = MemoryStore()
    await filled(store, old)
    before = await everything(store)
    report = await rotate(opened(store, new), "orders")
    assert (report.added, report.there, report.complete) == (0, 0, False)
    assert all(f"it takes the key {old.id}" in finding.text for finding in report.findings)
    assert await everything(store) == before


async def test_what_somebody_put_in_the_place_of_a_wrapped_key_is_not_taken_for_one(old: KeyFile, new: KeyFile) -> None:
    store = MemoryStore()
    await filled(store, old)
    theirs = layout.wrapped_key(*WHOSE, f"backup-{plan(2).id}", new.id)
    forged = await read(store, layout.wrapped_key(*WHOSE, f"backup-{plan(2).id}", old.id))
    await store.put(theirs, [forged])
    report = await rotate(opened(store, new, old), "orders")
    assert (report.added, report.complete) == (3, False)
    (finding,) = report.findings
    assert (finding.subject, finding.hint) == (theirs, "remove this object, and rotate again")
    await store.delete(theirs)
    assert (await rotate(opened(store, new, old), "orders")).complete
    assert await opens(store, new)


async def test_there_is_nothing_to_rotate_without_a_key_or_without_backups(old: KeyFile, new: KeyFile) -> None:
    store = MemoryStore()
    await filled(store, old)
    with pytest.raises(KeyMissing, match="no key to wrap them with"):
        await rotate(opened(store, None), "orders")
    report = await rotate(opened(store, new, old), "others")
    assert (report.added, report.there, report.complete) == (0, 0, True)


async def test_from_a_file_into_a_vault_and_a_restore_with_the_vault_alone(old: KeyFile, tmp_path: Path) -> None:
    store = MemoryStore()
    await filled(store, old)
    with FakeKeyVault.running(tmp_path) as vault:
        key_id = vault.create("backups")
        made = [
            KeyVaultKey(key_id, vault.credential(), ca_file=vault.ca_file, verify_challenge_resource=False)
            for _ in range(2)
        ]
        async with made[0] as key:
            assert (await rotate(opened(store, key, old), "orders")).added == 4
        async with made[1] as key:
            assert await opens(store, key)
            report = await restore(opened(store, key), "orders", into=MemoryDestination())
    assert report.manifest.id == plan(2).id
