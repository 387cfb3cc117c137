"""The lines of the checklists before and after a failover (R37, R38) that can be judged from facts. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, timedelta

from resilience.model.approvals import Approval
from resilience.model.drills import DrillReport
from resilience.model.failover import FailoverPlan
from resilience.model.findings import Finding, Severity, blocker
from resilience.model.groups import GroupFacts, MemberFacts, RouteFacts
from resilience.model.measured import RestoreMeasured
from resilience.model.reports import Coverage
from resilience.model.show import as_bytes, as_span, when

from .ancestry import Line, same_branch, shared


def unrecoverable(plan: FailoverPlan) -> Iterator[Finding]:
    """Is the primary gone for good, by all that could be seen of it?"""
    if plan.kind != "failover":
        return
    for each in plan.facts.sightings:
        if each.alive:
            text = f"{plan.primary} is alive, as {each.vantage} sees it: {each.text}"
            yield blocker("primary", text, "plan a switchover")
    dead = [each for each in plan.facts.sightings if each.alive is False]
    if not dead:
        yield blocker("primary", f"nobody has seen {plan.primary or 'it'} dead", "look from another place")


def approved(plan: FailoverPlan, given: Collection[Approval], roles: Collection[str]) -> Iterator[Finding]:
    """Has everybody agreed to this very plan whose approval must be on record?"""
    for role in roles:
        here = [each for each in given if each.role == role]
        valid = [each for each in here if each.code == plan.code]
        if not valid:
            other = f"; {here[-1].actor} approved another plan ({here[-1].code})" if here else ""
            text = f"the approval of {role} is not on record for this plan ({plan.code}){other}"
            yield blocker("approvals", text, f"have {role} look at the plan and approve {plan.code}")


def reached(who: Collection[str], told: Collection[str], severity: Severity) -> Iterator[Finding]:
    """Was everybody told?"""
    missing = [name for name in who if name not in told]
    if missing:
        text = f"{', '.join(missing)} could not be told"
        yield Finding(severity=severity, subject="notices", text=text, hint="tell them by telephone")


def lag(plan: FailoverPlan, *, limit: timedelta, behind: int) -> Iterator[Finding]:
    """Does the candidate have what the primary had, but for so little?"""
    member = _candidate(plan)
    if member is None or member.durable is None:
        return
    known = plan.facts.member(plan.primary)
    end = known.durable if known is not None and known.durable is not None else None
    if end is None and plan.sample is not None:
        end = plan.sample.position
    missing = end.offset - member.durable.offset if end is not None and end.branch == member.durable.branch else None
    if missing is not None and missing > behind:
        text = (
            f"{member.name} is {as_bytes(missing)} behind {plan.primary} as it is known, more than {as_bytes(behind)}"
        )
        yield blocker("lag", text, "wait until it has caught up, or promote another member")
    if plan.loss.kind == "nothing":
        return
    if plan.loss.since is None:
        yield blocker("lag", f"how far {member.name} lags in time nobody can tell", "keep a StateRecorder running")
    elif plan.made_at - plan.loss.since > limit:
        text = f"{member.name} may lag by {as_span(plan.made_at - plan.loss.since)}, at most {as_span(limit)} may be"
        yield blocker("lag", text, "bring back a member that has more")


def healthy(plan: FailoverPlan) -> Iterator[Finding]:
    """Is the candidate fit to be a primary, and like the one that it follows?"""
    member = _candidate(plan)
    if member is None:
        return
    backlog = member.durable.offset - member.applied.offset if member.durable and member.applied else 0
    if backlog > 1 << 30:
        text = f"{member.name} has {as_bytes(backlog)} still to apply, and clients wait for that"
        yield Finding(severity="warning", subject="standby", text=text, hint="is its replay paused or slow?")
    old = plan.facts.member(plan.primary)
    if old is None and plan.sample is not None:
        old = next((each for each in plan.sample.members if each.name == plan.primary), None)
    if old is not None and old.version and member.version and old.version != member.version:
        text = f"{member.name} runs {member.version}, {plan.primary} {old.version}"
        yield Finding(severity="warning", subject="standby", text=text, hint="run one version on both")
    if old is not None and old.reachable and not member.receiving:
        text = f"{member.name} does not receive from {plan.primary}, which is there"
        yield blocker("standby", text, "look at its log, and at the slot and the password that it uses")


def room(plan: FailoverPlan, *, needed: int) -> Iterator[Finding]:
    """Has the candidate's disk room for what a primary writes?"""
    member = _candidate(plan)
    if member is None:
        return
    if member.free is None:
        text = f"how much room {member.name} has nobody can tell"
        yield Finding(severity="warning", subject="disk", text=text, hint="look at it on the machine")
    elif member.free < needed:
        text = f"{member.name} has {as_bytes(member.free)} free, {as_bytes(needed)} are wanted"
        yield blocker("disk", text, "make room first: a primary whose disk is full stops")


