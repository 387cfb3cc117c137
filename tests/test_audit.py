"""Who asked for something, and why, stands wherever somebody would look for it later."""

from __future__ import annotations

import asyncio
import json
from typing import NoReturn

import pytest

from resilience import Archive, RestoreReport, backup, restore
from resilience.model.errors import ChecksumMismatch, DestinationNotEmpty, NoBackup
from resilience.model.events import Event
from resilience.testing.memory import MemoryDestination, MemoryTarget
from resilience.testing.stores import listed, read

from .faults import FEW, small_archive

BY = {"actor": "jane@example.com", "reason": "CHG-4711: before the migration"}


async def records(archive: Archive, what: str) -> list[dict[str, object]]:
    keys = [info.key for info in await listed(archive.store, f"memory/orders/{what}/")]
    return [json.loads(await read(archive.store, key)) for key in keys]


def said(value: object) -> dict[str, object]:
    return {name: getattr(value, name) for name in BY}


@pytest.mark.parametrize("incremental", [False, True])
async def test_a_backup_says_who_took_it_and_why_in_manifest_run_record_and_events(*, incremental: bool) -> None:
    archive, events = small_archive(), list[Event]()
    target = MemoryTarget("orders", dict(FEW))
    await backup(target, archive, incremental=incremental, observer=events.append, **BY)  # type: ignore[arg-type]
    (manifest,) = [each async for each in archive.manifests("orders")]
    assert said(manifest) == BY
    (started,) = [each for each in await records(archive, "runs") if "started_at" in each]
    assert BY.items() <= started.items()
    assert all(said(event) == BY for event in events)
    assert {event.stage for event in events} == {"started", "progress", "completed"}


async def test_a_full_backup_in_place_of_an_incremental_one_says_it_too() -> None:
    archive, target = small_archive(), MemoryTarget("orders", dict(FEW))
    await backup(target, archive)
    report = await backup(target, archive, incremental=True, actor="nightly", reason="schedule")
    assert "it knows no incremental backups" in str(report.findings[0])
    assert (report.manifest.actor, report.manifest.reason) == ("nightly", "schedule")


async def test_a_backup_that_failed_says_who_tried_it() -> None:
    archive, events = small_archive(), list[Event]()
    with pytest.raises(ChecksumMismatch):
        await backup(MemoryTarget("orders", dict(FEW), damaged=True), archive, observer=events.append, **BY)  # type: ignore[arg-type]
    ended, started = await records(archive, "runs")
    assert (ended["outcome"], started["actor"], started["reason"]) == ("failed", *BY.values())
    assert (events[-1].stage, said(events[-1])) == ("failed", BY)


async def restored(archive: Archive, **by: str) -> tuple[RestoreReport, list[Event]]:
    events: list[Event] = []
    report = await restore(archive, "orders", into=MemoryDestination(), observer=events.append, **by)  # type: ignore[arg-type]
    return report, events


async def test_a_restore_says_who_asked_for_it_and_why_in_its_record_its_report_and_its_events() -> None:
    archive = small_archive()
    manifest = (await backup(MemoryTarget("orders", dict(FEW)), archive)).manifest
    report, events = await restored(archive, **BY)
    assert said(report) == BY
    assert all(said(event) == BY for event in events)
    (measured,) = await archive.measured("orders")
    assert said(measured) == BY
    assert (measured.backup, measured.until, measured.destination) == (manifest.id, "the latest moment", "memory")
    (record,) = await records(archive, "restores")
    assert BY["actor"] in json.dumps(record)


async def test_a_restore_that_is_refused_says_who_asked_for_it() -> None:
    archive, events = small_archive(), list[Event]()
    await backup(MemoryTarget("orders", dict(FEW)), archive)
    with pytest.raises(DestinationNotEmpty) as refused:
        await restore(
            archive,
            "orders",
            into=MemoryDestination(values={"theirs": b""}),
            observer=events.append,
            actor="jane",
            reason="why not",
        )
    assert [(event.stage, event.actor, event.reason) for event in events] == [
        ("started", "jane", "why not"),
        ("failed", "jane", "why not"),
    ]
    (record,) = await records(archive, "restores")
    told = record["restoremeasured"]
    assert isinstance(told, dict)
    assert (told["actor"], told["reason"], told["outcome"], told["error"]) == (
        "jane",
        "why not",
        "failed",
        str(refused.value),
    )
    assert await archive.measured("orders") == ()


async def test_a_restore_that_is_cancelled_says_who_asked_for_it() -> None:
    archive, begun = small_archive(), asyncio.Event()
    await backup(MemoryTarget("orders", dict(FEW)), archive)

    class Slow(MemoryDestination):
        async def survey(self, *_: object) -> NoReturn:
            begun.set()
            await asyncio.Event().wait()
            raise AssertionError

    restoring = asyncio.create_task(restore(archive, "orders", into=Slow(), **BY))  # type: ignore[arg-type]
    await begun.wait()
    restoring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await restoring
    (record,) = await records(archive, "restores")
    told = record["restoremeasured"]
    assert isinstance(told, dict)
    assert (told["outcome"], told["actor"]) == ("cancelled", BY["actor"])


async def test_a_restore_of_a_name_that_the_archive_does_not_know_leaves_nothing_there() -> None:
    archive = small_archive()
    with pytest.raises(NoBackup):
        await restore(archive, "order", into=MemoryDestination(), **BY)  # type: ignore[arg-type]
    assert await listed(archive.store) == []


async def test_nobody_has_to_say_anything() -> None:
    archive = small_archive()
    manifest = (await backup(MemoryTarget("orders", dict(FEW)), archive)).manifest
    report, events = await restored(archive)
    for value in (manifest, report, *events, *await archive.measured("orders")):
        assert said(value) == {"actor": "", "reason": ""}
