"""The conformance suite of archivers: what `primitives.Archiver` promises, one test a promise."""

# ruff: noqa: D102  # the names of the tests are the promises

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pytest
from attrs import evolve

from resilience.model.capture import Captured, Part
from resilience.model.errors import Conflict, Corrupt, KeyMissing, ManifestInvalid, Refused
from resilience.model.findings import Doubt, Level
from resilience.model.json import Offset
from resilience.model.manifests import Manifest
from resilience.model.measured import RestoreMeasured
from resilience.model.plans import BackupPlan
from resilience.model.positions import Position, RecoveryPoint
from resilience.primitives import Archiver, StoredBackup

from .cancellation import cancellations, nothing_left_running
from .stores import content

MOMENT = datetime(2026, 11, 21, 20, 30, tzinfo=UTC)
HERE = Position(branch="1", offset=Offset(1 << 60), text="1000000000000000")
CAPTURED = Captured(begins=HERE, recovery_point=RecoveryPoint(position=HERE, time=MOMENT), details={"some": ["detail"]})
PARTS = {"one": content(5000), "two.tar": content(3001, 2), "empty": b""}


def plan(number: int = 1, *, target: str = "orders") -> BackupPlan:
    """Plan the backup of that number; later numbers are planned a minute later each."""
    made_at = MOMENT + timedelta(minutes=number)
    return BackupPlan(
        id=f"{made_at:%Y%m%dT%H%M%S}.000Z-{number:06x}",
        target=target,
        system="memory",
        kind="base",
        lineage="7400000000000000001",
        made_at=made_at,
    )


async def write(archive: Archiver, of: BackupPlan, parts: Mapping[str, bytes] = PARTS) -> Manifest:
    """Write and publish a backup."""
    async with archive.draft(of) as draft:
        for name, data in parts.items():
            await draft.store(Part(name=name, chunks=slowly(data)))
        return await draft.publish(CAPTURED)


async def listed(archive: Archiver, target: str = "orders") -> list[str]:
    """Return the ids of the backups there are."""
    return [manifest.id async for manifest in archive.manifests(target)]


async def read(backup: StoredBackup, part: str) -> bytes:
    """Read a part at once."""
    async with backup.read(part) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def read_all(archive: Archiver, manifest: Manifest) -> dict[str, bytes]:
    """Read all parts of a backup at once."""
    async with archive.open(manifest) as backup:
        return {part.name: await read(backup, part.name) for part in manifest.parts}


async def slowly(data: bytes, size: int = 700) -> AsyncGenerator[bytes]:
    """Yield data in pieces, over time."""
    for start in range(0, len(data), size):
        await asyncio.sleep(0)
        yield data[start : start + size]


def measured(number: int, *, target: str = "orders") -> RestoreMeasured:
    """Return what the restore of that number measured; later numbers are restored a minute later each."""
    ended_at = MOMENT + timedelta(minutes=number)
    return RestoreMeasured(
        id=f"{ended_at:%Y%m%dT%H%M%S}.000Z-{number:06x}",
        target=target,
        system="memory",
        destination="there",
        ended_at=ended_at,
        unpacked=number << 20,
        unpack_seconds=0.5,
        replayed=1 << 60,
        replay_seconds=2.0,
    )


