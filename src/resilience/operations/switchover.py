"""switchover(): give the role of the primary away while it still works, without losing anything."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from resilience.journal import Journal
from resilience.model.events import Notifier, Observer
from resilience.model.failover import FailoverPlan, FailoverPolicy, FailoverReport
from resilience.model.ids import new_id as fresh_id
from resilience.model.journal import Terms
from resilience.model.moments import utc_now
from resilience.planning.failover import plan_failover

from .beginning import Operator, executed
from .group import FailoverGroup

NO_LOSS = FailoverPolicy()


async def switchover(
    group: FailoverGroup,
    *,
    to: str | None = None,
    policy: FailoverPolicy = NO_LOSS,
    actor: str = "",
    reason: str = "",
    observer: Observer | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> FailoverReport:
    """Plan a switchover and carry it out: hold, stop the primary in order, catch up, promote, switch, rejoin.

    `to` names the new primary; without it the one is chosen that a failover would choose. Clients wait from the hold on
    until they are let go to the new primary: nothing is lost, and on routes that hold no transaction fails. The old
    primary comes back as a standby. A plan of one that somebody approved is carried out by `failover`; the rest is as
    there, and so is what it raises.
    """
    told = Notifier("switchover", group.name, observer, actor=actor, reason=reason)
    with told.outcome():
        plan = await _planned(group, to=to, policy=policy, clock=clock)
        by = Operator(actor=actor, reason=reason, told=told, clock=clock)
        return await executed(group, plan, Terms(), by)


async def _planned(
    group: FailoverGroup, *, to: str | None, policy: FailoverPolicy, clock: Callable[[], datetime]
) -> FailoverPlan:
    epoch = await Journal(group.journal, group.name).epoch()
    facts = await group.promoter.survey()
    routes = [await switch.survey() for switch in group.switches]
    now = clock()
    return plan_failover(
        facts,
        routes,
        policy,
        id=fresh_id(now),
        epoch=epoch + 1,
        now=now,
        kind="switchover",
        to=to,
        fenceable=group.fenceable,
    )
