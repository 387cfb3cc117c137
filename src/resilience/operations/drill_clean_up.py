"""Clean up after a drill that died: what it had begun is written down before anything fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

from resilience.journal import Journal
from resilience.model.drills import DrillRecord, DrillReport
from resilience.model.errors import Refused
from resilience.model.failover import FailoverPolicy
from resilience.model.findings import Finding
from resilience.model.moments import utc_now
from resilience.model.show import as_span
from resilience.primitives import Canary, Fault

from .drill_records import DrillRecords
from .failback import failback
from .group import FailoverGroup
from .plan_failover import plan_failback
from .resume import resume

POLICY = FailoverPolicy(confirmation="DRILL")
LOOKS = 50
LOOK_AGAIN_SECONDS = 0.1
ABANDONED_AFTER = timedelta(hours=1)
"""When a drill that has not ended is taken for dead by the next one; before that somebody has to say so."""


async def resume_drill(
    group: FailoverGroup,
    *,
    fault: Fault,
    canary: Canary,
    policy: FailoverPolicy = POLICY,
    actor: str = "",
    reason: str = "",
    clock: Callable[[], datetime] = utc_now,
) -> tuple[DrillReport, ...]:
    """Clean up after drills that died: finish their failover, heal the fault, bring back who was struck.

    What the canary wrote is removed.

    Only call it where none of them runs any more. Returns what it ended; nothing if there was nothing. Raises Refused
    if a drill was about another fault or canary than these, Unavailable and Interrupted if something could not be put
    right yet: then call it again.
    """
    records = DrillRecords(group.journal, group.name)
    ended = []
    for record in await records.open():
        _same(record, fault, canary)
        ended.append(await _cleaned_up(group, record, fault, canary, policy, actor=actor, reason=reason, clock=clock))
        await records.ended(ended[-1])
    return tuple(ended)


async def earlier(
    group: FailoverGroup,
    *,
    fault: Fault,
    canary: Canary,
    policy: FailoverPolicy,
    now: datetime,
    clock: Callable[[], datetime],
) -> None:
    """Clean up after earlier drills that have died for all one can tell. Raises Refused."""
    records = DrillRecords(group.journal, group.name)
    for record in await records.open():
        if now - record.began_at < ABANDONED_AFTER:
            raise Refused(
                f"drill {record.id} began {as_span(now - record.began_at)} ago and has not ended",
                operation="drill",
                subject=group.name,
                hint="if it does not run any more, resume_drill(group, ...) cleans up after it",
            )
        _same(record, fault, canary)
        await records.ended(await _cleaned_up(group, record, fault, canary, policy, clock=clock))


async def _cleaned_up(
    group: FailoverGroup,
    record: DrillRecord,
    fault: Fault,
    canary: Canary,
    policy: FailoverPolicy,
    *,
    clock: Callable[[], datetime],
    actor: str = "",
    reason: str = "",
) -> DrillReport:
    """Put right what a drill left behind: first its failover, as one would in earnest, then the fault."""
    cleaned: list[str] = []
    findings = [Finding(severity="warning", subject="drill", text="it died before its end and proves nothing")]
    report = None
    why = reason or f"drill {record.id} died"
    try:
        last = await Journal(group.journal, group.name).last()
        if last and last[-1].kind != "ended":
            report = await resume(group, actor=actor, reason=why, clock=clock)
            cleaned.append(f"the failover that it had begun: {report.ending}")
    finally:
        await fault.heal()
    cleaned.append(f"healed: {fault.name}")
    if record.comes_back and (
        left := await brought_back(group, fault.subject, policy, actor=actor, reason=why, clock=clock)
    ):
        text = f"it is not back behind the primary: {left}"
        findings.append(Finding(severity="warning", subject=fault.subject, text=text, hint="plan a failback"))
    await canary.clean()
    cleaned.append(f"removed what {canary.name} wrote")
    return DrillReport(
        id=record.id,
        group=group.name,
        system=group.promoter.system,
        ending="abandoned",
        failover=report,
        cleaned=tuple(cleaned),
        began_at=record.began_at,
        ended_at=clock(),
        actor=actor,
        reason=reason,
        findings=tuple(findings),
    )


async def brought_back(
    group: FailoverGroup,
    member: str,
    policy: FailoverPolicy,
    *,
    actor: str,
    reason: str,
    clock: Callable[[], datetime],
) -> str:
    """Bring a member back behind the primary, as one does in earnest; return why it is not, empty if it is."""
    if not await _outside(group, member):
        return ""
    plan = await plan_failback(group, policy=policy, clock=clock)
    if plan.blockers:
        return "; ".join(f"{each.subject}: {each.text}" for each in plan.blockers)
    report = await failback(group, plan, confirm=plan.confirmation, actor=actor, reason=reason, clock=clock)
    if why := await _outside(group, member):
        return "; ".join([why, *filter(None, [report.why]), *map(str, report.findings)])
    return ""


async def _outside(group: FailoverGroup, member: str) -> str:
    """Look until a member receives from the primary, for as long as it may take to begin; say why it does not."""
    for _ in range(LOOKS):
        found = (await group.promoter.survey()).member(member)
        if found is not None and found.reachable and found.role == "standby" and found.receiving:
            return ""
        if found is None or not found.reachable or found.role == "primary":
            break
        await asyncio.sleep(LOOK_AGAIN_SECONDS)
    return f"{found}" if found is not None else f"{member} is no member"


def _same(record: DrillRecord, fault: Fault, canary: Canary) -> None:
    if (record.fault, record.canary) != (fault.name, canary.name):
        raise Refused(
            f"drill {record.id} was {record.fault}, watched by {record.canary}",
            operation="drill",
            subject=record.group,
            hint="resume_drill(group, fault=…, canary=…) with these two cleans up after it",
        )