class ArchiverSuite:
    """Subclass it, override the fixture `archive` and the methods below it, and pytest proves every promise.

    `archive` is empty, and cuts a part of some thousand bytes into several objects. `cancel_step` skips await points
    where cancelling at each of them takes too long.
    """

    cancel_step: ClassVar[int] = 1

    @pytest.fixture
    def archive(self) -> Archiver:
        """Make an empty archive."""
        raise NotImplementedError("override the fixture `archive`")

    def again(self, archive: Archiver) -> Archiver:
        """Return another handle to the same backups; the same handle where there can be no other."""
        return archive

    async def outcome(self, archive: Archiver, of: BackupPlan) -> str | None:
        """Say how the attempt ended according to its run record: `running` before that, None without a record."""
        raise NotImplementedError("override `outcome`")

    async def remains(self, archive: Archiver, of: BackupPlan) -> int:
        """Count the stored objects that belong to a backup, its manifest included, records of what happened not."""
        raise NotImplementedError("override `remains`")

    async def damage(self, archive: Archiver, manifest: Manifest, part: str) -> str:
        """Change a byte in the last object of a part, and return what an error has to name."""
        raise NotImplementedError("override `damage`")

    async def spoil(self, archive: Archiver, manifest: Manifest) -> None:
        """Change a byte of a manifest, so that it cannot be used any more."""
        raise NotImplementedError("override `spoil`")

    async def test_an_empty_archive_lists_nothing(self, archive: Archiver) -> None:
        assert await listed(archive) == []

    @pytest.mark.parametrize("size", [0, 1, 699, 700, 5000])
    @pytest.mark.parametrize("pieces", [1, 700, 10_000])
    async def test_what_is_stored_is_read_back(self, archive: Archiver, size: int, pieces: int) -> None:
        data = content(size)
        async with nothing_left_running():
            async with archive.draft(plan()) as draft:
                stored = await draft.store(Part(name="part", chunks=slowly(data, pieces)))
                manifest = await draft.publish(CAPTURED)
            assert stored.size == size
            assert await read_all(self.again(archive), manifest) == {"part": data}

    async def test_the_manifest_is_listed_as_it_was_published(self, archive: Archiver) -> None:
        manifest = await write(archive, plan())
        assert [each async for each in self.again(archive).manifests("orders")] == [manifest]
        assert (manifest.id, manifest.target, manifest.system) == (plan().id, "orders", "memory")
        assert (manifest.kind, manifest.lineage) == ("base", plan().lineage)
        assert (manifest.begins, manifest.recovery_point) == (HERE, CAPTURED.recovery_point)
        assert manifest.details == CAPTURED.details
        assert {part.name: part.size for part in manifest.parts} == {name: len(data) for name, data in PARTS.items()}
        assert manifest.started_at == plan().made_at

    async def test_manifests_come_oldest_first_and_those_of_other_targets_do_not(self, archive: Archiver) -> None:
        for number in (3, 1, 2):
            await write(archive, plan(number))
        await write(archive, plan(4, target="orders2"))
        assert await listed(archive) == [plan(number).id for number in (1, 2, 3)]
        assert await listed(archive, "orders2") == [plan(4).id]
        assert await listed(archive, "order") == []

    @pytest.mark.parametrize("number", [1, 2, 3])
    async def test_a_manifest_that_cannot_be_used_is_a_doubt_and_the_others_are_listed(
        self, archive: Archiver, number: int
    ) -> None:
        written = [await write(archive, plan(each)) for each in (1, 2, 3)]
        spoilt = written.pop(number - 1)
        await self.spoil(archive, spoilt)
        doubts: list[Doubt] = []
        assert [each async for each in self.again(archive).manifests("orders", doubts=doubts)] == written
        assert spoilt.id in [doubt.backup for doubt in doubts]
        assert spoilt.id in str(doubts[0])
        assert all(doubt.text and doubt.subject for doubt in doubts)
        for manifest in written:
            assert await read_all(archive, manifest) == PARTS

    async def test_without_a_list_for_doubts_what_cannot_be_used_stops_the_listing(self, archive: Archiver) -> None:
        first, last = await write(archive, plan(1)), await write(archive, plan(2))
        await self.spoil(archive, last)
        with pytest.raises(Corrupt, match=last.id):
            await listed(self.again(archive))
        doubts: list[Doubt] = []
        assert not [each async for each in archive.manifests("order", doubts=doubts)]
        assert not doubts
        assert await read_all(archive, first) == PARTS

    async def test_nothing_is_listed_before_it_is_published(self, archive: Archiver) -> None:
        async with archive.draft(plan()) as draft:
            assert await self.outcome(archive, plan()) == "running"
            for name, data in PARTS.items():
                await draft.store(Part(name=name, chunks=slowly(data)))
                assert await listed(self.again(archive)) == []
            await draft.publish(CAPTURED)
            assert await listed(self.again(archive)) == [plan().id]
        assert await self.outcome(archive, plan()) == "succeeded"

    async def test_a_backup_is_published_once_and_takes_no_more_parts(self, archive: Archiver) -> None:
        async with archive.draft(plan()) as draft:
            manifest = await draft.publish(CAPTURED)
            with pytest.raises(ValueError, match="publish"):
                await draft.publish(CAPTURED)
            with pytest.raises(ValueError, match="publish"):
                await draft.store(Part(name="late", chunks=slowly(b"data")))
        assert [each async for each in archive.manifests("orders")] == [manifest]

    async def test_two_parts_of_one_name_are_refused(self, archive: Archiver) -> None:
        async with archive.draft(plan()) as draft:
            await draft.store(Part(name="part", chunks=slowly(b"one")))
            with pytest.raises(ValueError, match="part"):
                await draft.store(Part(name="part", chunks=slowly(b"two")))
            manifest = await draft.publish(CAPTURED)
        assert await read_all(archive, manifest) == {"part": b"one"}

    async def test_publishing_never_replaces_a_backup(self, archive: Archiver) -> None:
        first = await write(archive, plan())
        with pytest.raises(Conflict):
            await write(self.again(archive), plan(), {"other": b"data"})
        assert [each async for each in archive.manifests("orders")] == [first]
        assert await read_all(archive, first) == PARTS
        assert await self.outcome(archive, plan()) == "succeeded"

    async def test_two_backups_at_once_are_both_there(self, archive: Archiver) -> None:
        other = {name: data[::-1] for name, data in PARTS.items()}
        one, two = await asyncio.gather(
            write(archive, plan(1)), write(self.again(archive), plan(2), other), return_exceptions=False
        )
        assert await listed(archive) == [one.id, two.id]
        assert await read_all(archive, one) == PARTS
        assert await read_all(archive, two) == other

    async def test_a_draft_that_is_left_publishes_nothing_and_leaves_a_record(self, archive: Archiver) -> None:
        async with nothing_left_running(), archive.draft(plan()) as draft:
            await draft.store(Part(name="part", chunks=slowly(content(5000))))
        assert await listed(archive) == []
        assert await self.outcome(archive, plan()) == "failed"

    async def test_a_source_that_fails_publishes_nothing_and_leaves_a_record(self, archive: Archiver) -> None:
        async def failing() -> AsyncGenerator[bytes]:
            yield content(5000)
            raise KeyError("the source failed")

        async def fail() -> None:
            async with archive.draft(plan()) as draft:
                await draft.store(Part(name="one", chunks=slowly(content(5000))))
                await draft.store(Part(name="two", chunks=failing()))

        async with nothing_left_running():
            with pytest.raises(KeyError, match="the source failed"):
                await fail()
        assert await listed(archive) == []
        assert await self.outcome(archive, plan()) == "failed"

    async def test_a_backup_cancelled_anywhere_is_whole_or_not_listed(self, archive: Archiver) -> None:
        async with nothing_left_running():
            for number, attempt in enumerate(cancellations(step=self.cancel_step)):
                completed = await attempt(write(archive, plan(number)))
                there = [each async for each in self.again(archive).manifests("orders") if each.id == plan(number).id]
                assert there or not completed
                for manifest in there:
                    assert await read_all(archive, manifest) == PARTS
                outcomes = ("succeeded",) if there else ("cancelled", None)
                assert await self.outcome(archive, plan(number)) in outcomes

    async def test_no_byte_is_handed_out_before_it_was_verified(self, archive: Archiver) -> None:
        manifest = await write(archive, plan())
        named = await self.damage(archive, manifest, "one")
        seen = bytearray()

        async def look(backup: StoredBackup) -> None:
            async with backup.read("one") as chunks:
                async for chunk in chunks:
                    seen.extend(chunk)

        async with nothing_left_running(), archive.open(manifest) as backup:
            with pytest.raises(Corrupt, match=named):
                await look(backup)
            assert len(seen) < len(PARTS["one"])
            assert PARTS["one"].startswith(seen)
            assert await read(backup, "two.tar") == PARTS["two.tar"]

    async def test_a_part_that_is_not_there_is_said_to_be_missing(self, archive: Archiver) -> None:
        manifest = await write(archive, plan())
        async with archive.open(manifest) as backup:
            with pytest.raises(ManifestInvalid, match="three"):
                await read(backup, "three")

    async def test_reading_can_be_left_and_cancelled_anywhere(self, archive: Archiver) -> None:
        manifest = await write(archive, plan())

        async def begin() -> None:
            async with archive.open(manifest) as backup, backup.read("one") as chunks:
                await anext(chunks)

        async with nothing_left_running():
            await begin()
            for attempt in cancellations(step=self.cancel_step):
                await attempt(read_all(archive, manifest))

    @pytest.mark.parametrize("level", [Level.EXISTS, Level.CHECKSUMS])
    async def test_examining_a_whole_backup_finds_nothing(self, archive: Archiver, level: Level) -> None:
        manifest = await write(archive, plan())
        async with archive.open(manifest) as backup:
            examined = [each async for each in backup.examine(level)]
        assert [each for each in examined if each.problem] == []
        assert len(examined) >= len(manifest.parts)
        if level == Level.CHECKSUMS:
            assert sum(each.bytes for each in examined) >= manifest.stored

    async def test_examining_names_every_object_that_is_damaged(self, archive: Archiver) -> None:
        manifest = await write(archive, plan())
        named = {await self.damage(archive, manifest, part.name) for part in manifest.parts}
        async with nothing_left_running(), archive.open(manifest) as backup:
            examined = [each async for each in backup.examine(Level.CHECKSUMS)]
        assert {each.key for each in examined if each.problem} == named

    async def test_what_restores_measured_is_kept_newest_first_and_only_the_last_are_returned(
        self, archive: Archiver
    ) -> None:
        assert await archive.measured("orders") == ()
        await write(archive, plan())
        assert await archive.measured("orders") == ()
        for number in (2, 1, 4, 3):
            await archive.remember(measured(number))
        assert await self.again(archive).measured("orders") == tuple(map(measured, (4, 3, 2, 1)))
        assert await archive.measured("orders", last=2) == tuple(map(measured, (4, 3)))
        assert await archive.measured("order") == ()
        assert await listed(archive) == [plan().id]

    async def test_what_a_restore_measured_is_never_replaced(self, archive: Archiver) -> None:
        await write(archive, plan())
        await archive.remember(measured(1))
        with pytest.raises(Conflict):
            await archive.remember(evolve(measured(1), unpacked=7))
        assert await archive.measured("orders") == (measured(1),)

    async def test_keys_are_wrapped_anew_by_who_has_one_and_nothing_is_rewritten(self, archive: Archiver) -> None:
        manifest = await write(archive, plan())
        again = self.again(archive)
        try:
            rewrapped = [each async for each in again.rewrap("orders")]
        except KeyMissing:
            assert manifest.sealing is None
            return
        assert manifest.sealing is not None
        assert manifest.sealing.key in [each.name for each in rewrapped]
        assert [(each.added, each.problem) for each in rewrapped] == [(False, "")] * len(rewrapped)
        assert [each async for each in again.rewrap("others")] == []
        assert await read_all(again, manifest) == PARTS

    async def test_a_retired_backup_is_gone_and_the_others_are_not(self, archive: Archiver) -> None:
        kept, retired = await write(archive, plan(1)), await write(archive, plan(2))
        for _ in range(2):
            await archive.retire(retired)
            assert await listed(self.again(archive)) == [kept.id]
            assert await self.remains(archive, plan(2)) == 0
        assert await read_all(archive, kept) == PARTS

    async def test_a_survey_sees_all_backups_and_attempts_and_writes_nothing(self, archive: Archiver) -> None:
        assert (await archive.survey("orders")).backups == ()
        manifest = await write(archive, plan(1))
        async with archive.draft(plan(2)) as draft:
            await draft.store(Part(name="one", chunks=slowly(PARTS["one"])))
            running = {each.id: each for each in (await archive.survey("orders")).backups}
        ended = {each.id: each for each in (await self.again(archive).survey("orders")).backups}
        assert running[manifest.id] == ended[manifest.id]
        assert ended[manifest.id].bytes > manifest.stored > 0
        assert [each[plan(2).id].running for each in (running, ended)] == [True, False]
        assert [each[plan(2).id].manifest for each in (running, ended)] == [False, False]
        assert await listed(archive) == [manifest.id]

    async def test_what_was_pruned_is_gone_and_may_be_pruned_again(self, archive: Archiver) -> None:
        kept, retired = await write(archive, plan(1)), await write(archive, plan(2))
        for number in range(2):
            async with archive.pruning("orders", id=plan(10 + number).id) as pruning:
                removed = await pruning.retire(retired)
                assert await pruning.added([]) == (kept,)
                assert await pruning.added([kept.id]) == ()
            assert (removed.gone, removed.held) == (True, ())
            assert (removed.objects > 0) == (number == 0)
            assert await self.remains(archive, plan(2)) == 0
        assert await listed(self.again(archive)) == [kept.id]
        assert await read_all(archive, kept) == PARTS

    async def test_what_is_left_of_an_attempt_goes_only_if_nothing_writes_there(self, archive: Archiver) -> None:
        kept = await write(archive, plan(1))
        async with archive.draft(plan(2)) as draft:
            await draft.store(Part(name="one", chunks=slowly(PARTS["one"])))
            (left,) = [each for each in (await archive.survey("orders")).backups if each.id == plan(2).id]
            async with archive.pruning("orders", id=plan(10).id) as pruning:
                assert not (await pruning.abandon(left, quiet=left.newest - timedelta(days=1))).gone
                assert (await pruning.abandon(left, quiet=left.newest + timedelta(days=1))).gone
            with pytest.raises(Conflict, match="given it up"):
                await draft.publish(CAPTURED)
        assert await self.remains(archive, plan(2)) == 0
        assert await listed(archive) == [kept.id]

    async def test_objects_that_a_manifest_names_are_never_abandoned(self, archive: Archiver) -> None:
        kept = await write(archive, plan(1))
        (lies,) = (await archive.survey("orders")).backups
        async with archive.pruning("orders", id=plan(10).id) as pruning:
            assert not (await pruning.abandon(lies, quiet=lies.newest + timedelta(days=1))).gone
        assert await read_all(archive, kept) == PARTS

    async def test_what_others_build_on_is_not_retired_before_them(self, archive: Archiver) -> None:
        parent = await write(archive, plan(1))
        child = await write(archive, evolve(plan(2), kind="incremental", parent=parent.id))
        assert child.parent == parent.id
        with pytest.raises(Refused, match=child.id):
            await archive.retire(parent)
        assert await listed(self.again(archive)) == [parent.id, child.id]
        assert await read_all(archive, parent) == PARTS
        for each in (child, parent):
            await archive.retire(each)
        assert await listed(self.again(archive)) == []

    async def test_a_backup_whose_parent_was_retired_meanwhile_is_not_published(self, archive: Archiver) -> None:
        parent = await write(archive, plan(1))
        async with archive.draft(evolve(plan(2), kind="incremental", parent=parent.id)) as draft:
            await self.again(archive).retire(parent)
            with pytest.raises(Conflict, match=parent.id):
                await draft.publish(CAPTURED)
        assert await listed(archive) == []

    async def test_retiring_cancelled_anywhere_leaves_the_backup_whole_or_not_listed(self, archive: Archiver) -> None:
        async with nothing_left_running():
            for number, attempt in enumerate(cancellations(step=self.cancel_step)):
                manifest = await write(archive, plan(number))
                completed = await attempt(archive.retire(manifest))
                if await listed(self.again(archive)):
                    assert not completed
                    assert await read_all(archive, manifest) == PARTS
                await archive.retire(manifest)
                assert await listed(archive) == []
                assert await self.remains(archive, plan(number)) == 0
