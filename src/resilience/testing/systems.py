"""The conformance suite of systems: what targets and destinations promise, one test a promise."""

# ruff: noqa: D102  # the names of the tests are the promises

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import ClassVar, Generic, TypeVar

import pytest

from resilience.archive import Archive
from resilience.concurrency import closing
from resilience.model.errors import Corrupt, DestinationNotEmpty
from resilience.model.events import Event
from resilience.model.ids import checked_name, new_id
from resilience.model.manifests import Manifest
from resilience.model.moments import utc_now
from resilience.model.plans import BackupPlan, RestorePlan
from resilience.model.positions import RecoveryPoint
from resilience.model.targets import RecoveryTarget
from resilience.operations.backup import backup
from resilience.operations.restore import restore
from resilience.planning.backup import plan_backup
from resilience.planning.restore import plan_restore
from resilience.primitives import BackupTarget, RestoreDestination
from resilience.stores import MemoryStore

from .cancellation import Attempt, cancellations, nothing_left_running
from .faults import Change, changed, flipped, gone, truncated

Live = TypeVar("Live")
SETTLE_ATTEMPTS = 500


class RoundTripSuite(Generic[Live]):
    """Subclass it, override the fixtures and the methods below them, and pytest proves every promise on your system.

    `target` has something to back up, `destination` is empty and takes the target's kind of backup. Cancelling at each
    of a thousand await points of a real system takes too long: `capture_step` and `apply_step` skip some.
    """

    capture_step: ClassVar[int] = 1
    apply_step: ClassVar[int] = 1

    @pytest.fixture
    def target(self) -> BackupTarget:
        """Make a target that has something to back up."""
        raise NotImplementedError("override the fixture `target`")

    @pytest.fixture
    def destination(self) -> RestoreDestination[Live]:
        """Make an empty destination."""
        raise NotImplementedError("override the fixture `destination`")

    @pytest.fixture
    def archive(self) -> Archive:
        """Make an empty archive."""
        return Archive(MemoryStore())

    async def state(self, target: BackupTarget) -> object:
        """Return all of a target that a survey or an aborted capture could have changed: backup mode, slots, files."""
        raise NotImplementedError("override `state`")

    async def content(self, destination: RestoreDestination[Live]) -> object:
        """Return all of a destination that a survey or a refused restore could have changed."""
        raise NotImplementedError("override `content`")

    async def occupy(self, destination: RestoreDestination[Live]) -> None:
        """Put something into the destination that is not ours."""
        raise NotImplementedError("override `occupy`")

    async def startable(self, destination: RestoreDestination[Live]) -> bool:
        """Say whether what is in the destination could be started, also without this library."""
        raise NotImplementedError("override `startable`")

    async def whole(self, destination: RestoreDestination[Live]) -> bool:
        """Say whether nothing in the destination is half done any more, even if the restore has not returned yet."""
        return await self.startable(destination)

    async def check(self, target: BackupTarget, live: Live) -> None:
        """Raise AssertionError unless the running server holds what the target holds."""
        raise NotImplementedError("override `check`")

    @asynccontextmanager
    async def archiving(self, target: BackupTarget, archive: Archive) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Archive the target's log while entered. What is yielded changes the target and waits until that is archived.

        Override it unless the system has no log.
        """
        pytest.skip(f"{target.name} has no log for {archive}")
        yield _nothing

    async def test_names_can_be_part_of_keys_and_systems_agree(
        self, target: BackupTarget, destination: RestoreDestination[Live]
    ) -> None:
        facts = await target.survey()
        assert checked_name(target.name) == facts.target == target.name
        assert checked_name(target.system) == facts.system == target.system == destination.system
        assert facts.kind in destination.accepts
        assert facts.lineage

    async def test_surveying_a_target_writes_nothing(self, target: BackupTarget) -> None:
        before = await self.state(target)
        await target.survey()
        assert await self.state(target) == before

    async def test_surveying_a_destination_writes_nothing(
        self, target: BackupTarget, destination: RestoreDestination[Live], archive: Archive
    ) -> None:
        manifest = (await backup(target, archive)).manifest
        before = await self.content(destination)
        facts = await destination.survey([manifest])
        assert facts.empty
        assert await self.content(destination) == before
        await self.occupy(destination)
        assert not (await destination.survey([manifest])).empty

    async def test_what_was_backed_up_comes_back_to_life(
        self, target: BackupTarget, destination: RestoreDestination[Live], archive: Archive
    ) -> None:
        before = await self.state(target)
        taken = await backup(target, archive)
        await self._settled(target, before)
        report = await restore(archive, target.name, into=destination)
        assert isinstance(report.reached, RecoveryPoint)
        assert report.reached.position.offset >= taken.manifest.begins.offset
        assert await self.startable(destination)
        for _ in range(2):
            async with destination.live() as live:
                await self.check(target, live)

    async def test_what_is_logged_after_a_backup_comes_back_unless_the_backup_alone_is_asked_for(
        self, target: BackupTarget, destination: RestoreDestination[Live], archive: Archive
    ) -> None:
        async with self.archiving(target, archive) as change:
            manifest = (await backup(target, archive)).manifest
            await change()
        assert manifest.kind in destination.replays
        told: list[Event] = []
        report = await restore(archive, target.name, into=destination, observer=told.append)
        assert report.reached.position.offset > manifest.recovery_point.position.offset
        assert report.replayed > 0
        assert any(event.text.startswith("replayed to") for event in told)
        assert told[-1].done == told[-1].total
        async with destination.live() as live:
            await self.check(target, live)
        await destination.discard()
        await restore(archive, target.name, into=destination, until=RecoveryTarget.backup(manifest.id))
        async with destination.live() as live:
            with pytest.raises(AssertionError):
                await self.check(target, live)

    async def test_a_damaged_log_is_refused_before_the_destination_could_start(
        self, target: BackupTarget, destination: RestoreDestination[Live], archive: Archive
    ) -> None:
        async with self.archiving(target, archive) as change:
            manifest = (await backup(target, archive)).manifest
            await change()
        keys = [info.key async for info in archive.store.list(f"{target.system}/{target.name}/")]
        entries = [key for key in keys if key.split("/")[2] in ("log", "slices")]
        assert entries
        async with nothing_left_running(), changed(archive.store, entries[-1], flipped(-1)):
            with pytest.raises(Corrupt, match=entries[-1]):
                await restore(archive, target.name, into=destination)
            assert not await self.startable(destination)
        await destination.discard()
        assert (await destination.survey([manifest])).empty

    @pytest.mark.parametrize("parts", [0, 1, None], ids=["before the first part", "in a part", "before finishing"])
    async def test_leaving_a_capture_early_aborts_it(self, target: BackupTarget, parts: int | None) -> None:
        before = await self.state(target)
        async with nothing_left_running():
            await self._begin(target, parts)
            await self._settled(target, before)

    async def test_an_error_in_a_capture_aborts_it(self, target: BackupTarget) -> None:
        before = await self.state(target)

        async def fail() -> None:
            async with target.capture(await self._plan(target)):
                raise KeyError("why")

        async with nothing_left_running():
            with pytest.raises(KeyError, match="why"):
                await fail()
            await self._settled(target, before)

    async def test_a_capture_can_be_cancelled_anywhere(self, target: BackupTarget) -> None:
        before = await self.state(target)
        async with nothing_left_running():
            for attempt in cancellations(step=self.capture_step):
                await attempt(self._begin(target, None))
                await self._settled(target, before)

    async def test_two_captures_at_once_do_not_disturb_each_other(
        self, target: BackupTarget, destination: RestoreDestination[Live], archive: Archive
    ) -> None:
        reports = await asyncio.gather(backup(target, archive), backup(target, archive))
        ids = {report.manifest.id for report in reports}
        assert {manifest.id async for manifest in archive.manifests(target.name)} == ids
        for each in ids:
            await restore(archive, target.name, into=destination, until=RecoveryTarget.backup(each))
            async with destination.live() as live:
                await self.check(target, live)
            await destination.discard()

    async def test_a_destination_that_is_not_empty_is_refused_and_not_touched(
        self, target: BackupTarget, destination: RestoreDestination[Live], archive: Archive
    ) -> None:
        manifest = (await backup(target, archive)).manifest
        plan = await self._restore_plan(destination, manifest)
        await self.occupy(destination)
        before = await self.content(destination)
        with pytest.raises(DestinationNotEmpty):
            await restore(archive, target.name, into=destination)
        with pytest.raises(DestinationNotEmpty):
            await self._apply(destination, archive, manifest, plan)
        assert await self.content(destination) == before

    async def test_a_restore_cancelled_anywhere_cannot_start_and_can_be_discarded(
        self, target: BackupTarget, destination: RestoreDestination[Live], archive: Archive
    ) -> None:
        manifest = (await backup(target, archive)).manifest
        plan = await self._restore_plan(destination, manifest)
        async with nothing_left_running():
            for attempt in cancellations(step=self.apply_step):
                await self._interrupted(attempt, destination, archive, manifest, plan)
        await restore(archive, target.name, into=destination)
        async with destination.live() as live:
            await self.check(target, live)

    @pytest.mark.parametrize("change", [flipped(-1), truncated(-1), gone], ids=["flipped", "truncated", "gone"])
    async def test_a_damaged_backup_is_refused_before_the_destination_could_start(
        self, target: BackupTarget, destination: RestoreDestination[Live], archive: Archive, change: Change
    ) -> None:
        manifest = (await backup(target, archive)).manifest
        for part in manifest.parts:
            key = part.objects[-1].key
            async with nothing_left_running(), changed(archive.store, key, change):
                with pytest.raises(Corrupt, match=key):
                    await restore(archive, target.name, into=destination)
                assert not await self.startable(destination)
            await destination.discard()
        await restore(archive, target.name, into=destination)

    async def test_discarding_may_be_repeated_and_leaves_the_destination_empty(
        self, target: BackupTarget, destination: RestoreDestination[Live], archive: Archive
    ) -> None:
        before = await self.content(destination)
        await destination.discard()
        report = await backup(target, archive)
        await restore(archive, target.name, into=destination)
        for _ in range(2):
            await destination.discard()
            assert not await self.startable(destination)
            assert (await destination.survey([report.manifest])).empty
        assert await self.content(destination) == before

    async def _begin(self, target: BackupTarget, parts: int | None) -> None:
        """Read one chunk of so many parts, or all there is of all parts, and leave."""
        async with target.capture(await self._plan(target)) as capture, closing(capture.parts()) as begun:
            for _ in range(parts or 0):
                async with closing((await anext(begun)).chunks) as chunks:
                    await anext(chunks, None)
            if parts is None:
                async for part in begun:
                    async for _chunk in part.chunks:
                        pass

    async def _settled(self, target: BackupTarget, before: object) -> None:
        """Wait until the target is as it was: a server notices a moment later that its client has left."""
        for _ in range(SETTLE_ATTEMPTS):
            if await self.state(target) == before:
                return
            await asyncio.sleep(0.01)
        assert await self.state(target) == before

    async def _interrupted(
        self,
        attempt: Attempt,
        destination: RestoreDestination[Live],
        archive: Archive,
        manifest: Manifest,
        plan: RestorePlan,
    ) -> None:
        completed = await attempt(self._apply(destination, archive, manifest, plan))
        starts = await self.startable(destination)
        assert starts or not completed
        assert await self.whole(destination) or not starts
        await destination.discard()
        assert (await destination.survey([manifest])).empty

    async def _plan(self, target: BackupTarget) -> BackupPlan:
        now = utc_now()
        return plan_backup(await target.survey(), id=new_id(now), now=now)

    async def _restore_plan(self, destination: RestoreDestination[Live], manifest: Manifest) -> RestorePlan:
        return plan_restore([manifest], await destination.survey([manifest]))

    async def _apply(
        self, destination: RestoreDestination[Live], archive: Archive, manifest: Manifest, plan: RestorePlan
    ) -> None:
        async with archive.open(manifest) as stored:
            await destination.apply(plan, chain=[stored])


async def _nothing() -> None:
    """Change nothing."""
