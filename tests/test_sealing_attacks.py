"""What somebody without the key can do to a sealed archive is refused, or noticed."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest
from attrs import evolve

from resilience import Archive, restore
from resilience.archive import layout
from resilience.archive.envelope import wrap
from resilience.keys import KeyFile
from resilience.model.capture import Part
from resilience.model.errors import (
    AlreadyExists,
    Corrupt,
    KeyMissing,
    ManifestInvalid,
    NoBackup,
    ObjectMissing,
    Refused,
    SealBroken,
)
from resilience.model.findings import Doubt, Level
from resilience.model.manifests import Manifest, StoredObject
from resilience.operations.rotate import rotate
from resilience.primitives import KeyEncryptionKey, ObjectStore
from resilience.stores import MemoryStore
from resilience.testing import archivers
from resilience.testing.archivers import CAPTURED, MOMENT, PARTS, plan, read_all, slowly, write
from resilience.testing.cancellation import nothing_left_running
from resilience.testing.faults import Change, WatchedStore, changed, flipped, gone
from resilience.testing.memory import MemoryDestination
from resilience.testing.stores import content, listed, read

from .faults import small_archive

WHOSE = ("memory", "orders")


@pytest.fixture
def key(tmp_path: Path) -> KeyFile:
    return KeyFile.create(tmp_path / "key")


@pytest.fixture
def other(tmp_path: Path) -> KeyFile:
    return KeyFile.create(tmp_path / "other")


@pytest.fixture
def archive(key: KeyFile) -> Archive:
    return small_archive(MemoryStore(), key=key)


def again(archive: Archive, *, key: KeyEncryptionKey | None, older: list[KeyEncryptionKey] | None = None) -> Archive:
    """Open an archive as another process would, with another key."""
    return Archive(archive.store, frame_size=700, object_size=300, workers=2, key=key, older=older or [])


def key_of(manifest: Manifest) -> str:
    return layout.manifest(manifest.system, manifest.target, manifest.id)


async def looked(archive: Archive, target: str = "orders") -> tuple[list[str], list[Doubt]]:
    """Return the ids of the backups that a new process trusts, and its doubts."""
    doubts: list[Doubt] = []
    fresh = again(archive, key=archive.key, older=list(archive.older))
    fresh.witness = archive.witness
    return [manifest.id async for manifest in fresh.manifests(target, doubts=doubts)], doubts


def with_digest(manifest: Manifest, part: str, number: int, data: bytes | None) -> Manifest:
    """Say that an object has another digest, as who could write manifests would."""
    parts = []
    for each in manifest.parts:
        objects = list(each.objects)
        if each.name == part:
            objects[number] = evolve(objects[number], sha256=hashlib.sha256(data or b"").hexdigest())
        parts.append(evolve(each, objects=tuple(objects)))
    return evolve(manifest, parts=tuple(parts))


def replaced(data: bytes) -> Change:
    """Make a change that puts other bytes there."""
    return lambda _: data


@asynccontextmanager
async def exchanged(store: ObjectStore, one: str, other: str) -> AsyncIterator[None]:
    """Have two objects stand in each other's place."""
    first, second = await read(store, one), await read(store, other)
    async with changed(store, one, replaced(second)), changed(store, other, replaced(first)):
        yield


async def test_a_flipped_byte_in_any_frame_is_refused_by_the_name_of_its_object(archive: Archive) -> None:
    manifest = await write(archive, plan())
    async with nothing_left_running():
        for part in manifest.parts:
            for number, stored in enumerate(part.objects):
                data = await read(archive.store, stored.key)
                for at in (sum(stored.frames[:frame]) for frame in range(len(stored.frames))):
                    async with changed(archive.store, stored.key, flipped(at)):
                        with pytest.raises(Corrupt, match=stored.key):
                            await read_all(archive, manifest)
                        with pytest.raises(SealBroken, match=f"{stored.key}: frame"):
                            await read_all(archive, with_digest(manifest, part.name, number, flipped(at)(data)))
    assert await read_all(archive, manifest) == PARTS


