"""backup(…, incremental=…), on a system in memory that gives incremental backups when it likes."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from attrs import define, field

from resilience import Archive, backup
from resilience.model.errors import Conflict, NotIncremental
from resilience.model.facts import TargetFacts
from resilience.model.manifests import Manifest
from resilience.model.plans import BackupPlan
from resilience.primitives import StoredBackup
from resilience.testing.archivers import read
from resilience.testing.cancellation import cancellations, nothing_left_running
from resilience.testing.faults import change, flipped
from resilience.testing.memory import MemoryCapture, MemoryTarget
from resilience.testing.stores import listed
from resilience.testing.stores import read as read_object

from .faults import FEW, small_archive


@define
class Forgetful(MemoryTarget):
    """A target that captures what differs from its parent, unless it has `forgotten` what that was."""

    forgotten: str = field(default="", kw_only=True)
    parents: list[str] = field(factory=list, init=False)

    async def survey(self) -> TargetFacts:
        facts = await super().survey()
        return TargetFacts(
            target=facts.target,
            system=facts.system,
            kind=facts.kind,
            lineage=facts.lineage,
            branch="1",
            only_full="",
            findings=facts.findings,
        )

    @asynccontextmanager
    async def capture(self, plan: BackupPlan, *, parent: StoredBackup | None = None) -> AsyncGenerator[MemoryCapture]:
        values = dict(self.values)
        if parent is not None:
            if self.forgotten:
                raise NotIncremental(self.forgotten, operation="backup", subject=self.name)
            assert parent.manifest.id == plan.parent
            self.parents.append(parent.manifest.id)
            names = [part.name for part in parent.manifest.parts]
            before = {name: await read(parent, name) for name in names}
            self.values = {name: value for name, value in values.items() if value != before.get(name)}
        try:
            async with MemoryTarget.capture(self, plan) as capture:
                yield capture
        finally:
            self.values = values


def orders() -> Forgetful:
    return Forgetful("orders", dict(FEW))


async def manifests(archive: Archive) -> list[Manifest]:
    return [manifest async for manifest in archive.manifests("orders")]


async def ends(archive: Archive) -> list[tuple[str, str]]:
    """How every attempt ended, oldest first, and what was wrong."""
    keys = [info.key for info in await listed(archive.store, "memory/orders/runs/") if info.key.endswith("ended.json")]
    records = [json.loads(await read_object(archive.store, key)) for key in keys]
    return [(record["outcome"], record["error"]) for record in records]


async def test_an_incremental_backup_holds_what_has_changed_and_names_its_parent() -> None:
    target, archive = orders(), small_archive()
    full = await backup(target, archive)
    target.values["one"], target.revision = b"new", 2
    report = await backup(target, archive, incremental=True)
    assert (report.manifest.kind, report.manifest.parent) == ("incremental", full.manifest.id)
    assert [part.name for part in report.manifest.parts] == ["one"]
    assert report.findings == ()
    assert target.parents == [full.manifest.id]
    assert await listed(archive.store, f"memory/orders/incremental/{report.manifest.id}/")
    assert await manifests(archive) == [full.manifest, report.manifest]
    target.revision = 3
    third = await backup(target, archive, incremental="required")
    assert third.manifest.parent == report.manifest.id


async def test_a_target_that_has_forgotten_what_changed_gives_a_full_backup_and_says_so() -> None:
    target, archive = orders(), small_archive()
    full = await backup(target, archive)
    target.forgotten = "the summaries are gone"
    report = await backup(target, archive, incremental=True)
    assert (report.manifest.kind, report.manifest.parent) == ("base", None)
    assert [str(finding) for finding in report.findings] == [
        "warning: orders: a full backup instead of an incremental one: the summaries are gone"
    ]
    assert await manifests(archive) == [full.manifest, report.manifest]
    # The attempt that came to nothing has an id, and a record, of its own; of one millisecond they are in any order.
    assert sorted(await ends(archive)) == [
        ("failed", "backup orders: the summaries are gone"),
        ("succeeded", ""),
        ("succeeded", ""),
    ]
    assert target.capturing == 0


async def test_one_that_is_required_is_refused_instead() -> None:
    target, archive = orders(), small_archive()
    with pytest.raises(NotIncremental, match="there is none to build on yet .take a full backup"):
        await backup(target, archive, incremental="required")
    assert await listed(archive.store) == []
    await backup(target, archive)
    target.forgotten = "the summaries are gone"
    with pytest.raises(NotIncremental, match="the summaries are gone"):
        await backup(target, archive, incremental="required")
    assert len(await manifests(archive)) == 1
    assert target.capturing == 0


async def test_a_system_that_knows_full_backups_only_says_so() -> None:
    target, archive = MemoryTarget("orders", dict(FEW)), small_archive()
    await backup(target, archive)
    report = await backup(target, archive, incremental=True)
    assert report.manifest.kind == "base"
    assert "it knows no incremental backups" in str(report.findings[0])


async def test_where_no_backup_can_be_read_a_full_one_is_taken_and_it_says_why() -> None:
    target, archive = orders(), small_archive()
    first = await backup(target, archive)
    key = f"memory/orders/manifests/{first.manifest.id}.json"
    await change(archive.store, key, flipped(-3))
    with pytest.raises(NotIncremental, match=f"none to build on yet .*of these nothing can be used: .*{key}"):
        await backup(target, archive, incremental="required")
    report = await backup(target, archive, incremental=True)
    assert report.manifest.parent is None
    assert key in str(report.findings[-1])


async def test_a_chain_is_capped() -> None:
    target, archive = orders(), small_archive()
    kinds = []
    for revision in range(6):
        target.revision = revision
        kinds.append((await backup(target, archive, incremental=True, max_chain=2)).manifest.kind)
    assert kinds == ["base", "incremental", "incremental"] * 2


async def test_a_parent_that_is_retired_while_its_child_is_taken_leaves_no_child() -> None:
    class Retiring(Forgetful):
        @asynccontextmanager
        async def capture(
            self, plan: BackupPlan, *, parent: StoredBackup | None = None
        ) -> AsyncGenerator[MemoryCapture]:
            async with super().capture(plan, parent=parent) as capture:
                if parent is not None:
                    await archive.retire(parent.manifest)
                yield capture

    target, archive = Retiring("orders", dict(FEW)), small_archive()
    full = await backup(target, archive)
    with pytest.raises(Conflict, match=f"its parent {full.manifest.id} has been retired meanwhile"):
        await backup(target, archive, incremental=True)
    assert await manifests(archive) == []


async def test_an_incremental_backup_cancelled_anywhere_is_listed_whole_or_not_at_all() -> None:
    archive, target = small_archive(), orders()
    await backup(target, archive)
    async with nothing_left_running():
        for attempt in cancellations(step=7):
            target.revision += 1
            before = await manifests(archive)
            completed = await attempt(backup(target, archive, incremental=True, max_chain=1000))
            after = await manifests(archive)
            assert target.capturing == 0
            assert len(after) > len(before) or not completed
            assert all(manifest.parent == before[-1].id for manifest in after[len(before) :])
