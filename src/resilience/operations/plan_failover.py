"""plan_failover(), plan_switchover(), plan_failback(): what would be done, at what price, or why it cannot be done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import datetime
from functools import partial
from typing import TypeVar

from attrs import evolve, frozen

from resilience.concurrency import stop_tasks
from resilience.journal import Journal
from resilience.model.errors import ResilienceError
from resilience.model.failover import Divergence, FailoverPlan, FailoverPolicy, PhaseFloor, RtoBudget
from resilience.model.findings import Finding
from resilience.model.groups import GroupFacts, RouteFacts, Sample
from resilience.model.ids import new_id
from resilience.model.journal import Record
from resilience.model.moments import utc_now
from resilience.planning import failover as planning
from resilience.planning.budget import floors, over_budget
from resilience.planning.failback import apart
from resilience.planning.failback import plan_failback as planned_failback
from resilience.planning.failover import PlannedKind

from .group import FailoverGroup
from .routes import route_facts
from .samples import last_sample

T = TypeVar("T")
NO_LOSS = FailoverPolicy()


async def plan_failover(
    group: FailoverGroup,
    *,
    policy: FailoverPolicy = NO_LOSS,
    to: str | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> FailoverPlan:
    """Return how the role of a primary that failed would be given away: to whom and why, step by step, at what loss.

    `to` names the new primary; without it that is whose history reaches furthest. Nothing is touched. What stands in
    the way are blockers of the plan, also when a member cannot be reached. The checklist before a failover is not
    looked at: `preflight` does that. Raises Unavailable if the journal or a route cannot be looked at.
    """
    return await planned(group, kind="failover", policy=policy, to=to, clock=clock)


async def plan_switchover(
    group: FailoverGroup,
    *,
    policy: FailoverPolicy = NO_LOSS,
    to: str | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> FailoverPlan:
    """Return how the role of a primary that works would be given away without losing anything; see `plan_failover`."""
    return await planned(group, kind="switchover", policy=policy, to=to, clock=clock)


async def plan_failback(
    group: FailoverGroup,
    *,
    policy: FailoverPolicy = NO_LOSS,
    to: str | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> FailoverPlan:
    """Return how members that fell out would be brought back behind the primary: what diverged, rewind or rebuild.

    With `to` the role is given to that member afterwards, as in a switchover. Nothing is touched. Raises Unavailable if
    the journal or a route cannot be looked at.
    """
    seen = await _seen(group, policy=policy, clock=clock)
    names = apart(seen.facts)
    asked = [partial(_divergence, group, member, seen.facts.primary) for member in names]
    divergences = await _side_by_side(asked)
    return planned_failback(
        seen.facts,
        seen.routes,
        policy,
        divergences=divergences,
        before=seen.records[0].plan if seen.records else None,
        id=new_id(seen.now),
        epoch=seen.epoch,
        now=seen.now,
        to=to,
        fenceable=group.fenceable,
        floor=seen.floor,
    )


async def rto_budget(group: FailoverGroup, *, policy: FailoverPolicy = NO_LOSS) -> RtoBudget:
    """Return how long a failover takes at least by live settings, held against the policy's objective; in peace.

    What of it is not known, since a member or a route does not answer, is a finding.
    """
    floor, unknown = await _floor(group, policy)
    findings = list(over_budget(floor, policy))
    findings += (
        [Finding(severity="warning", subject="RTO", text=f"not all of it is known: {unknown}")] if unknown else []
    )
    return RtoBudget(group=group.name, floor=floor, objective=policy.rto, findings=tuple(findings))


async def planned(
    group: FailoverGroup,
    *,
    kind: PlannedKind,
    policy: FailoverPolicy,
    to: str | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> FailoverPlan:
    """Look at everything side by side, and decide."""
    seen = await _seen(group, policy=policy, clock=clock)
    plan = planning.plan_failover(
        seen.facts,
        seen.routes,
        policy,
        id=new_id(seen.now),
        epoch=seen.epoch,
        now=seen.now,
        kind=kind,
        to=to,
        sample=seen.sample,
        fenceable=group.fenceable,
        floor=seen.floor,
    )
    return evolve(plan, findings=(*plan.findings, *seen.findings))


@frozen(kw_only=True)
class _Seen:
    """All that a plan rests on."""

    facts: GroupFacts
    routes: tuple[RouteFacts, ...]
    records: tuple[Record, ...]
    sample: Sample | None
    floor: tuple[PhaseFloor, ...]
    findings: tuple[Finding, ...]
    now: datetime

    @property
    def epoch(self) -> int:
        """The epoch that the plan is for."""
        return self.records[-1].epoch + 1 if self.records else 1


async def _seen(group: FailoverGroup, *, policy: FailoverPolicy, clock: Callable[[], datetime]) -> _Seen:
    now = clock()
    tasks = (
        asyncio.create_task(group.promoter.survey()),
        asyncio.create_task(_side_by_side([partial(route_facts, switch) for switch in group.switches])),
        asyncio.create_task(Journal(group.journal, group.name).last()),
        asyncio.create_task(last_sample(group.samples, group.name, now=now)),
        asyncio.create_task(_floor(group, policy)),
    )
    try:
        facts, routes, records, (sample, unread), (floor, unknown) = await asyncio.gather(*tasks)
    finally:
        await stop_tasks(tasks)
    findings = []
    if unread:
        text = f"what was last recorded of the primary cannot be read: {unread}"
        hint = "without it nobody can tell who had to have a write"
        findings.append(Finding(severity="warning", subject="record", text=text, hint=hint))
    if unknown:
        text = f"how long it takes at least is not known: {unknown}"
        findings.append(Finding(severity="note", subject="RTO", text=text))
    return _Seen(
        facts=evolve(facts, group=group.name),
        routes=routes,
        records=records,
        sample=sample,
        floor=floor,
        findings=tuple(findings),
        now=clock(),
    )


async def _floor(group: FailoverGroup, policy: FailoverPolicy) -> tuple[tuple[PhaseFloor, ...], str]:
    """Return what each phase takes at least, and why that is not known of some."""
    asked = [partial(_tried, floor) for floor in (group.promoter.floor, *(each.floor for each in group.switches))]
    (promoter, *switches) = await _side_by_side(asked)
    unknown = "; ".join(why for _, why in (promoter, *switches) if why)
    return floors(policy, promoter[0], [found for found, _ in switches]), unknown


async def _tried(floor: Callable[[], Awaitable[tuple[PhaseFloor, ...]]]) -> tuple[tuple[PhaseFloor, ...], str]:
    try:
        return await floor(), ""
    except ResilienceError as error:
        return (), str(error)


async def _divergence(group: FailoverGroup, member: str, primary: str) -> Divergence:
    try:
        return await group.promoter.divergence(member, primary=primary)
    except ResilienceError as error:
        return Divergence(member=member, primary=primary, way="none", why=str(error))


async def _side_by_side(asked: Sequence[Callable[[], Coroutine[object, object, T]]]) -> tuple[T, ...]:
    tasks = [asyncio.create_task(each()) for each in asked]
    try:
        return tuple(await asyncio.gather(*tasks))
    finally:
        await stop_tasks(tasks)
