"""backup(): take one backup of a target."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime

from attrs import evolve

from resilience.concurrency import closing
from resilience.model.capture import Part
from resilience.model.errors import Corrupt, NotIncremental, Unsupported
from resilience.model.events import Notifier, Observer
from resilience.model.findings import Doubt, Finding
from resilience.model.ids import new_id as fresh_id
from resilience.model.manifests import Manifest
from resilience.model.moments import utc_now
from resilience.model.plans import BackupPlan
from resilience.model.reports import BackupReport
from resilience.planning.backup import MAX_CHAIN, Incremental, plan_backup, plan_full
from resilience.planning.doubts import as_findings, explained
from resilience.primitives import Archiver, BackupTarget, Capture

from .observed import counted


async def backup(
    target: BackupTarget,
    archive: Archiver,
    *,
    incremental: Incremental = False,
    max_chain: int = MAX_CHAIN,
    actor: str = "",
    reason: str = "",
    observer: Observer | None = None,
    clock: Callable[[], datetime] = utc_now,
    new_id: Callable[[datetime], str] = fresh_id,
) -> BackupReport:
    """Back up `target` into `archive` and return what was done, measured.

    With `incremental` only what has changed since the newest backup is read and stored; a restore needs that backup
    too, and all that it builds on. Where that is not possible (the target cannot, the timeline changed, the server has
    forgotten what changed, `max_chain` incremental backups follow the last full one already) a full one is taken and a
    finding says why; with `incremental="required"` NotIncremental is raised instead. A backup whose manifest cannot be
    read or trusted is a finding, and nothing is built on it.

    The backup exists once this returns. If it raises or is cancelled, the server has left its backup mode, nothing is
    listed, and what remains is a run record (none if the survey failed or was refused) and objects that no manifest
    names; unless it was cancelled while it published: then the backup may exist, and is whole. `observer` is told the
    bytes read so far and, where the target knows it, their total. Who took it (`actor`) and why (`reason`), as the
    caller says, stand in the manifest, in the run record and in every event.

    Raises Refused (the target cannot be backed up as it is), Unavailable (target or store did not answer), Corrupt
    (what arrived is not what the target sent, or the target found damage), Unsupported (version or tool).
    """
    began = time.monotonic()
    told = Notifier("backup", target.name, observer, actor=actor, reason=reason)
    doubts: list[Doubt] = []
    with told.outcome():
        facts = await target.survey()
        try:
            known = await _known(archive, target.name, doubts) if incremental else []
            now = clock()
            with explained(doubts):
                plan = plan_backup(
                    facts, id=new_id(now), now=now, incremental=incremental, known=known, max_chain=max_chain
                )
            plan = evolve(plan, actor=actor, reason=reason)
            manifest, findings = await _carry_out(plan, target, archive, known, told)
        except NotIncremental as error:
            if incremental is not True:
                raise
            now = clock()
            plan = plan_full(facts, id=new_id(now), now=now, instead=error.what)
            plan = evolve(plan, actor=actor, reason=reason)
            manifest, findings = await _carry_out(plan, target, archive, [], told)
    findings = (*plan.findings, *findings, *as_findings(doubts))
    return BackupReport(manifest=manifest, seconds=time.monotonic() - began, findings=findings)


async def _known(archive: Archiver, target: str, doubts: list[Doubt]) -> list[Manifest]:
    try:
        return [manifest async for manifest in archive.manifests(target, doubts=doubts)]
    except (Corrupt, Unsupported) as error:
        raise NotIncremental(
            f"the archive's list of backups cannot be read: {error}", operation="backup", subject=target
        ) from error


async def _carry_out(
    plan: BackupPlan, target: BackupTarget, archive: Archiver, known: list[Manifest], told: Notifier
) -> tuple[Manifest, tuple[Finding, ...]]:
    async with archive.draft(plan) as draft, _captured(plan, target, archive, known) as capture:
        told.total = capture.size
        async with closing(capture.parts()) as parts:
            async for part in parts:
                await draft.store(Part(name=part.name, chunks=counted(part.chunks, told)))
        captured = await capture.finish()
        return await draft.publish(captured), captured.findings


@asynccontextmanager
async def _captured(
    plan: BackupPlan, target: BackupTarget, archive: Archiver, known: list[Manifest]
) -> AsyncIterator[Capture]:
    """Begin the capture, on the parent if there is one."""
    if plan.parent is None:
        async with target.capture(plan) as capture:
            yield capture
        return
    (parent,) = [manifest for manifest in known if manifest.id == plan.parent]
    async with archive.open(parent) as stored, target.capture(plan, parent=stored) as capture:
        yield capture