async def test_objects_brought_from_another_backup_part_place_or_target_are_refused(archive: Archive) -> None:
    one, two = await write(archive, plan(1)), await write(archive, plan(2))
    elsewhere = await write(archive, plan(3, target="others"))
    first = one.parts[0].objects[0]
    foreign = [two.parts[0].objects[0], elsewhere.parts[0].objects[0], one.parts[0].objects[1]]
    foreign += [part.objects[0] for part in one.parts[1:]]
    for each in foreign:
        async with exchanged(archive.store, first.key, each.key):
            with pytest.raises(Corrupt, match=first.key):
                await read_all(archive, one)
    for each in (two.parts[0].objects[0], elsewhere.parts[0].objects[0], one.parts[0].objects[1]):
        assert each.frames == first.frames
        data = await read(archive.store, each.key)
        async with changed(archive.store, first.key, replaced(data)):
            with pytest.raises(SealBroken, match=f"{first.key}: frame 0 is not what was sealed here"):
                await read_all(archive, with_digest(one, one.parts[0].name, 0, data))


async def test_a_part_cut_off_at_an_object_is_refused_whatever_is_said_of_its_length(archive: Archive) -> None:
    manifest = await write(archive, plan())
    part = manifest.parts[0]
    for kept in range(1, len(part.objects)):
        objects = part.objects[:kept]
        size = sum(len(each.frames) for each in objects) * part.frame_size
        shorter = evolve(manifest, parts=(evolve(part, objects=objects, size=size), *manifest.parts[1:]))
        with pytest.raises(SealBroken, match=objects[-1].key):
            await read_all(archive, shorter)


async def test_objects_in_another_order_are_refused_whatever_their_index_says(archive: Archive) -> None:
    manifest = await write(archive, plan())
    part = manifest.parts[0]
    objects: list[StoredObject] = list(part.objects)
    objects[0], objects[1] = objects[1], objects[0]
    with pytest.raises(SealBroken, match=objects[0].key):
        await read_all(archive, evolve(manifest, parts=(evolve(part, objects=tuple(objects)), *manifest.parts[1:])))


async def test_nothing_of_what_was_backed_up_can_be_found_in_the_store(archive: Archive) -> None:
    plain = b"the secret that nobody shall find in what is stored" * 40
    manifest = await write(archive, plan(), {"part": plain, "again": plain})
    stored = {info.key: await read(archive.store, info.key) for info in await listed(archive.store)}
    assert not any(b"secret" in data for data in stored.values())
    bodies = [stored[each.key] for part in manifest.parts for each in part.objects]
    assert len(set(bodies)) == len(bodies)  # not even that two parts are the same
    assert {manifest.format, manifest.parts[0].number, manifest.parts[1].number} == {2, 0, 1}


async def test_a_part_that_is_stored_again_after_it_failed_is_sealed_with_nonces_of_its_own(archive: Archive) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield content(200)
        raise KeyError("the source failed")

    async with archive.draft(plan()) as draft:
        with pytest.raises(KeyError):
            await draft.store(Part(name="one", chunks=failing()))
        await draft.store(Part(name="two", chunks=slowly(content(5000))))
        manifest = await draft.publish(CAPTURED)
    assert [part.number for part in manifest.parts] == [1]
    assert await read_all(archive, manifest) == {"two": content(5000)}


async def test_a_backup_that_somebody_without_the_key_adds_is_not_trusted(archive: Archive, other: KeyFile) -> None:
    trusted = await write(archive, plan(1))
    forger = small_archive(MemoryStore(), key=other)
    forged = await write(forger, plan(2))
    planted = [info.key for info in await listed(forger.store) if forged.id in info.key or "/keys/" in info.key]
    for each in planted:
        await archive.store.put(each, [await read(forger.store, each)])
    plain = evolve(trusted, id=plan(3).id, format=1, sealing=None)
    await archive.store.put(key_of(plain), [wrap(plain)])

    found, doubts = await looked(archive)
    assert found == [trusted.id]
    assert [doubt.backup for doubt in doubts] == [forged.id, plain.id]
    assert other.id in doubts[0].text and "not sealed" in doubts[1].text
    with pytest.raises(SealBroken, match=f"{key_of(plain)}: it is not sealed"):
        async with archive.open(plain):
            pass
    with pytest.raises(SealBroken):
        await archive.manifest("orders", plain.id)


