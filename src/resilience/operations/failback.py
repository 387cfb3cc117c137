"""failback(): bring members back that fell out, and give the role back, by a plan that was confirmed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from resilience.model.events import Observer
from resilience.model.failover import FailoverPlan, FailoverReport
from resilience.model.moments import utc_now

from .failover import failover
from .group import FailoverGroup


async def failback(
    group: FailoverGroup,
    plan: FailoverPlan,
    *,
    confirm: str,
    actor: str = "",
    reason: str = "",
    observer: Observer | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> FailoverReport:
    """Carry out what `plan_failback` has planned: what diverged is rewound or rebuilt, and then the role goes back.

    What only the old primary has is lost with that: the plan shows how much. No member is brought back in a heavier
    way than the plan says (a fresh base instead of a rewind): that stops it. The role is given back, if the plan says
    so, as in a switchover, without losing anything. The rest is as in `failover`, and so is what it raises.
    """
    if plan.kind != "failback":
        raise ValueError(f"it is the plan of a {plan.kind}: failover() carries it out")
    return await failover(group, plan, confirm=confirm, actor=actor, reason=reason, observer=observer, clock=clock)
