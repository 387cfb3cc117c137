"""drill(): make something fail on purpose, fail over as one does in earnest, and measure what clients saw of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from resilience.model.drills import Criterion, DrillRecord, DrillReport, DrillSchedule
from resilience.model.events import Notifier, Observer
from resilience.model.failover import FailoverPolicy
from resilience.model.ids import new_id as make_id
from resilience.model.moments import utc_now
from resilience.planning.drills import allowed
from resilience.primitives import Canary, Fault

from .drill_clean_up import POLICY, earlier
from .drill_records import DrillRecords
from .drilling import Confirm, Drilling, refuse
from .group import FailoverGroup


async def drill(
    group: FailoverGroup,
    *,
    fault: Fault,
    canary: Canary,
    criterion: Criterion | None = None,
    schedule: DrillSchedule | None = None,
    policy: FailoverPolicy = POLICY,
    confirm: Confirm | None = None,
    notice_seconds: float = 60.0,
    watch_seconds: float = 2.0,
    come_back: bool = True,
    actor: str = "",
    reason: str = "",
    observer: Observer | None = None,
    clock: Callable[[], datetime] = utc_now,
    new_id: Callable[[datetime], str] = make_id,
) -> DrillReport:
    """Make the primary of a group fail, fail over, and judge what came of it by a criterion, or a schedule's.

    `canary` writes through the clients' route all the while. Nothing fails before the record of the drill, with what
    there is to clean up, is kept in the group's journal store. The failover is planned and carried out by the functions
    that a person calls; `confirm` asks one for the words, otherwise the drill types them. It has to be noticed within
    `notice_seconds`. The fault is healed once another server serves, and the canary goes on for `watch_seconds`: the
    old primary may wake up now. With `come_back` it joins again behind the new one.

    Raises Refused before anything fails: the group is not whole, now is not the time, an earlier drill has not ended.
    What goes wrong later stands in the report, kept once all is cleaned up. Cancelled, it heals and cleans up first.
    """
    if (wanted := criterion or (schedule.criterion if schedule else None)) is None:
        raise TypeError("drill needs a criterion, or a schedule that has one")
    began = clock()
    refuse(allowed(schedule, began) if schedule is not None else (), group.name)
    record = DrillRecord(
        id=new_id(began),
        group=group.name,
        fault=fault.name,
        canary=canary.name,
        clean_up=_clean_up(fault, canary, come_back=come_back),
        comes_back=come_back,
        began_at=began,
        actor=actor,
        reason=reason,
    )
    drilling = Drilling(
        group=group,
        fault=fault,
        canary=canary,
        criterion=wanted,
        policy=policy,
        confirm=confirm,
        notice_seconds=notice_seconds,
        watch_seconds=watch_seconds,
        clock=clock,
        told=Notifier("drill", group.name, observer, actor=actor, reason=reason),
        record=record,
    )
    with drilling.told.outcome():
        await earlier(group, fault=fault, canary=canary, policy=policy, now=began, clock=clock)
        return await drilling.run()


def _clean_up(fault: Fault, canary: Canary, *, come_back: bool) -> tuple[str, ...]:
    back = (f"bring {fault.subject} back behind the new primary",) if come_back else ()
    return (f"heal: {fault.name}", f"remove what {canary.name} wrote", *back)


async def drills(group: FailoverGroup) -> tuple[DrillReport, ...]:
    """Return what the drills of a group have shown, the oldest first."""
    return tuple(await DrillRecords(group.journal, group.name).reports())
