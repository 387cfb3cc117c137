"""doctor(): would this target survive a disaster as was promised, and if not, what has to be changed?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

from attrs import evolve

from resilience.model.diagnosis import Checkup, Diagnosis, Reading, worst_first
from resilience.model.errors import ResilienceError
from resilience.model.findings import Doubt, Finding, blocker
from resilience.model.log import LogFacts
from resilience.model.moments import utc_now
from resilience.model.objectives import Objective
from resilience.planning.doubts import as_findings
from resilience.planning.health import Kept, examine_archive, held, latest
from resilience.planning.log import LogView
from resilience.primitives import Archiver, Diagnosable
from resilience.reference import OBJECTIVES

from .looking import Heads, listed, shown_by_restores

ARCHIVE_SECONDS = 60.0


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
            readings, findings = more + _answered(checkup), findings + found
    return Diagnosis(
        checkup=checkup,
        objective=wanted,
        assumed=objective is None,
        readings=readings,
        findings=worst_first(findings),
    )


async def _kept(archive: Archiver, checkup: Checkup, clock: Callable[[], datetime]) -> Kept:
    """Look at what an archive holds of a target; of the log only what follows the newest backup is listed."""
    target, mine = checkup.target, checkup.lineage
    doubts: list[Doubt] = []
    manifests = tuple([manifest async for manifest in archive.manifests(target, doubts=doubts)])
    logs: list[LogFacts] = []
    view: LogView | None = None
    damage = as_findings(doubts)
    for lineage in await archive.lineages(target):
        async with archive.log(target, system=checkup.system, lineage=lineage) as log:
            facts = await log.survey()
            logs.append(facts)
            if lineage == mine:
                known = LogView(facts=facts)
                own = [each for each in manifests if each.lineage == mine]
                begins = held(checkup, own, known).begins(latest(checkup, known))
                heads = Heads(log)
                view = await listed(log, facts, heads, begins=begins)
                damage += tuple(heads.findings)
    shown = await shown_by_restores(archive, target)
    return Kept(looked_at=clock(), manifests=manifests, logs=tuple(logs), view=view, shown=shown, damage=damage)


def _unarchived(checkup: Checkup) -> tuple[Finding, ...]:
    return (checkup.unarchived,) if checkup.unarchived is not None else ()


def _answered(checkup: Checkup) -> tuple[Reading, ...]:
    """Whether what is written leaves the system is judged by what the archive has of it, where that was looked at."""
    name = checkup.unarchived.subject if checkup.unarchived is not None else ""
    return tuple(evolve(each, standing="note") if each.name == name else each for each in checkup.readings)


def _unseen(what: str, hint: str) -> Finding:
    return blocker("archive", f"it could not be looked at: {what}", hint)
