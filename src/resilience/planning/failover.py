"""Who is promoted, what that takes and what it loses, decided from facts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from typing import Literal

from attrs import evolve, frozen

from resilience.model.diagnosis import worst_first
from resilience.model.failover import (
    FailoverPlan,
    FailoverPolicy,
    Loss,
    PhaseFloor,
)
from resilience.model.findings import Finding, blocker
from resilience.model.groups import GroupFacts, RouteFacts, Sample, SyncSet, some_of

from .budget import over_budget
from .candidates import Muster, Standby, muster
from .choosing import choose, choose_asked, survivors
from .loss import SPLIT_BRAIN, Ending, known_sync, loss_of, too_much
from .steps import steps_of, unreachable

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
            return choose_asked(self.found, self.to)
        if self.facts.elects:
            return None, "the group elects its own"
        eligible = self.found.eligible
        if self.kind == "switchover":  # the one that is chosen catches up before anybody is promoted
            receiving = [each for each in eligible if each.member.receiving] or eligible
            level = max((each.has for each in receiving), default=0)
            eligible = tuple(evolve(each, has=level) for each in receiving)
        return choose(self.found, eligible, self.policy, self.sync)

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
        left = survivors(self.sync, self.found, candidate)
        return tuple(left), min(self.sync.needed if self.sync is not None else 0, len(left))

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
            yield blocker("candidate", plan.why, "make a standby reachable and healthy, then plan again")
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
            yield blocker(owner, text, f"fail over with {owner}, or take the group out of its hands first")

    def _primary(self) -> Iterator[Finding]:
        facts, name = self.facts, self.found.primary
        seen = facts.member(name)
        if not name:
            text = "which member is the primary nobody can tell, so every member that does not answer is fenced"
            yield Finding(severity="warning", subject="primary", text=text)
        if name and name == self.to:
            yield blocker(name, "it is the primary already", "name another member")
        both = [each.name for each in facts.members if each.role == "primary"]
        if len(both) > 1:
            text = f"{' and '.join(both)} are both primaries: their histories are parting"
            yield blocker("primary", text, "fence the one that clients do not write to, and bring it back as a standby")
        if self.kind == "switchover":
            if seen is None or not seen.reachable or seen.role != "primary":
                why = seen.problem if seen is not None and seen.problem else "it is not a primary"
                text = f"a switchover needs a primary that can hand over, and {name or 'nobody'} cannot: {why}"
                yield blocker(name or "primary", text, "plan a failover")
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
            yield blocker(name or "primary", text, hint)
        if len(dead) < needed:
            who = f" ({', '.join(each.vantage for each in dead)})" if dead else ""
            text = f"it was seen dead from {len(dead)} of {needed} vantage points{who}"
            hint = "look from another place, or name how many are enough with witnesses="
            yield blocker(name or "primary", text, hint)

    def _fenced(self, plan: FailoverPlan) -> Iterator[Finding]:
        if not plan.fences and not self.facts.elects:
            yield blocker(SPLIT_BRAIN, "whom to fence nobody can tell", "say which members there are")
        for name in plan.fences:
            if name not in self.fenceable:
                clean = self.kind == "switchover"
                text = f"nobody can fence {name}: if it is alive, or comes back, there are two primaries"
                hint = "give the group a fencer for it"
                accept = "" if clean else "; accept_split_brain=True accepts that, by name"
                yield blocker(name if clean else SPLIT_BRAIN, text, hint + accept)

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
            if route.to is None and route.instance:
                text = (
                    "it leads to a server at another address than any member has: if it is let go, it is written anew"
                )
                hint = "give the switch the address of each member as it stands there"
                yield Finding(severity="warning", subject=route.route, text=text, hint=hint)
            if route.to is not None and self.found.primary and route.to != self.found.primary and not route.follows:
                text = f"it leads to {route.to}, not to {self.found.primary}"
                yield Finding(severity="warning", subject=route.route, text=text)


def _moment(moment: datetime | None) -> float:
    return moment.timestamp() if moment is not None else float("-inf")
