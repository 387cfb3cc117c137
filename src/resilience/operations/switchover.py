"""switchover(): give the role of the primary away while it still works, without losing anything."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from resilience.model.events import Notifier, Observer
from resilience.model.failover import FailoverPolicy, FailoverReport
from resilience.model.journal import Terms
from resilience.model.moments import utc_now

from .beginning import Operator, executed
from .group import FailoverGroup
from .plan_failover import NO_LOSS, planned


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
    primary comes back as a standby. `plan_switchover` plans one that has to be approved first, and `failover` carries
    that out; the rest is as there, and so is what it raises.
    """
    told = Notifier("switchover", group.name, observer, actor=actor, reason=reason)
    with told.outcome():
        plan = await planned(group, kind="switchover", to=to, policy=policy, clock=clock)
        by = Operator(actor=actor, reason=reason, told=told, clock=clock)
        return await executed(group, plan, Terms(), by)