async def test_a_seal_of_another_record_opens_nothing(archive: Archive) -> None:
    one, two = await write(archive, plan(1)), await write(archive, plan(2, target="others"))
    first = await read(archive.store, key_of(one))
    elsewhere = [key_of(evolve(one, id=plan(3).id)), key_of(evolve(one, target="others"))]
    for each in elsewhere:
        await archive.store.put(each, [first])
    for target, doubted in (("orders", elsewhere[0]), ("others", elsewhere[1])):
        found, doubts = await looked(archive, target)
        assert found == [one.id if target == "orders" else two.id]
        assert doubted in [doubt.subject for doubt in doubts]


async def test_an_older_manifest_in_the_place_of_a_newer_one_is_refused_and_the_newer_one_missed(
    archive: Archive,
) -> None:
    old, new = await write(archive, plan(1)), await write(archive, plan(2))
    data = await read(archive.store, key_of(old))
    async with changed(archive.store, key_of(new), replaced(data)):
        found, doubts = await looked(archive)
    assert found == [old.id]
    assert [(doubt.backup, doubt.subject) for doubt in doubts] == [(new.id, key_of(new))]
    assert "seal is broken" in doubts[0].text


async def hide(archive: Archive, manifest: Manifest, *, runs: bool) -> None:
    """Delete a manifest, and with `runs` every trace of the run too."""
    await archive.store.delete(key_of(manifest))
    if runs:
        for info in await listed(archive.store, layout.runs(*WHOSE) + manifest.id):
            await archive.store.delete(info.key)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("runs", [False, True])
async def test_a_hidden_backup_is_missed(archive: Archive, number: int, runs: bool) -> None:
    written = [await write(archive, plan(each)) for each in (1, 2, 3)]
    hidden = written.pop(number - 1)
    await hide(archive, hidden, runs=runs)
    found, doubts = await looked(archive)
    assert found == [each.id for each in written]
    if number == 3 and runs:
        assert doubts == []  # the newest, with all its traces: that takes a witness
        return
    assert [doubt.backup for doubt in doubts] == [hidden.id]
    assert "hidden" in doubts[0].text and "not in the archive" in doubts[0].text
    with pytest.raises(SealBroken, match=hidden.id):
        await archivers.listed(archive)


async def test_a_backup_that_is_published_while_the_archive_is_listed_is_not_missed(archive: Archive) -> None:
    await write(archive, plan(1))
    doubts: list[Doubt] = []
    async for _ in again(archive, key=archive.key).manifests("orders", doubts=doubts):
        if len(await listed(archive.store, layout.manifests(*WHOSE))) == 1:
            await write(archive, plan(2))
    assert doubts == []


async def test_a_witness_misses_the_newest_backup_though_every_trace_of_it_is_gone(archive: Archive) -> None:
    archive.witness = MemoryStore()
    for each in (1, 2):
        newest = await write(archive, plan(each))
    assert await looked(archive) == ([plan(1).id, newest.id], [])
    await hide(archive, newest, runs=True)
    assert [doubt.backup for doubt in (await looked(archive))[1]] == [newest.id]
    await hide(archive, evolve(newest, id=plan(1).id), runs=True)
    assert newest.id in [doubt.backup for doubt in (await looked(archive))[1]]


async def test_a_witness_that_does_not_answer_stops_no_backup(
    archive: Archive, caplog: pytest.LogCaptureFixture
) -> None:
    async def away(operation: str, key: str) -> None:
        raise OSError("nobody there")

    archive.witness = WatchedStore(MemoryStore(), away)
    manifest = await write(archive, plan())
    found, doubts = await looked(archive)
    assert (found, [doubt.backup for doubt in doubts]) == ([manifest.id], [None])
    assert "the witness could not be asked whether a newer backup was hidden: nobody there" in doubts[0].text
    assert await archivers.listed(archive) == [manifest.id]
    assert [record.message for record in caplog.records] == [
        f"that {manifest.id} was published is not recorded: nobody there"
    ]