def recoverable(
    coverage: Coverage,
    measured: Sequence[RestoreMeasured],
    *,
    now: datetime,
    within: timedelta,
    shown_within: timedelta,
    severity: Severity,
) -> Iterator[Finding]:
    """Could everything be restored to a moment that is not long ago, and has a restore shown that lately?"""
    ends = [each.ends.time for each in coverage.ranges if each.ends.time is not None]
    ends += [each.point.time or each.taken_at for each in coverage.moments]
    newest = max(ends, default=None)
    if newest is None or now - newest > within:
        there = "there is none" if newest is None else f"the newest is {as_span(now - newest)} old, {when(newest)}"
        text = f"a recovery point younger than {as_span(within)} is wanted, and {there}"
        hint = "take a backup of a standby, or see why the log is not archived"
        yield Finding(severity=severity, subject="recovery point", text=text, hint=hint)
    shown = [each.ended_at for each in measured if each.outcome == "succeeded"]
    if not shown or now - max(shown) > shown_within:
        there = "there has been none" if not shown else f"the last was {as_span(now - max(shown))} ago"
        text = f"a restore proven within {as_span(shown_within)} is wanted, and {there}"
        yield Finding(severity="warning", subject="recovery point", text=text, hint="restore into a scratch server")


def drilled(reports: Sequence[DrillReport], *, now: datetime, within: timedelta) -> Iterator[Finding]:
    """Has a failover of this group been practised lately, and did it pass?"""
    if not reports:
        yield Finding(severity="warning", subject="drill", text="none is on record", hint="hold one with drill()")
        return
    last = max(reports, key=lambda each: each.ended_at)
    if not last.passed:
        text = f"the last one, {as_span(now - last.ended_at)} ago, did not pass"
        yield Finding(severity="warning", subject="drill", text=text, hint="see its report for why")
    elif now - last.ended_at > within:
        text = (
            f"the last one that is on record was {as_span(now - last.ended_at)} ago, one is due every {as_span(within)}"
        )
        yield Finding(severity="warning", subject="drill", text=text, hint="hold one with drill()")


def reversible(plan: FailoverPlan, fenceable: Collection[str]) -> Iterator[Finding]:
    """Is there a way back, once the candidate is primary?"""
    if plan.candidate is None:
        return
    if plan.candidate not in fenceable:
        text = f"nobody can fence {plan.candidate}, so the role cannot be taken from it again"
        yield Finding(severity="warning", subject="rollback", text=text, hint="give the group a fencer for it")
    others = [
        each.name
        for each in plan.facts.members
        if each.reachable and each.role == "standby" and each.name != plan.candidate
    ]
    if not others and plan.kind == "failover":
        text = f"until {plan.primary or 'the old primary'} is back, {plan.candidate} is the only copy"
        yield Finding(severity="warning", subject="rollback", text=text, hint="plan_failback() soon")


