"""Which backup to take."""

from __future__ import annotations

from datetime import datetime

from resilience.model.errors import Refused
from resilience.model.facts import TargetFacts
from resilience.model.findings import Finding
from resilience.model.plans import BackupPlan


def plan_backup(facts: TargetFacts, *, id: str, now: datetime) -> BackupPlan:
    """Plan a backup of what was surveyed. Raises Refused with every blocker that the survey found."""
    refuse_blockers(facts.findings, operation="backup", subject=facts.target)
    return BackupPlan(
        id=id,
        target=facts.target,
        system=facts.system,
        kind=facts.kind,
        lineage=facts.lineage,
        made_at=now,
        size=facts.size,
        findings=facts.findings,
        details=facts.details,
    )


def refuse_blockers(findings: tuple[Finding, ...], *, operation: str, subject: str) -> None:
    """Raise Refused if any finding is a blocker, saying all of them."""
    blockers = [finding for finding in findings if finding.severity == "blocker"]
    if blockers:
        raise Refused(
            "; ".join(blocker.text for blocker in blockers),
            operation=operation,
            subject=subject,
            hint="; ".join(blocker.hint for blocker in blockers if blocker.hint),
        )
