"""restore() and coverage(), on a system in memory."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from attrs import evolve

from resilience import Archive, backup, coverage, restore
from resilience.model.errors import DestinationNotEmpty, DiskTooSmall, NoBackup
from resilience.model.events import Event
from resilience.model.facts import DestinationFacts
from resilience.model.findings import Finding
from resilience.model.manifests import Manifest
from resilience.model.targets import RecoveryTarget
from resilience.testing.memory import MemoryDestination, MemoryTarget

from .faults import VALUES, small_archive

MOMENT = datetime(2026, 11, 21, 20, 30, tzinfo=UTC)

ABSENT = "20200101T000000.000Z-000000"


async def backed_up(archive: Archive, number: int = 1) -> Manifest:
    """Back up a value that says which backup it is of, a minute after the one before."""
    values = {**VALUES, "number": str(number).encode()}
    target = MemoryTarget("orders", values, revision=number, chunk_size=1024)
    report = await backup(target, archive, clock=lambda: MOMENT + timedelta(minutes=number))
    return report.manifest


async def test_the_newest_backup_is_restored_unless_another_is_named() -> None:
    archive = small_archive()
    taken = [await backed_up(archive, number) for number in (1, 2, 3)]
    for name, number in ((None, 3), (taken[0].id, 1), (taken[2].id, 3)):
        destination = MemoryDestination()
        report = await restore(
            archive, "orders", into=destination, until=None if name is None else RecoveryTarget.backup(name)
        )
        assert destination.values == {**VALUES, "number": str(number).encode()}
        assert report.manifest == taken[number - 1]
        assert report.reached == taken[number - 1].recovery_point
        assert report.destination == "memory"
        text = str(report)
        assert text.startswith(f"restored orders {taken[number - 1].id} into memory: 7.8 KiB, ")
        assert text.endswith(f"; reached {number} on 1")


async def test_a_backup_that_is_not_there_is_said_to_be_missing_and_which_there_is() -> None:
    archive = small_archive()
    with pytest.raises(NoBackup, match="restore orders: the archive holds no backup of it"):
        await restore(archive, "orders", into=MemoryDestination())
    newest = await backed_up(archive)
    with pytest.raises(NoBackup, match=f"there is no backup {ABSENT} .the newest is {newest.id}"):
        await restore(archive, "orders", into=MemoryDestination(), until=RecoveryTarget.backup(ABSENT))


@pytest.mark.parametrize(("system", "accepts"), [("other", ("base",)), ("memory", ("dump",))])
async def test_a_destination_for_another_kind_of_backup_is_refused(system: str, accepts: tuple[str, ...]) -> None:
    archive = small_archive()
    await backed_up(archive)
    another = type("Another", (MemoryDestination,), {"system": system, "accepts": accepts})()
    sentence = f"the archive holds only memory base, the destination takes {system} {accepts[0]}"
    with pytest.raises(NoBackup, match=sentence):
        await restore(archive, "orders", into=another)
    assert another.values == {}


async def test_a_destination_that_is_too_small_is_refused_and_not_touched() -> None:
    archive, destination = small_archive(), MemoryDestination(room=5000)
    await backed_up(archive)
    with pytest.raises(DiskTooSmall, match=r"restore orders: memory has 4.9 KiB free and needs 7.8 KiB \(make room"):
        await restore(archive, "orders", into=destination)
    assert destination.values == {}


async def test_a_destination_that_is_not_empty_is_refused_with_advice() -> None:
    archive, destination = small_archive(), MemoryDestination()
    await backed_up(archive)
    destination.values["theirs"] = b"data"
    with pytest.raises(DestinationNotEmpty, match=r"memory is not empty \(choose an empty place or empty this one"):
        await restore(archive, "orders", into=destination)
    assert destination.values == {"theirs": b"data"}


async def test_progress_is_told_in_plain_bytes_up_to_their_total() -> None:
    archive = small_archive()
    manifest = await backed_up(archive)
    events: list[Event] = []
    await restore(archive, "orders", into=MemoryDestination(), observer=events.append)
    assert [events[0].stage, events[-1].stage] == ["started", "completed"]
    assert {event.stage for event in events[1:-1]} == {"progress"}
    assert (events[-1].done, events[-1].total) == (manifest.size, manifest.size)
    assert {event.operation for event in events} == {"restore"}


async def test_what_the_destination_found_stands_in_the_report() -> None:
    class Slow(MemoryDestination):
        async def survey(self, chain: Sequence[Manifest]) -> DestinationFacts:
            finding = Finding(severity="warning", subject="memory", text="it is slow")
            return evolve(await super().survey(chain), findings=(finding,))

    archive = small_archive()
    await backed_up(archive)
    report = await restore(archive, "orders", into=Slow())
    assert str(report).endswith("\n  warning: memory: it is slow")


async def test_coverage_tells_every_moment_oldest_first() -> None:
    archive = small_archive()
    nothing = await coverage(archive, "orders")
    assert str(nothing) == "orders: nothing can be restored, the archive holds no backup of it"
    taken = [await backed_up(archive, number) for number in (1, 2)]
    found = await coverage(archive, "orders")
    assert [moment.backup for moment in found.moments] == [manifest.id for manifest in taken]
    assert [moment.point for moment in found.moments] == [manifest.recovery_point for manifest in taken]
    assert str(found) == f"orders: 2 restorable moments\n  1 on 1 (base {taken[0].id})\n  2 on 1 (base {taken[1].id})"
