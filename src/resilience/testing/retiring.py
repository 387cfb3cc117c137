"""What `primitives.Archiver` promises of what goes and what is kept about it: retiring, pruning, rotation, records."""

# ruff: noqa: D102  # the names of the tests are the promises

from __future__ import annotations

from datetime import timedelta

import pytest
from attrs import evolve

from resilience.model.capture import Part
from resilience.model.errors import Conflict, KeyMissing, Refused
from resilience.model.measured import RestoreMeasured
from resilience.primitives import Archiver

from .archiving import CAPTURED, MOMENT, PARTS, ArchiverHooks, listed, plan, read_all, slowly, write
from .cancellation import cancellations, nothing_left_running


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


class RetiringSuite(ArchiverHooks):
    """One half of `ArchiverSuite`."""

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

    async def test_a_restore_that_failed_is_kept_and_has_measured_nothing(self, archive: Archiver) -> None:
        await write(archive, plan())
        await archive.remember(measured(1))
        failed = evolve(measured(2), outcome="failed", error="restore orders: there is no room")
        await archive.remember(failed)
        assert await archive.measured("orders") == (measured(1),)
        with pytest.raises(Conflict):
            await archive.remember(evolve(failed, outcome="cancelled"))

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