async def test_backups_taken_at_once_are_all_missed_when_they_are_hidden(archive: Archive) -> None:
    first = await write(archive, plan(1))
    async with archive.draft(plan(2)) as one, archive.draft(plan(3)) as two:
        manifests = await asyncio.gather(two.publish(CAPTURED), one.publish(CAPTURED))
    for each in manifests:
        assert [before.id for before in each.predecessors] == [first.id]
    last = await write(archive, plan(4))
    assert [each.id for each in last.predecessors] == [plan(2).id, plan(3).id]
    assert [each.id for each in (await write(archive, plan(5))).predecessors] == [last.id]
    for each in manifests:
        async with changed(archive.store, key_of(each), gone):
            await hide(archive, each, runs=True)
            assert each.id in [doubt.backup for doubt in (await looked(archive))[1]]


async def test_a_backup_that_ran_long_is_missed_when_it_is_hidden_though_many_were_planned_after_it(
    archive: Archive,
) -> None:
    async with archive.draft(plan(1)) as slow:
        for each in range(2, 8):
            await write(archive, plan(each))
        long = await slow.publish(CAPTURED)
    last = await write(archive, plan(8))
    assert [each.id for each in last.predecessors] == [long.id]
    await hide(archive, long, runs=True)
    assert [doubt.backup for doubt in (await looked(archive))[1]] == [long.id]


@pytest.mark.parametrize("witnessed", [False, True])
async def test_a_backup_that_ran_for_days_is_missed_when_it_is_hidden_before_another_was_taken(
    archive: Archive, witnessed: bool
) -> None:
    archive.witness = MemoryStore() if witnessed else None
    async with archive.draft(plan(1)) as slow:
        await write(archive, plan(3 * 24 * 60))
        long = await slow.publish(CAPTURED)
    await hide(archive, long, runs=witnessed)
    fresh, doubts = again(archive, key=archive.key), list[Doubt]()
    fresh.witness, fresh.clock = archive.witness, lambda: MOMENT + timedelta(days=4)
    assert [each.id async for each in fresh.manifests("orders", doubts=doubts)] == [plan(3 * 24 * 60).id]
    assert [doubt.backup for doubt in doubts] == [long.id]


async def test_what_was_retired_by_who_may_is_not_missed(archive: Archive) -> None:
    written = [await write(archive, plan(each)) for each in (1, 2, 3)]
    for each in (written[1], written[2]):
        await archive.retire(each)
    assert await looked(archive) == ([plan(1).id], [])
    follower = await write(archive, plan(4))
    assert [each.id for each in follower.predecessors] == [plan(1).id]
    await archive.retire(written[0])
    assert await looked(archive) == ([plan(4).id], [])


async def test_the_records_of_many_retired_backups_are_read_at_once_and_each_once(archive: Archive) -> None:
    written = [await write(archive, plan(each), {}) for each in range(1, 21)]
    for each in written[::2]:
        await archive.retire(each)
    running, most, asked = 0, 0, list[str]()

    async def watched(operation: str, key: str) -> None:
        nonlocal running, most
        if operation == "get" and "/retired/" in key:
            asked.append(key)
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.01)
            running -= 1

    slow = again(Archive(WatchedStore(archive.store, watched)), key=archive.key)
    doubts: list[Doubt] = []
    assert [each.id async for each in slow.manifests("orders", doubts=doubts)] == [each.id for each in written[1::2]]
    assert (doubts, len(asked), len(set(asked)), most) == ([], 10, 10, 10)


async def test_nobody_without_the_key_can_say_that_a_backup_was_retired(archive: Archive, other: KeyFile) -> None:
    hidden, last = await write(archive, plan(1)), await write(archive, plan(2))
    forger = small_archive(MemoryStore(), key=other)
    await forger.retire(await write(forger, plan(1)))
    await hide(archive, hidden, runs=True)
    for each in [info.key for info in await listed(forger.store) if "/retired/" in info.key or "/keys/" in info.key]:
        await archive.store.put(each, [await read(forger.store, each)])
    found, doubts = await looked(archive)
    assert (found, [doubt.backup for doubt in doubts]) == ([last.id], [hidden.id])


