"""resume(): go on with a failover whose operator died."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection
from datetime import datetime

from attrs import evolve

from resilience.journal import Journal
from resilience.model.errors import Refused
from resilience.model.events import Notifier, Observer
from resilience.model.failover import FailoverReport
from resilience.model.journal import Record, Terms
from resilience.model.moments import utc_now
from resilience.planning.staleness import stale
from resilience.planning.transitions import Execution, after, folded, steps

from .beginning import Operator, engine, uninterrupted
from .group import FailoverGroup


async def resume(
    group: FailoverGroup,
    *,
    stop: bool = False,
    give_up: Collection[str] = (),
    accept_split_brain: bool = False,
    accept_data_loss: bool = False,
    actor: str = "",
    reason: str = "",
    observer: Observer | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> FailoverReport:
    """Take over what the journal holds unfinished, look at how things are, and finish it; return its report.

    It goes on within what was confirmed when it began, in an epoch of its own: whoever was at work until now loses at
    his next step. Steps of which nobody knows what came of them are done again, and all of them may be. If nothing but
    waiting clients came of it yet, and the plan does not hold any more, it is undone. `stop` undoes it where that is
    possible: as long as no promotion has begun. `give_up` names routes and members that nobody waits for any more.

    If the candidate may have been promoted and cannot be reached, nobody can tell what it took: bring it back, or
    accept the loss (`accept_data_loss`): then it is fenced, and the decision made again without it.

    If the last one has ended already its report is returned. Raises Refused if there is nothing to resume, or it cannot
    be stopped any more; the rest as `failover`.
    """
    journal = Journal(group.journal, group.name)
    found = folded(await journal.last())
    if found is None:
        raise Refused("nothing was ever begun", operation="resume", subject=group.name)
    if found.report is not None:
        return found.report
    if stop and not (found.undoable or found.state in {"stopping", "lifted", "stopped"}):
        raise Refused(
            f"a promotion has begun, and cannot be undone: it is {found.state}",
            operation="resume",
            subject=group.name,
            hint="resume without stop, then switch over or fail back",
        )
    told = Notifier("resume", group.name, observer, actor=actor, reason=reason)
    with told.outcome():
        terms = Terms(
            accept_split_brain=accept_split_brain or found.terms.accept_split_brain,
            accept_data_loss=accept_data_loss or found.terms.accept_data_loss,
            failed_at=found.terms.failed_at,
            let_go=tuple(dict.fromkeys([*found.terms.let_go, *give_up])),
        )
        by = Operator(actor=actor, reason=reason, told=told, clock=clock)
        why = "it was asked for" if stop else await _moved(group, found, clock())
        record = _taking_over(found, terms, by, why if found.undoable else "")
        return await uninterrupted(engine(group, journal, after(found, record), by), record)


async def _moved(group: FailoverGroup, found: Execution, now: datetime) -> str:
    """Say why what was begun has lost its reason, if nothing was touched yet but routes."""
    if not found.only_held:
        return ""
    facts = await group.promoter.survey()
    return "; ".join(stale(found.plan, facts, found.plan.routes, now=now))


def _taking_over(found: Execution, terms: Terms, by: Operator, stop: str) -> Record:
    record = Record(
        group=found.plan.group,
        number=found.number + 1,
        epoch=found.epoch + 1,
        kind="taken over",
        at=by.clock(),
        operator=secrets.token_hex(4),
        nonce=secrets.token_hex(8),
        actor=by.actor,
        reason=by.reason,
        terms=terms,
        stop=stop,
    )
    return evolve(record, next=steps(after(found, record)))
