"""What a drill has shown: whether the criterion was met, and whether what was said about the loss was true. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from resilience.model.drills import CanaryFacts, Criterion, DrillSchedule, FaultProof, Served
from resilience.model.failover import FailoverReport
from resilience.model.findings import Finding, blocker
from resilience.model.groups import GroupFacts
from resilience.model.show import as_span


def ready(facts: GroupFacts, *, subject: str) -> Iterator[Finding]:
    """Say why nothing may be made to fail in a group as it is now, if so."""
    yield from (each for each in facts.findings if each.severity == "blocker")
    primary = facts.member(facts.primary)
    if facts.owner:
        yield blocker(facts.group, f"{facts.owner} fails it over by itself", "drill that instead")
    if primary is None or not primary.reachable or not primary.writable:
        yield blocker(facts.group, "nobody is seen to take writes", "a drill begins with a group that is whole")
    elif subject != facts.primary:
        text = f"the primary is {facts.primary}, and what would fail is {subject}"
        yield blocker(subject, text, "a drill that never stops the primary proves nothing")
    if not any(each.reachable and each.receiving for each in facts.members if each.name != facts.primary):
        yield blocker(facts.group, "no standby receives from the primary", "nobody could take over")


def elected_instead(facts: GroupFacts, subject: str) -> str:
    """Name the member that a group has elected by itself instead of the one that failed; empty: none yet."""
    now = facts.member(facts.primary)
    there = facts.elects and now is not None and now.name != subject and now.role == "primary" and now.writable
    return facts.primary if there else ""


def allowed(schedule: DrillSchedule, now: datetime) -> Iterator[Finding]:
    """Say why now is not the time for a drill, if so."""
    if now not in schedule.window:
        yield blocker(schedule.kind, f"now is outside of its window: {schedule.window}", "wait for it")


def judge(
    criterion: Criterion,
    *,
    proof: FaultProof | None,
    served: Served | None,
    canary: CanaryFacts,
    failover: FailoverReport | None,
    elected: bool = False,
) -> Iterator[Finding]:
    """Yield a blocker for everything that a drill must have shown and has not; `elected`: the group did it itself."""
    if proof is None:
        yield blocker("fault", "nobody has proven that anything failed")
    if not elected and (failover is None or failover.ending != "completed"):
        why = "" if failover is None else f": {failover.why}"
        yield blocker("failover", f"it was not completed{why}")
    yield from _recovery(criterion, proof, served)
    yield from _loss(criterion, canary, failover)
    for each in canary.two_writers:
        yield blocker("route", f"two servers took writes: {each}", "find out who was not fenced, before the next one")


def _recovery(criterion: Criterion, proof: FaultProof | None, served: Served | None) -> Iterator[Finding]:
    if served is None:
        yield blocker("RTO", "no other server has acknowledged a write through the route")
    elif proof is not None and served.first - proof.at > criterion.rto:
        taken = as_span(served.first - proof.at)
        yield blocker("RTO", f"served again after {taken}, which is more than {as_span(criterion.rto)}")


def _loss(criterion: Criterion, canary: CanaryFacts, failover: FailoverReport | None) -> Iterator[Finding]:
    lost = canary.lost
    if canary.missing is None or lost is None:
        yield blocker("RPO", "nobody could look whether what was acknowledged is there")
        return
    if lost > criterion.rpo:
        text = f"{len(canary.missing)} acknowledged writes of {as_span(lost)} are lost"
        yield blocker("RPO", f"{text}, and {as_span(criterion.rpo) if criterion.rpo else 'none'} may be")
    if failover is not None and lost > timedelta(0):
        first = min(each.at for each in canary.missing)
        said = failover.loss
        if said.kind == "nothing" or (said.since is not None and said.since > first):
            yield blocker("RPO", f"more is lost than the failover said: {said}", "its evidence is wrong: report it")
