"""doctor(): would this target survive a disaster as was promised, and if not, what has to be changed?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

from resilience.concurrency import closing
from resilience.model.diagnosis import Checkup, Diagnosis, worst_first
from resilience.model.errors import ResilienceError
from resilience.model.findings import Finding
from resilience.model.log import LogFacts, Stretch
from resilience.model.moments import utc_now
from resilience.model.objectives import Objective
from resilience.planning.health import Kept, examine_archive
from resilience.primitives import Archiver, Diagnosable, Log
from resilience.reference import OBJECTIVES

ARCHIVE_SECONDS = 60.0
LOOKED_BEHIND = 16
"""So many entries behind a watermark are looked at for a hole."""


async def doctor(
    target: Diagnosable,
    *,
    archive: Archiver | None = None,
    objective: Objective | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> Diagnosis:
    """Examine a target, and with an `archive` what is kept of it, against the reference and an objective.

    Without an `objective` it is held against the reference's for its system. It writes nothing and takes seconds, at
    most two minutes. What is wrong is a finding; so is an archive that cannot be looked at.

    Raises Unavailable or Refused if the target cannot be looked at, ValueError if no objective is given and the
    reference has none.
    """
    wanted = objective or OBJECTIVES.get(target.system)
    if wanted is None:
        raise ValueError(f"the reference has no objective for {target.system}: declare one")
    checkup = await target.diagnose(wanted)
    readings, findings = checkup.readings, checkup.findings
    if archive is None:
        findings += _unarchived(checkup)
    else:
        try:
            async with asyncio.timeout(ARCHIVE_SECONDS):
                kept = await _kept(archive, checkup, clock)
        except ResilienceError as error:
            findings += (_unseen(error.what, error.hint), *_unarchived(checkup))
        except TimeoutError:
            findings += (_unseen("no answer within the deadline", ""), *_unarchived(checkup))
        else:
            more, found = examine_archive(checkup, kept, wanted)
            readings, findings = more + readings, findings + found
    return Diagnosis(
        checkup=checkup,
        objective=wanted,
        assumed=objective is None,
        readings=readings,
        findings=worst_first(findings),
    )


async def _kept(archive: Archiver, checkup: Checkup, clock: Callable[[], datetime]) -> Kept:
    """Look at what an archive holds of a target: manifests, and how far the logs go. No entry is read."""
    manifests = tuple([manifest async for manifest in archive.manifests(checkup.target)])
    logs: list[LogFacts] = []
    holes: list[Stretch] = []
    for lineage in await archive.lineages(checkup.target):
        async with archive.log(checkup.target, system=checkup.system, lineage=lineage) as log:
            facts = await log.survey()
            logs.append(facts)
            if lineage == checkup.lineage:
                holes += [hole for mark in facts.watermarks if (hole := await _hole(log, mark, facts)) is not None]
    return Kept(looked_at=clock(), manifests=manifests, logs=tuple(logs), holes=tuple(holes))


async def _hole(log: Log, watermark: Stretch, facts: LogFacts) -> Stretch | None:
    """Find out whether the log goes on behind a watermark after something that is missing and not acknowledged."""
    at, seen = watermark.ends, 0
    async with closing(log.entries(watermark.branch, begins=at.offset)) as entries:
        async for entry in entries:
            if entry.begins.offset > at.offset:
                missing = Stretch(begins=at, ends=(await log.describe(entry)).begins)
                known = any(
                    gap.branch == missing.branch
                    and gap.begins.offset <= at.offset <= missing.ends.offset <= gap.ends.offset
                    for gap in facts.gaps
                )
                return None if known else missing
            at, seen = entry.ends, seen + 1
            if seen == LOOKED_BEHIND:
                break
    return None


def _unarchived(checkup: Checkup) -> tuple[Finding, ...]:
    return (checkup.unarchived,) if checkup.unarchived is not None else ()


def _unseen(what: str, hint: str) -> Finding:
    return Finding(severity="blocker", subject="archive", text=f"it could not be looked at: {what}", hint=hint)
