"""The conformance suite of archivers: what `primitives.Archiver` promises, one test a promise."""

# ruff: noqa: D102  # the names of the tests are the promises

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from resilience.model.capture import Part
from resilience.model.errors import Conflict, Corrupt, ManifestInvalid
from resilience.model.findings import Doubt, Level
from resilience.primitives import Archiver, StoredBackup

from .archiving import CAPTURED, HERE, MOMENT, PARTS, listed, plan, read, read_all, slowly, write
from .cancellation import cancellations, nothing_left_running
from .retiring import RetiringSuite, measured
from .stores import content

__all__ = [
    "CAPTURED",
    "HERE",
    "MOMENT",
    "PARTS",
    "ArchiverSuite",
    "listed",
    "measured",
    "plan",
    "read",
    "read_all",
    "slowly",
    "write",
]


class ArchiverSuite(RetiringSuite):
    """Subclass it, override what `ArchiverHooks` asks for, and pytest proves every promise."""

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
