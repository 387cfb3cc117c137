"""One backup whose manifest cannot be used stops nothing that does not need it, and hides nothing that does."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from resilience import Archive, backup, coverage, plan_restore, restore, verify
from resilience.archive import layout
from resilience.keys import KeyFile
from resilience.model.errors import NotRecoverable
from resilience.model.events import Event
from resilience.model.findings import Doubt, Finding, Level
from resilience.model.ids import planned_at
from resilience.model.log import Watermark
from resilience.model.manifests import Manifest
from resilience.model.targets import RecoveryTarget as Until
from resilience.operations.doctor import doctor
from resilience.planning.doubts import MANY, as_findings
from resilience.stores import MemoryStore
from resilience.testing.archivers import measured, plan
from resilience.testing.faults import change, flipped
from resilience.testing.memory import MemoryDestination, MemoryTarget
from resilience.testing.stores import read

from .faults import VALUES, small_archive
from .histories import History, at, usual
from .test_doctor import ASKED, HOURLY
from .test_operations_incremental import orders as incremental_orders
from .test_planning_health import NOW

MOMENT = datetime(2026, 11, 21, 20, 30, tzinfo=UTC)
DIGEST = "cannot be used: its digest does not match its content"


def key_of(manifest: Manifest) -> str:
    return layout.manifest(manifest.system, manifest.target, manifest.id)


async def spoil(archive: Archive, *manifests: Manifest) -> None:
    for manifest in manifests:
        await change(archive.store, key_of(manifest), flipped(-100))


async def backed_up(archive: Archive, number: int) -> Manifest:
    """Back up a value that says which backup it is of, a minute after the one before."""
    target = MemoryTarget("orders", {**VALUES, "number": str(number).encode()}, revision=number)
    return (await backup(target, archive, clock=lambda: MOMENT + timedelta(minutes=number))).manifest


async def restored(archive: Archive, until: Until | datetime | None = None) -> tuple[bytes, tuple[Finding, ...]]:
    """Restore, and return the value that says what it is, and the findings."""
    destination = MemoryDestination()
    report = await restore(archive, "orders", into=destination, until=until)
    planned = await plan_restore(archive, "orders", into=MemoryDestination(), until=until)
    assert {str(each) for each in planned.findings} == {str(each) for each in report.findings}
    return destination.values.get("number") or destination.values["minute"], report.findings


async def refused(archive: Archive, until: Until | datetime | None = None) -> str:
    """Ask for what is refused before anything is touched, and return the sentence."""
    destination, events = MemoryDestination(), list[Event]()
    with pytest.raises(NotRecoverable) as error:
        await restore(archive, "orders", into=destination, until=until, observer=events.append)
    with pytest.raises(NotRecoverable):
        await plan_restore(archive, "orders", into=MemoryDestination(), until=until)
    assert destination.values == {}
    assert events[-1].text == str(error.value)
    return str(error.value)


def subjects(findings: Sequence[Finding]) -> list[tuple[str, str]]:
    return [(finding.severity, finding.subject) for finding in findings]


async def test_a_damaged_manifest_of_an_older_backup_is_told_and_stops_nothing() -> None:
    archive = small_archive()
    first, damaged, newest = [await backed_up(archive, number) for number in (1, 2, 3)]
    await spoil(archive, damaged)
    value, findings = await restored(archive)
    assert value == b"3"
    assert subjects(findings) == [("warning", damaged.id)]
    assert key_of(damaged) in findings[0].text and DIGEST in findings[0].text
    assert (await restored(archive, Until.backup(first.id)))[0] == b"1"
    found = await coverage(archive, "orders")
    assert [moment.backup for moment in found.moments] == [first.id, newest.id]
    assert subjects(found.findings) == [("warning", damaged.id)]


async def test_the_latest_is_refused_where_the_damaged_one_may_be_the_newest() -> None:
    archive = small_archive()
    older, newest = [await backed_up(archive, number) for number in (1, 2)]
    await spoil(archive, newest)
    said = await refused(archive)
    assert f"what the latest is cannot be told: {newest.id}: the manifest {key_of(newest)} {DIGEST}" in said
    assert f"RecoveryTarget.backup('{older.id}') restores the latest that can be trusted" in said
    value, findings = await restored(archive, Until.backup(older.id))
    assert value == b"1"
    assert subjects(findings) == [("warning", newest.id)]
    assert [moment.backup for moment in (await coverage(archive, "orders")).moments] == [older.id]


async def test_a_damaged_manifest_that_is_asked_for_is_refused_with_what_is_wrong_with_it() -> None:
    archive = small_archive()
    damaged, _ = [await backed_up(archive, number) for number in (1, 2)]
    await spoil(archive, damaged)
    assert f"the manifest {key_of(damaged)} {DIGEST}" in await refused(archive, Until.backup(damaged.id))


async def test_where_no_manifest_can_be_used_it_says_so_rather_than_that_there_is_none() -> None:
    archive = small_archive()
    await spoil(archive, *[await backed_up(archive, number) for number in range(1, 6)])
    said = await refused(archive)
    assert "none of its backups can be used: " in said
    assert said.count(DIGEST) == 3 and "and 2 more" in said
    assert str(await coverage(archive, "orders")).count(DIGEST) == 5


async def test_a_newer_format_says_what_to_do() -> None:
    archive = small_archive()
    older, newest = [await backed_up(archive, number) for number in (1, 2)]
    await change(archive.store, key_of(newest), lambda data: data.replace(b'"format":1', b'"format":99', 1))
    assert "(install a newer resilience; RecoveryTarget.backup(" in await refused(archive)
    assert (await restored(archive, Until.backup(older.id)))[0] == b"1"


async def chained(archive: Archive) -> list[Manifest]:
    """A full backup, two that build on it one after the other, and another full one."""
    target = incremental_orders()
    found = []
    for number, kind in enumerate((False, True, True, False), start=1):
        target.values["number"], target.revision = str(number).encode(), number
        clock = partial(MOMENT.__add__, timedelta(minutes=number))
        found.append((await backup(target, archive, incremental=kind, clock=clock)).manifest)
    assert [each.parent for each in found] == [None, found[0].id, found[1].id, None]
    return found


@pytest.mark.parametrize("number", [0, 1])
async def test_what_builds_on_a_damaged_one_is_refused_and_a_later_full_backup_is_not(number: int) -> None:
    archive = small_archive()
    chain = await chained(archive)
    await spoil(archive, chain[number])
    assert (await restored(archive))[0] == b"4"
    said = await refused_incremental(archive, chain[2])
    assert f"{chain[number + 1].id} builds on {chain[number].id}, which the archive does not hold" in said
    assert f"of these nothing can be used: {chain[number].id}: the manifest" in said
    verdict = await verify(archive, chain[2])
    assert (verdict.passed, verdict.level) == (False, None)
    assert chain[number].id in str(verdict) and DIGEST in str(verdict)
    assert (await verify(archive, chain[3])).level == Level.CHECKSUMS


class Incremental(MemoryDestination):
    """Takes chains; enough to be asked about them."""

    accepts = ("base", "incremental")
    replays = ()


async def refused_incremental(archive: Archive, manifest: Manifest | None = None) -> str:
    until = None if manifest is None else Until.backup(manifest.id)
    with pytest.raises(NotRecoverable) as error:
        await plan_restore(archive, "orders", into=Incremental(), until=until)
    return str(error.value)


async def test_the_latest_is_refused_where_the_newest_builds_on_a_damaged_one() -> None:
    archive = small_archive()
    chain = await chained(archive)
    await archive.retire(chain[3])
    earlier = await backed_up(archive, 0)
    await spoil(archive, chain[0])
    said = await refused_incremental(archive)
    assert f"what the latest is cannot be told: {chain[0].id}: " in said
    assert said.endswith(f"RecoveryTarget.backup('{earlier.id}') restores the latest that can be trusted)")


async def test_a_backup_builds_on_the_newest_that_can_be_used() -> None:
    archive = small_archive()
    chain = await chained(archive)
    await archive.retire(chain[3])
    await spoil(archive, chain[2])
    report = await backup(incremental_orders(), archive, incremental=True)
    assert report.manifest.parent == chain[1].id
    assert subjects(report.findings) == [("warning", chain[2].id)]


async def test_with_a_log_that_goes_on_a_damaged_backup_is_not_needed() -> None:
    history = await usual()
    newest = [each async for each in history.archive.manifests("orders")][-1]
    await spoil(history.archive, newest)
    value, findings = await restored(history.archive)
    assert value == b"20"
    assert subjects(findings) == [("warning", newest.id)]
    for minute in (5, 9.5, 10.5, 15):
        assert (await restored(history.archive, at(minute)))[0] == (b"9" if 9 < minute < 11 else str(minute).encode())
    found = await coverage(history.archive, "orders")
    assert [(each.begins.time, each.ends.time) for each in found.ranges] == [(at(2), at(20))]
    assert subjects(found.findings) == [("warning", newest.id)]


async def test_the_latest_is_refused_where_the_damaged_one_was_taken_after_the_end_of_the_log() -> None:
    history = await usual()
    newest = await history.back_up(30)
    end = newest.recovery_point.position
    await spoil(history.archive, newest)
    said = await refused(history.archive)
    assert f"what the latest is cannot be told: {newest.id}: " in said
    assert said.endswith(f"RecoveryTarget.lsn({end.text!r}) restores the latest that can be trusted)")
    assert (await restored(history.archive, at(20)))[0] == b"20"
    assert f"of these nothing can be used: {newest.id}" in await refused(history.archive, at(25))


async def test_a_log_that_nothing_was_written_to_since_reaches_further_than_a_damaged_one() -> None:
    history = await usual()
    newest = await history.back_up(30)
    await spoil(history.archive, newest)
    end = newest.recovery_point.position
    async with history.log() as log:
        await log.record(Watermark(begins=end, ends=end, complete_at=at(40)))
    value, findings = await restored(history.archive)
    assert value == b"20"
    assert ("warning", newest.id) in subjects(findings)


async def test_a_moment_before_every_backup_that_can_be_used_says_which_one_cannot() -> None:
    history = await usual()
    first = await anext(history.archive.manifests("orders"))
    await spoil(history.archive, first)
    said = await refused(history.archive, at(5))
    assert f"of these nothing can be used: {first.id}" in said
    assert (await restored(history.archive, at(15)))[0] == b"15"


async def test_a_backup_that_somebody_without_the_key_added_is_never_restored(tmp_path: Path) -> None:
    key, store = KeyFile.create(tmp_path / "key"), MemoryStore()
    sealed, forging = Archive(store, workers=1, key=key), Archive(MemoryStore(), workers=1)
    real = [await backed_up(sealed, number) for number in (1, 3)]
    forged = [await backed_up(forging, number) for number in (2, 4)]
    for place in (key_of(forged[0]), *(each.key for part in forged[0].parts for each in part.objects)):
        await store.put(place, [await read(forging.store, place)])
    value, findings = await restored(sealed)
    assert value == b"3"
    assert subjects(findings) == [("warning", forged[0].id)]
    assert "it is not sealed, so anybody may have written it" in findings[0].text

    await store.put(key_of(forged[1]), [await read(forging.store, key_of(forged[1]))])
    assert f"RecoveryTarget.backup({real[1].id!r}) restores the latest that can be trusted" in await refused(sealed)
    assert "it is not sealed" in await refused(sealed, Until.backup(forged[1].id))
    assert (await restored(sealed, Until.backup(real[1].id)))[0] == b"3"


async def test_what_is_no_manifest_at_all_is_told_and_stops_nothing() -> None:
    archive = small_archive()
    await backed_up(archive, 1)
    stray = "memory/orders/manifests/README.json"
    await archive.store.put(stray, [b"hello"])
    value, findings = await restored(archive)
    assert value == b"1"
    assert subjects(findings) == [("warning", stray)]


async def test_the_doctor_names_a_damaged_manifest_and_examines_the_rest() -> None:
    history = History()
    await history.write(0, 1)
    newest = await history.back_up(2)
    await history.write(3)
    damaged = await history.back_up(4)
    await spoil(history.archive, damaged)
    await history.archive.remember(measured(1))
    (record,) = [info.key async for info in history.archive.store.list("memory/orders/restores/")]
    await change(history.archive.store, record, flipped(-20))
    diagnosis = await doctor(ASKED, archive=history.archive, objective=HOURLY, clock=lambda: NOW)
    assert ("warning", damaged.id) in subjects(diagnosis.findings)
    assert "archive" not in [finding.subject for finding in diagnosis.findings]
    assert newest.lineage in str(diagnosis)


def test_of_very_many_doubts_the_newest_are_told_and_how_many_more_there_are() -> None:
    doubts = [Doubt(backup=plan(number).id, subject="key", text="it is wrong") for number in range(100)]
    findings = as_findings(doubts)
    assert len(findings) == MANY + 1
    assert str(findings[0]) == f"warning: {100 - MANY} more backups cannot be used (is this the right key?)"
    assert findings[-1].subject == plan(99).id
    assert str(doubts[0]) == f"warning: {plan(0).id}: it is wrong"
    assert as_findings(doubts[:MANY]) == tuple(doubt.finding for doubt in doubts[:MANY])


def test_an_id_says_when_the_backup_was_planned() -> None:
    assert planned_at("20261121T203000.250Z-3f9a1c") == datetime(2026, 11, 21, 20, 30, 0, 250_000, tzinfo=UTC)
    with pytest.raises(ValueError, match="no backup id"):
        planned_at("latest")