async def test_a_retirement_of_one_backup_says_nothing_about_another(archive: Archive) -> None:
    written = [await write(archive, plan(each)) for each in (1, 2, 3)]
    await archive.retire(written[0])
    record = await read(archive.store, layout.retired(*WHOSE, written[0].id))
    await archive.store.put(layout.retired(*WHOSE, written[1].id), [record])
    await hide(archive, written[1], runs=True)
    assert [doubt.backup for doubt in (await looked(archive))[1]] == [written[1].id]


async def test_without_its_key_an_archive_is_listed_and_nothing_else(archive: Archive, key: KeyFile) -> None:
    manifest = await write(archive, plan())
    unkeyed = again(archive, key=None)
    assert [each async for each in unkeyed.manifests("orders")] == [manifest]
    with pytest.raises(KeyMissing, match=rf"it takes the key {key.id} \(give the archive this key"):
        async with unkeyed.open(manifest):
            pass
    destination = MemoryDestination()
    with pytest.raises(KeyMissing):
        await restore(unkeyed, "orders", into=destination)
    assert destination.values == {}
    with pytest.raises(KeyMissing, match=r"write to orders: what is there is sealed"):
        await write(unkeyed, plan(2))
    with pytest.raises(KeyMissing):
        await rotate(unkeyed, "orders")
    assert await archivers.listed(archive) == [manifest.id]


async def test_with_another_key_nothing_is_trusted_and_the_right_one_is_named(
    archive: Archive, key: KeyFile, other: KeyFile
) -> None:
    manifest = await write(archive, plan())
    wrong = again(archive, key=other)
    with pytest.raises(KeyMissing, match=f"{key_of(manifest)}: .*it takes the key {key.id}"):
        await archivers.listed(wrong)
    doubts: list[Doubt] = []
    assert [each async for each in wrong.manifests("orders", doubts=doubts)] == []
    assert key.id in doubts[0].text
    with pytest.raises((KeyMissing, NoBackup, Refused)):
        await restore(wrong, "orders", into=MemoryDestination())
    async with archive.open(manifest) as backup:
        assert not [each async for each in backup.examine(Level.CHECKSUMS) if each.problem]


async def test_rotation_adds_wrapped_keys_and_rewrites_nothing(archive: Archive, key: KeyFile, other: KeyFile) -> None:
    manifests = [await write(archive, plan(each)) for each in (1, 2)]
    before = {info.key: await read(archive.store, info.key) for info in await listed(archive.store)}
    rotating = again(archive, key=other, older=[key])
    assert await archivers.listed(rotating) == [each.id for each in manifests]
    wrapped = [each.name async for each in rotating.rewrap("orders") if each.added]
    assert len(wrapped) == 3  # of two backups, and of the records

    after = {info.key: await read(archive.store, info.key) for info in await listed(archive.store)}
    assert {name: data for name, data in after.items() if name in before} == before
    assert {layout.wrapped(name) for name in after.keys() - before.keys()} == {(name, other.id) for name in wrapped}
    alone = again(archive, key=other)
    assert [await read_all(alone, each) for each in manifests] == [PARTS, PARTS]
    last = await write(alone, plan(3))
    assert await archivers.listed(alone) == [*(each.id for each in manifests), last.id]
    with pytest.raises(KeyMissing, match=other.id):  # what is written now the old key does not open
        async with archive.open(last):
            pass


