"""backup(): take one backup of a target."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

from resilience.concurrency import closing
from resilience.model.capture import Part
from resilience.model.events import Notifier, Observer
from resilience.model.ids import new_id as fresh_id
from resilience.model.moments import utc_now
from resilience.model.reports import BackupReport
from resilience.planning.backup import plan_backup
from resilience.primitives import Archiver, BackupTarget

from .observed import counted


async def backup(
    target: BackupTarget,
    archive: Archiver,
    *,
    observer: Observer | None = None,
    clock: Callable[[], datetime] = utc_now,
    new_id: Callable[[datetime], str] = fresh_id,
) -> BackupReport:
    """Back up `target` into `archive` and return what was done, measured.

    The backup exists once this returns. If it raises or is cancelled, the server has left its backup mode, nothing is
    listed, and what remains is a run record (none if the survey failed or was refused) and objects that no manifest
    names; unless it was cancelled while it published: then the backup may exist, and is whole. `observer` is told the
    bytes read so far and, where the target knows it, their total.

    Raises Refused (the target cannot be backed up as it is), Unavailable (target or store did not answer), Corrupt
    (what arrived is not what the target sent, or the target found damage), Unsupported (version or tool).
    """
    began = time.monotonic()
    told = Notifier("backup", target.name, observer)
    with told.outcome():
        facts = await target.survey()

        now = clock()
        plan = plan_backup(facts, id=new_id(now), now=now)

        async with archive.draft(plan) as draft, target.capture(plan) as capture:
            told.total = capture.size
            async with closing(capture.parts()) as parts:
                async for part in parts:
                    await draft.store(Part(name=part.name, chunks=counted(part.chunks, told)))
            captured = await capture.finish()
            manifest = await draft.publish(captured)
    return BackupReport(manifest=manifest, seconds=time.monotonic() - began, findings=plan.findings + captured.findings)
