"""How members that fell out come back behind the primary, and the role with them if that is wanted."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime

from attrs import evolve

from resilience.model.diagnosis import worst_first
from resilience.model.failover import Divergence, FailoverPlan, FailoverPolicy, Loss, PhaseFloor, Step
from resilience.model.findings import Finding, blocker
from resilience.model.groups import GroupFacts, RouteFacts
from resilience.model.show import as_bytes

from .loss import known_sync
from .steps import steps_of, unreachable, waits

WAYS = {
    "follow": "it only has to receive again",
    "rewind": "it is rewound to where the histories parted",
    "rebuild": "it is made anew from a fresh base",
}


def apart(facts: GroupFacts) -> tuple[str, ...]:
    """Return the members that do not receive the primary's history now."""
    return tuple(
        each.name for each in facts.members if each.name != facts.primary and not (each.reachable and each.receiving)
    )


def plan_failback(
    facts: GroupFacts,
    routes: Sequence[RouteFacts],
    policy: FailoverPolicy,
    *,
    divergences: Sequence[Divergence],
    before: FailoverPlan | None,
    id: str,
    epoch: int,
    now: datetime,
    to: str | None = None,
    fenceable: Collection[str] = (),
    floor: Sequence[PhaseFloor] = (),
) -> FailoverPlan:
    """Decide how those that fell out come back; `before` is the failover that they fell out in, if it is known."""
    required, needed = _required(facts, before, to or facts.primary)
    plan = FailoverPlan(
        id=id,
        group=facts.group,
        system=facts.system,
        kind="failback",
        policy=policy,
        candidate=to,
        why=f"{to} was asked for" if to is not None else "",
        asked=to is not None,
        primary=facts.primary,
        epoch=epoch,
        fences=(facts.primary,) if to is not None and facts.primary else (),
        required=required,
        required_needed=needed,
        loss=_loss(divergences),
        floor=tuple(floor) if to is not None else (),
        divergences=tuple(divergences),
        facts=facts,
        routes=tuple(routes),
        made_at=now,
        expires_at=now + policy.valid,
    )
    steps = tuple(_steps(plan))
    return evolve(plan, steps=steps, findings=worst_first(_findings(plan, to, fenceable)))


def _steps(plan: FailoverPlan) -> Iterator[Step]:
    for found in plan.divergences:
        if found.way != "none":
            yield Step(kind="rejoin", subject=found.member, text=f"behind {plan.primary}: {WAYS[found.way]}")
    if plan.candidate is not None:
        receiving = [each.name for each in plan.facts.members if each.receiving and each.name != plan.candidate]
        yield from steps_of(plan, followers=receiving)
    elif plan.required_needed:
        yield Step(kind="require", subject=plan.primary, text=waits(plan.required, plan.required_needed))


def _loss(divergences: Sequence[Divergence]) -> Loss:
    """What only those have that come back is given up for good."""
    gone = [each for each in divergences if each.way in {"rewind", "rebuild"} and each.lost != 0]
    if not gone:
        return Loss(kind="nothing", evidence=("nobody has anything that the primary has not",))
    known = [each.lost for each in gone if each.lost is not None]
    evidence = [
        f"{each.member} has {as_bytes(each.lost)} that {each.primary} has not: that is given up" for each in gone
    ]
    evidence.append("what of it was acknowledged, the report of the failover says")
    return Loss(kind="unknown", missing=sum(known) if known else None, evidence=tuple(evidence))


def _findings(plan: FailoverPlan, to: str | None, fenceable: Collection[str]) -> Iterator[Finding]:
    facts = plan.facts
    yield from facts.findings
    yield from (finding for route in plan.routes for finding in route.findings)
    if facts.owner:
        text = f"{facts.owner} brings members back by itself"
        yield blocker(facts.owner, text, f"leave it to {facts.owner}")
    yield from _returning(plan)
    if to is not None:
        yield from _given_back(plan, to, fenceable)
    elif not plan.divergences:
        text = "nobody fell out: there is nothing to bring back"
        yield blocker(facts.group, text, "name who is to be primary with to=")


def _returning(plan: FailoverPlan) -> Iterator[Finding]:
    """What stands in the way of those that come back."""
    primary = plan.facts.member(plan.primary)
    if primary is None or not primary.reachable or primary.role != "primary":
        text = "there is no primary that anybody could come back behind"
        yield blocker(plan.primary or "primary", text, "plan a failover")
    for each in plan.divergences:
        if each.way == "none":
            why = each.why or "nobody can tell how far it has diverged"
            yield blocker(each.member, why, "make it reachable, then plan again")


def _given_back(plan: FailoverPlan, to: str, fenceable: Collection[str]) -> Iterator[Finding]:
    """What stands in the way of the switchover that follows."""
    if to == plan.primary:
        yield blocker(to, "it is the primary already", "name another member")
    if plan.facts.member(to) is None:
        yield blocker(to, "it is no member of the group", "name another member")
    yield from unreachable(plan.routes)
    for name in plan.fences:
        if name not in fenceable:
            text = f"nobody can fence {name}, so it cannot hand over"
            yield blocker(name, text, "give the group a fencer for it")


def _required(facts: GroupFacts, before: FailoverPlan | None, primary: str) -> tuple[tuple[str, ...], int]:
    """Return who is to acknowledge for `primary` from then on, and how many of them.

    A failover has left only the survivors of those who acknowledged before it: with those that come back it is all of
    them again. Whom somebody has named since counts as it is.
    """
    current = facts.sync if facts.sync is not None and facts.sync.needed else None
    known = _before(before) if before is not None else None
    if current is not None and (known is None or not {*current.members} <= {*known[0], known[2]}):
        known = (current.members, current.needed, facts.primary)
    if known is None or not known[1]:
        return (), 0
    members, needed, other = known
    swapped = dict.fromkeys(other if name == primary else name for name in members)
    required = tuple(name for name in swapped if name != primary and facts.member(name) is not None)
    return required, min(needed, len(required))


def _before(before: FailoverPlan) -> tuple[tuple[str, ...], int, str] | None:
    """Return who acknowledged in peace, how many of them, and who was primary then."""
    if before.required_needed:
        return before.required, before.required_needed, before.candidate or before.primary
    known = known_sync(before.sample, before.facts)
    return (known.members, known.needed, before.primary) if known is not None else None