async def test_a_data_key_that_was_changed_moved_or_is_gone_is_named(archive: Archive) -> None:
    one, two = await write(archive, plan(1)), await write(archive, plan(2))
    assert archive.key is not None and one.sealing is not None and two.sealing is not None
    keys = [layout.wrapped_key(*WHOSE, each.key, archive.key.id) for each in (one.sealing, two.sealing)]
    async with exchanged(archive.store, *keys):
        with pytest.raises(SealBroken, match=f"{keys[0]}: this data key was changed, moved, or made by somebody"):
            await read_all(again(archive, key=archive.key), one)
    size = len(await read(archive.store, keys[0]))
    for at in range(0, size, 7):
        async with changed(archive.store, keys[0], flipped(at)):
            with pytest.raises((SealBroken, ManifestInvalid), match=keys[0]):
                await read_all(again(archive, key=archive.key), one)
    async with changed(archive.store, keys[0], gone):
        with pytest.raises(ObjectMissing, match="this data key is gone"):
            await read_all(again(archive, key=archive.key), one)
    for name in ("../../x", two.sealing.key, one.sealing.key.replace("backup-", "log-")):
        with pytest.raises(SealBroken, match="not sealed with the data key of this backup"):
            await read_all(archive, evolve(one, sealing=evolve(one.sealing, key=name)))


async def test_of_who_has_stolen_a_key_that_was_replaced_since_no_new_backup_is_restored(
    archive: Archive, key: KeyFile, other: KeyFile
) -> None:
    old = await write(archive, plan(1))
    rotating = again(archive, key=other, older=[key])
    assert not [each.problem async for each in rotating.rewrap("orders") if each.problem]
    thief = small_archive(MemoryStore(), key=key)  # and he has a copy of all that was there
    for info in await listed(archive.store):
        await thief.store.put(info.key, [await read(archive.store, info.key)])
    for backup, how in ((await write(thief, plan(2)), None), (evolve(old, id=plan(3).id), old.sealing)):
        forged = evolve(backup, sealing=how or backup.sealing)
        name = key_of(forged)
        sealed = await thief._records(*WHOSE).wrapped(name, forged)
        await archive.store.put(name, [sealed])
        for info in await listed(thief.store, layout.data_keys(*WHOSE)):
            with suppress(AlreadyExists):
                await archive.store.put(info.key, [await read(thief.store, info.key)])
    honest = again(archive, key=other)
    doubts: list[Doubt] = []
    found = [each async for each in honest.manifests("orders", doubts=doubts)]
    assert [each.id for each in found] == [old.id, plan(2).id]
    assert [doubt.backup for doubt in doubts] == [plan(3).id]
    assert "not sealed with the data key of this backup" in doubts[0].text
    with pytest.raises(KeyMissing, match=key.id):
        await read_all(honest, found[1])
    destination = MemoryDestination()
    with pytest.raises(Refused):
        await restore(honest, "orders", into=destination)
    assert destination.values == {}


async def test_who_has_no_key_cannot_make_an_archive_use_a_key_of_his(archive: Archive, other: KeyFile) -> None:
    forger = small_archive(MemoryStore(), key=other)
    await write(forger, plan(9))
    assert archive.key is not None
    for info in await listed(forger.store, layout.data_keys(*WHOSE)):
        for kek in (other.id, archive.key.id):
            await archive.store.put(info.key.replace(other.id, kek), [await read(forger.store, info.key)])
    manifest = await write(archive, plan(1))
    assert manifest.sealing is not None
    sealed = [info.key for info in await listed(archive.store, layout.data_keys(*WHOSE) + "records-")]
    assert len(sealed) == 3  # the forged one was not taken for ours
    assert await read_all(again(archive, key=archive.key), manifest) == PARTS


async def test_what_restores_measured_is_believed_only_if_it_is_sealed(archive: Archive) -> None:
    await write(archive, plan())
    await archive.remember(archivers.measured(1))
    forged = archivers.measured(2)
    await archive.store.put(layout.restore(forged.system, forged.target, forged.id), [wrap(forged)])
    with pytest.raises(SealBroken, match=forged.id):
        await archive.measured("orders")
    assert await again(archive, key=None).measured("orders") == (forged, archivers.measured(1))


async def test_a_digest_is_enough_to_see_without_the_key_that_an_object_was_changed(archive: Archive) -> None:
    manifest = await write(archive, plan())
    for part in manifest.parts:
        for stored in part.objects:
            data = await read(archive.store, stored.key)
            assert hashlib.sha256(data).hexdigest() == stored.sha256 and len(data) == sum(stored.frames)