def current(reviewed: datetime, *, now: datetime, within: timedelta) -> Iterator[Finding]:
    """Has somebody looked at the runbook lately?"""
    if now - reviewed > within:
        text = f"it was last reviewed {as_span(now - reviewed)} ago, it is due every {as_span(within)}"
        yield Finding(severity="warning", subject="runbook", text=text, hint="read it, correct it, note the day")


def writable(plan: FailoverPlan, facts: GroupFacts) -> Iterator[Finding]:
    """Does exactly one member take writes, and is it the new one?"""
    writers = [each.name for each in facts.members if each.reachable and (each.writable or each.role == "primary")]
    if len(writers) > 1:
        text = f"{' and '.join(writers)} take writes at once"
        yield blocker("database", text, f"fence all but {facts.primary} at once")
    member = facts.member(facts.primary)
    if member is None or not member.writable:
        text = f"{facts.primary or 'nobody'} is primary, and takes no writes"
        yield blocker("database", text, "look at its log, and at default_transaction_read_only")
    if plan.primary == facts.primary and plan.candidate is not None:
        yield blocker("database", f"{plan.primary} is still the primary", "plan again")


def connected(facts: GroupFacts, routes: Sequence[RouteFacts]) -> Iterator[Finding]:
    """Do clients reach the new primary, by every way?"""
    primary = facts.member(facts.primary)
    if primary is None:
        yield blocker("routes", "nobody is known as primary, so nobody can tell whether clients reach it", "plan again")
    if not routes:
        text = "there is no route to look at: whether clients reach the new primary nobody has seen"
        yield Finding(severity="warning", subject="routes", text=text, hint="connect as an application does")
    for route in routes:
        if route.held:
            yield blocker(route.route, "its clients still wait", "resume() lets them go")
        elif primary is not None and route.instance and primary.instance and route.instance != primary.instance:
            yield blocker(
                route.route, f"it leads to another server than {primary.name}", "resume(), or switch it by hand"
            )
        elif not route.instance:
            text = "no connection through it has reached a server"
            yield Finding(severity="warning", subject=route.route, text=text, hint="connect through it yourself")
        elif route.writable is False:
            yield blocker(route.route, f"what it reaches takes no writes, and {facts.primary} is primary", "look at it")


def consistent(plan: FailoverPlan, facts: GroupFacts, coverage: Coverage | None = None) -> Iterator[Finding]:
    """Does the new history go on from the old one, do the standbys follow it, and is it archived?"""
    member = facts.member(facts.primary)
    line = Line.of(member) if member is not None else None
    if member is None or line is None:
        yield blocker("log", f"the history of {facts.primary or 'the primary'} cannot be seen", "look at it")
        return
    before = plan.facts.member(plan.candidate or "")
    # Not what it had on disk: a record that had only begun to arrive is no part of any history.
    was = Line.up_to(before.branches, before.applied) if before is not None and before.applied is not None else None
    if was is not None and (shared(line, was) or 0) < was.end.offset:
        text = f"{member.name} is on {line.end}, which does not contain {was.end}, where it stood before"
        yield blocker("log", text, "it is another history: find out who promoted or restored it")
    for each in facts.members:
        other = Line.of(each)
        if each.role == "standby" and each.reachable and other is not None and not same_branch(line, other):
            text = f"it is on {other.end.branch}, and {member.name} on {line.end.branch}"
            yield Finding(
                severity="warning", subject=each.name, text=text, hint="plan_failback() says how it comes back"
            )
    if coverage is not None and line.end.branch not in {each.branch for each in coverage.ranges}:
        text = f"the archive has nothing of branch {line.end.branch} yet"
        hint = "let the archiver follow the new primary, and take a full backup"
        yield Finding(severity="warning", subject="log", text=text, hint=hint)


def _candidate(plan: FailoverPlan) -> MemberFacts | None:
    return plan.facts.member(plan.candidate) if plan.candidate is not None else None
