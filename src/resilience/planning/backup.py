"""Which backup to take: a full one, or one that holds only what has changed since another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Literal, TypeAlias

from attrs import evolve, frozen

from resilience.model.errors import NotIncremental, Refused
from resilience.model.facts import TargetFacts
from resilience.model.findings import Finding, Severity
from resilience.model.manifests import Manifest
from resilience.model.plans import BackupPlan

from .chains import INCREMENTAL, broken_chains, chain_of

MAX_CHAIN = 24
"""How many incremental backups may follow a full one: hourly ones, a day long."""

Incremental: TypeAlias = bool | Literal["required"]
"""False: a full backup. True: an incremental one, or a full one where that is not possible. "required": or none."""


def plan_backup(
    facts: TargetFacts,
    *,
    id: str,
    now: datetime,
    incremental: Incremental = False,
    known: Sequence[Manifest] = (),
    max_chain: int = MAX_CHAIN,
) -> BackupPlan:
    """Plan a backup of what was surveyed; `known` are the target's backups so far.

    An incremental one builds on the newest whose own chain is whole. Where there is none, a full one is planned and a
    finding says why, or NotIncremental is raised if it is "required". Raises Refused with every blocker of the survey.
    """
    if max_chain < 1:
        raise ValueError("max_chain is at least 1: the number of incremental backups that may follow a full one")
    full = plan_full(facts, id=id, now=now)
    if not incremental:
        return full
    parent = _parent(facts, known, max_chain=max_chain)
    if isinstance(parent, Manifest):
        return evolve(full, kind=INCREMENTAL, parent=parent.id, size=None)
    if incremental == "required":
        raise NotIncremental(parent.text, operation="backup", subject=facts.target, hint="take a full backup")
    return plan_full(facts, id=id, now=now, instead=parent.text, severity=parent.severity)


def plan_full(
    facts: TargetFacts, *, id: str, now: datetime, instead: str = "", severity: Severity = "warning"
) -> BackupPlan:
    """Plan a full backup; `instead` is why it is one although an incremental one was asked for. Raises Refused."""
    refuse_blockers(facts.findings, operation="backup", subject=facts.target)
    said = Finding(
        severity=severity, subject=facts.target, text=f"a full backup instead of an incremental one: {instead}"
    )
    return BackupPlan(
        id=id,
        target=facts.target,
        system=facts.system,
        kind=facts.kind,
        lineage=facts.lineage,
        made_at=now,
        size=facts.size,
        findings=(*facts.findings, said) if instead else facts.findings,
        details=facts.details,
    )


@frozen
class _Full:
    """Why only a full backup will do. It is a note where things are as they should be."""

    text: str
    severity: Severity = "warning"


def _parent(facts: TargetFacts, known: Iterable[Manifest], *, max_chain: int) -> Manifest | _Full:
    """Choose what to build on."""
    if facts.only_full:
        return _Full(facts.only_full)
    known = [each for each in known if each.system == facts.system and each.kind in (facts.kind, INCREMENTAL)]
    if not known:
        return _Full("there is none to build on yet", "note")
    mine = [each for each in known if each.lineage == facts.lineage]
    if not mine:
        return _Full(f"no backup is of its lineage, {facts.lineage}")
    here = [each for each in mine if each.recovery_point.position.branch == facts.branch]
    if not here:
        return _Full(f"its history is on branch {facts.branch} now, and no backup is")
    why, broken = broken_chains(known), ""
    for newest in sorted(here, key=lambda each: (each.recovery_point.position.offset, each.ended_at), reverse=True):
        if newest.id in why:
            broken = broken or why[newest.id]
            continue
        chain = chain_of(newest, known)
        if chain[0].kind != facts.kind:
            broken = broken or f"{chain[0].id} has no parent"
            continue
        if len(chain) > max_chain:
            return _Full(f"{len(chain) - 1} follow the last full one already", "note")
        return newest
    return _Full(f"no chain is whole: {broken}")


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
