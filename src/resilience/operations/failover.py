"""failover(): give the role of the primary to another member, by a plan that was confirmed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from resilience.model.events import Notifier, Observer
from resilience.model.failover import FailoverPlan, FailoverReport
from resilience.model.journal import Terms
from resilience.model.moments import utc_now

from .beginning import Operator, executed, refuse_unconfirmed
from .group import FailoverGroup


async def failover(
    group: FailoverGroup,
    plan: FailoverPlan,
    *,
    confirm: str,
    actor: str = "",
    reason: str = "",
    accept_split_brain: bool = False,
    accept_data_loss: bool = False,
    failed_at: datetime | None = None,
    observer: Observer | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> FailoverReport:
    """Carry out a plan: hold clients, fence, settle, decide again, promote, switch, verify; and report what was done.

    `confirm` are the words that the plan shows. Everything is looked at again first, and the checklist before it has to
    pass. What nobody can prove is accepted by name only, and written down: that a member might still write
    (`accept_split_brain`), that more may be lost than the policy allows (`accept_data_loss`). `failed_at` is when the
    failure was, if somebody knows: then the report measures how long it took to be noticed.

    The report says `completed`, or `stopped` if nobody was promoted: then all that was done is undone, and `why` says
    why. Each step is in the journal before it begins and after it ended. Until a promotion has begun, a cancellation
    undoes what was done before it is raised; from then on, what is under way finishes or is recorded as unknown, and
    resume() goes on.

    Raises Refused before anything was touched: NotConfirmed, StalePlan (roles, timelines, routes moved, or it expired),
    FencingUnproven, LossTooGreat, and Refused for other blockers. Raises Unavailable if the journal or a route does not
    answer: nothing was touched. Raises JournalConflict and FencedOff if somebody else acts on the group, Interrupted
    if resume() has to go on.
    """
    told = Notifier(plan.kind, group.name, observer, actor=actor, reason=reason)
    with told.outcome():
        refuse_unconfirmed(group, plan, confirm)
        terms = Terms(accept_split_brain=accept_split_brain, accept_data_loss=accept_data_loss, failed_at=failed_at)
        by = Operator(actor=actor, reason=reason, told=told, clock=clock)
        return await executed(group, plan, terms, by)
