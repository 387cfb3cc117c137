"""Who is promoted, what that takes and what it loses: decided from facts, and again once nothing moves any more."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from typing import Literal

from attrs import evolve, frozen

from resilience.model.diagnosis import worst_first
from resilience.model.failover import (
    Accepted,
    Decision,
    FailoverPlan,
    FailoverPolicy,
    Loss,
    PhaseFloor,
    standing,
)
from resilience.model.findings import Finding
from resilience.model.groups import Fence, GroupFacts, RouteFacts, Sample, SyncSet, some_of

from .budget import over_budget
from .candidates import Muster, Standby, best, muster
from .loss import SPLIT_BRAIN, Ending, exceeds, known_sync, loss_of, too_much
from .staleness import stale
from .steps import steps_of, unreachable

__all__ = ["decide", "plan_failover", "stale"]

PlannedKind = Literal["failover", "switchover"]


def plan_failover(
    facts: GroupFacts,
    routes: Sequence[RouteFacts],
    policy: FailoverPolicy,
    *,
    id: str,
    epoch: int,
    now: datetime,
    kind: PlannedKind = "failover",
    to: str | None = None,
    sample: Sample | None = None,
    fenceable: Collection[str] = (),
    floor: Sequence[PhaseFloor] = (),
) -> FailoverPlan:
    """Decide on a failover or a switchover; what stands in its way are blockers, and nothing is raised."""
    case = _Case(
        facts=facts,
        routes=tuple(routes),
        policy=policy,
        kind=kind,
        to=to,
        found=muster(facts, sample, never=policy.never),
        fenceable=tuple(fenceable),
    )
    chosen, why = case.choose()
    candidate = chosen.name if chosen is not None else None
    sync, needed = case.sync_without(candidate)
    loss = case.loss(chosen)
    plan = FailoverPlan(
        id=id,
        group=facts.group,
        system=facts.system,
        kind=kind,
        policy=policy,
        candidate=candidate,
        why=why,
        asked=to is not None,
        primary=case.found.primary,
        epoch=epoch,
        fences=case.fences(),
        sync=sync,
        sync_needed=needed,
        loss=loss,
        floor=tuple(floor),
        facts=facts,
        routes=tuple(routes),
        sample=sample,
        made_at=now,
        expires_at=now + policy.valid,
    )
    if kind == "switchover" and candidate is not None:
        required, needed = case.sync_with_both(candidate)
        plan = evolve(plan, required=required, required_needed=needed)
    steps = steps_of(plan, followers=case.followers(candidate)) if candidate is not None or facts.elects else ()
    return evolve(plan, steps=steps, findings=worst_first(case.findings(chosen, plan, now)))


def decide(
    plan: FailoverPlan,
    settled: GroupFacts,
    *,
    fences: Sequence[Fence],
    sample: Sample | None = None,
    accepted: Collection[Accepted] = (),
) -> Decision:
    """Decide again, once the primary is fenced and the standbys stand still: within what was confirmed, or nobody.

    It rests on `sample`, or on the one that the plan was made with. A blocker says why nobody is promoted. Those whose
    subject is in `accepted` were accepted by name and stand no more in the way; what was confirmed is never exceeded,
    whatever is accepted.
    """
    known = sample or plan.sample
    found = muster(evolve(settled, primary=plan.primary or settled.primary), known, never=plan.policy.never)
    sync = known_sync(found.sample, plan.facts)  # the primary is gone: what it said itself is in the plan
    if plan.candidate is None and settled.elects:
        return Decision(candidate=None, why="the group elects its own", loss=plan.loss)
    chosen, why = _again(plan, found)
    ending = Ending.of(fences, found.primary, found.main)
    if chosen is None:
        nobody = Finding(
            severity="blocker", subject="candidate", text=why, hint="look at the standbys, then plan again"
        )
        loss = Loss(kind="unknown", evidence=("nobody is promoted",))
        return Decision(candidate=None, why=why, loss=loss, findings=(nobody,))
    loss = loss_of(chosen, found, sync=sync, ending=ending, before=plan.sample)
    findings = tuple(_within(plan, loss, fences, ending))
    survivors = [name for name in plan.sync if name != chosen.name and found.standby(name) is not None]
    if plan.candidate != chosen.name:
        survivors = _survivors(sync, found, chosen.name)
    if blockers := standing(findings, accepted):
        return Decision(candidate=None, why=blockers[0].text, loss=loss, findings=findings)
    return Decision(
        candidate=chosen.name,
        why=why,
        loss=loss,
        sync=tuple(survivors),
        sync_needed=min(_needed(plan, sync), len(survivors)),
        findings=tuple(
            evolve(each, severity="warning", text=f"{each.text}; accepted by name")
            if each.severity == "blocker"
            else each
            for each in findings
        ),
    )


@frozen(kw_only=True)
class _Case:
    """What a plan is made from, and the single decisions in it."""

    facts: GroupFacts
    routes: tuple[RouteFacts, ...]
    policy: FailoverPolicy
    kind: PlannedKind
    to: str | None
    found: Muster
    fenceable: tuple[str, ...]

    @property
    def sync(self) -> SyncSet | None:
        """Who has to acknowledge a write, as far as is known."""
        return known_sync(self.found.sample, self.facts)

    def choose(self) -> tuple[Standby | None, str]:
        """Choose whom to promote, and say why; or why nobody."""
        if self.to is not None:
            return _asked(self.found, self.to)
        if self.facts.elects:
            return None, "the group elects its own"
        eligible = self.found.eligible
        if self.kind == "switchover":  # the one that is chosen catches up before anybody is promoted
            receiving = [each for each in eligible if each.member.receiving] or eligible
            level = max((each.has for each in receiving), default=0)
            eligible = tuple(evolve(each, has=level) for each in receiving)
        return _chosen(self.found, eligible, self.policy, self.sync)

    def loss(self, chosen: Standby | None) -> Loss:
        """Return what is lost at most."""
        if self.kind == "switchover":
            text = f"{self.found.primary} is let finish, and hands over all it has, before anybody is promoted"
            return Loss(kind="nothing", evidence=(text,))
        if chosen is not None:
            return loss_of(chosen, self.found, sync=self.sync, ending=Ending())
        if not self.facts.elects or not self.found.eligible:
            return Loss(kind="unknown", evidence=("there is nobody who could be promoted",))
        worst = [loss_of(each, self.found, sync=self.sync, ending=Ending()) for each in self.found.eligible]
        return max(worst, key=lambda each: (each.kind == "unknown", each.kind == "bounded", -_moment(each.since)))

    def fences(self) -> tuple[str, ...]:
        """Return who must be proven unable to write: the primary, who else takes writes, and who might."""
        writes = [each.name for each in self.facts.members if each.role == "primary" or each.writable]
        dark = [] if self.found.primary else [each.name for each in self.facts.members if not each.reachable]
        wanted = {self.found.primary, *writes, *dark} - {""}
        return tuple(each.name for each in self.facts.members if each.name in wanted)

    def sync_without(self, candidate: str | None) -> tuple[tuple[str, ...], int]:
        """Return who is to have a write from the promotion on, and how many of them."""
        survivors = _survivors(self.sync, self.found, candidate)
        return tuple(survivors), min(self.sync.needed if self.sync is not None else 0, len(survivors))

    def sync_with_both(self, candidate: str) -> tuple[tuple[str, ...], int]:
        """Return who is to have a write once the old primary is back, in the place of the new one."""
        if self.sync is None or not self.sync.needed:
            return (), 0
        swapped = [self.found.primary if name == candidate else name for name in self.sync.members]
        known = [name for name in dict.fromkeys(swapped) if self.facts.member(name) is not None]
        return tuple(known), min(self.sync.needed, len(known))

    def followers(self, candidate: str | None) -> tuple[str, ...]:
        """Return the standbys that can follow the new primary as they are."""
        there = [] if self.facts.elects else self.found.standbys
        return tuple(each.name for each in there if not each.parted and each.has and each.name != candidate)

    def findings(self, chosen: Standby | None, plan: FailoverPlan, now: datetime) -> Iterator[Finding]:
        """Yield what stands in the way, and what a person should know."""
        yield from self.facts.findings
        yield from self.found.findings
        yield from (finding for route in self.routes for finding in route.findings)
        yield from self._owned()
        if chosen is None and not self.facts.elects:
            yield _blocker("candidate", plan.why, "make a standby reachable and healthy, then plan again")
        if chosen is not None:
            yield from (each for each in chosen.member.findings if each.severity != "blocker")
        yield from self._primary()
        yield from self._fenced(plan)
        yield from self._others(chosen)
        if chosen is not None or self.facts.elects:
            yield from too_much(plan.loss, self.policy, now=now)
            yield from self._copies(plan)
        yield from self._routed()
        yield from over_budget(plan.floor, self.policy)

    def _owned(self) -> Iterator[Finding]:
        owner = self.facts.owner
        if owner:
            text = f"{owner} fails this group over by itself, and would undo or contradict what is done here"
            yield _blocker(owner, text, f"fail over with {owner}, or take the group out of its hands first")

    def _primary(self) -> Iterator[Finding]:
        facts, name = self.facts, self.found.primary
        seen = facts.member(name)
        if not name:
            text = "which member is the primary nobody can tell, so every member that does not answer is fenced"
            yield Finding(severity="warning", subject="primary", text=text)
        if name and name == self.to:
            yield _blocker(name, "it is the primary already", "name another member")
        both = [each.name for each in facts.members if each.role == "primary"]
        if len(both) > 1:
            text = f"{' and '.join(both)} are both primaries: their histories are parting"
            yield _blocker(
                "primary", text, "fence the one that clients do not write to, and bring it back as a standby"
            )
        if self.kind == "switchover":
            if seen is None or not seen.reachable or seen.role != "primary":
                why = seen.problem if seen is not None and seen.problem else "it is not a primary"
                text = f"a switchover needs a primary that can hand over, and {name or 'nobody'} cannot: {why}"
                yield _blocker(name or "primary", text, "plan a failover")
        else:
            yield from self._death(name)

    def _death(self, name: str) -> Iterator[Finding]:
        """Is the primary dead, seen from enough places?"""
        needed = self.policy.witnesses
        dead = [each for each in self.facts.sightings if each.alive is False]
        alive = [each for each in self.facts.sightings if each.alive]
        if not needed:
            return
        if alive:
            text = f"it is alive, as {alive[0].vantage} sees it: {alive[0].text}"
            hint = "plan a switchover; or, if it must go, a failover with witnesses=0"
            yield _blocker(name or "primary", text, hint)
        if len(dead) < needed:
            who = f" ({', '.join(each.vantage for each in dead)})" if dead else ""
            text = f"it was seen dead from {len(dead)} of {needed} vantage points{who}"
            hint = "look from another place, or name how many are enough with witnesses="
            yield _blocker(name or "primary", text, hint)

    def _fenced(self, plan: FailoverPlan) -> Iterator[Finding]:
        if not plan.fences and not self.facts.elects:
            yield _blocker(SPLIT_BRAIN, "whom to fence nobody can tell", "say which members there are")
        for name in plan.fences:
            if name not in self.fenceable:
                clean = self.kind == "switchover"
                text = f"nobody can fence {name}: if it is alive, or comes back, there are two primaries"
                hint = "give the group a fencer for it"
                accept = "" if clean else "; accept_split_brain=True accepts that, by name"
                yield _blocker(name if clean else SPLIT_BRAIN, text, hint + accept)

    def _others(self, chosen: Standby | None) -> Iterator[Finding]:
        for each in self.found.standbys:
            if each.why_not and (chosen is None or each.name != chosen.name):
                text = f"it is not promoted: {each.why_not}"
                yield Finding(severity="note", subject=each.name, text=text)
            elif chosen is not None and self.kind == "failover" and each.has > chosen.has:
                yield Finding(
                    severity="warning", subject=each.name, text=f"it has more than {chosen.name}: {each.member.durable}"
                )
        for member in self.facts.members:
            if not member.reachable and member.name != self.found.primary:
                text = f"nobody could look at it: {member.problem}"
                yield Finding(severity="warning", subject=member.name, text=text)

    def _copies(self, plan: FailoverPlan) -> Iterator[Finding]:
        """Does a write wait for as many copies as before?"""
        before = self.sync.needed if self.sync is not None else 0
        later = plan.required_needed
        if plan.sync_needed < before:
            until = f"until {plan.primary} is back" if later >= before else "until another standby is there"
            then = some_of(plan.sync, plan.sync_needed)
            text = f"from the promotion on a write waits for {then}, and not for {before} as before, {until}"
            yield Finding(severity="warning", subject="synchronous standbys", text=text)

    def _routed(self) -> Iterator[Finding]:
        if not self.routes:
            text = "no route is switched: clients have to find the new primary by themselves"
            yield Finding(severity="warning", subject="routes", text=text, hint="give the group a switch")
        if self.kind == "switchover":
            yield from unreachable(self.routes)
        for route in self.routes:
            if route.to is not None and self.found.primary and route.to != self.found.primary and not route.follows:
                text = f"it leads to {route.to}, not to {self.found.primary}"
                yield Finding(severity="warning", subject=route.route, text=text)


def _chosen(
    found: Muster, eligible: Sequence[Standby], policy: FailoverPolicy, sync: SyncSet | None
) -> tuple[Standby | None, str]:
    members = sync.members if sync is not None else ()
    chosen = best(eligible, preferred=policy.preferred, sync=members)
    if chosen is None:
        return None, _nobody(found)
    equals = [each.name for each in eligible if each.has == chosen.has and each.name != chosen.name]
    others = [each for each in eligible if each.has < chosen.has]
    chosen = found.standby(chosen.name) or chosen
    if equals:
        reason = "the policy prefers it" if chosen.name in policy.preferred else "it is named first"
        if chosen.name not in policy.preferred and chosen.name in members and not set(equals) <= set(members):
            reason = "it is a synchronous standby"
        return chosen, f"{chosen.name} has as much as {' and '.join(equals)}, and {reason}"
    if others:
        second = max(others, key=lambda each: each.has)
        return chosen, f"{chosen.name} has most of the history, {chosen.member.durable}; next is {second.name}"
    return chosen, f"{chosen.name} is the only one that can be promoted, at {chosen.member.durable}"


def _nobody(found: Muster) -> str:
    reasons = [f"{each.name}: {each.why_not}" for each in found.standbys if each.why_not]
    return "nobody can be promoted: " + ("; ".join(reasons) or "no standby can be looked at")


def _asked(found: Muster, to: str) -> tuple[Standby | None, str]:
    named = found.standby(to)
    if named is None or named.why_not:
        why = named.why_not if named is not None else "it is no standby that can be looked at"
        return None, f"{to} was asked for, and cannot be promoted: {why}"
    return named, f"{to} was asked for"


def _again(plan: FailoverPlan, found: Muster) -> tuple[Standby | None, str]:
    """Choose once more: the planned one, unless somebody else has more by now."""
    planned = found.standby(plan.candidate)
    if plan.asked or plan.kind == "switchover":
        if planned is None or planned.why_not:
            why = planned.why_not if planned is not None else "nobody can look at it any more"
            return None, f"{plan.candidate} cannot be promoted any more: {why}"
        return planned, f"{planned.name} was planned, and stands at {planned.member.durable}"
    most = best(found.eligible, preferred=plan.policy.preferred)
    if most is None:
        return None, _nobody(found)
    if planned is not None and not planned.why_not and planned.has >= most.has:
        return planned, f"{planned.name} has the most, at {planned.member.durable}, as planned"
    gone = planned.why_not if planned is not None else "nobody can look at it any more"
    behind = planned is not None and not planned.why_not
    reason = f"{plan.candidate} is behind it" if behind else f"{plan.candidate} cannot be promoted: {gone}"
    return most, f"{most.name} has the most, at {most.member.durable}; {reason}"


def _within(plan: FailoverPlan, loss: Loss, fences: Sequence[Fence], ending: Ending) -> Iterator[Finding]:
    """Yield what of a second decision goes beyond what was confirmed."""
    fenced = {each.member for each in fences}
    for name in plan.fences:
        if name not in fenced:
            yield _blocker(SPLIT_BRAIN, f"nobody has fenced {name}", "fence it, then plan again")
    for each in fences:
        if each.kind == "waived":
            yield _blocker(SPLIT_BRAIN, f"nobody has proven that {each.member} cannot write", "fence it by hand")
    if beyond := exceeds(loss, plan.loss):
        yield _blocker("confirmed", f"more would be lost than was confirmed: {beyond}", "plan again")
    # Where it was fenced is when the loss ends; without a proof there is no end, and the loss is unknown.
    yield from too_much(loss, plan.policy, now=ending.until or plan.made_at)


def _survivors(sync: SyncSet | None, found: Muster, candidate: str | None) -> list[str]:
    if sync is None or not sync.needed:
        return []
    here = {each.name for each in found.standbys if not each.parted}
    return [name for name in dict.fromkeys(sync.members) if name != candidate and name in here]


def _needed(plan: FailoverPlan, sync: SyncSet | None) -> int:
    return max(plan.sync_needed, sync.needed if sync is not None else 0)


def _moment(moment: datetime | None) -> float:
    return moment.timestamp() if moment is not None else float("-inf")


def _blocker(subject: str, text: str, hint: str) -> Finding:
    return Finding(severity="blocker", subject=subject, text=text, hint=hint)
