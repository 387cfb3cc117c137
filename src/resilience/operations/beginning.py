"""How a failover begins: one looks again, refuses what is not as it was shown, and writes down that it begins."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from datetime import datetime

from attrs import evolve, frozen

from resilience.concurrency import stop_tasks
from resilience.journal import Journal
from resilience.model.errors import FencingUnproven, JournalConflict, LossTooGreat, NotConfirmed, Refused, StalePlan
from resilience.model.events import Notifier
from resilience.model.failover import FailoverPlan, FailoverReport, standing
from resilience.model.findings import Finding
from resilience.model.groups import GroupFacts, RouteFacts
from resilience.model.journal import Record, Terms
from resilience.planning.staleness import stale
from resilience.planning.transitions import PROMOTED, Execution, folded, opened, steps

from .checklist import looked
from .executing import Engine
from .group import FailoverGroup
from .routes import route_facts


@frozen(kw_only=True)
class Operator:
    """Who carries a failover out, and how he hears of it."""

    actor: str
    reason: str
    told: Notifier
    clock: Callable[[], datetime]


async def executed(group: FailoverGroup, plan: FailoverPlan, terms: Terms, by: Operator) -> FailoverReport:
    """Carry a plan out that was confirmed."""
    journal = Journal(group.journal, group.name)
    facts, routes, findings, records = await _looked(group, plan, journal)
    _refuse_second(group, plan, folded(records))
    _refuse_moved(plan, facts, routes, by.clock())
    _refuse_blocked(plan, terms, (*plan.findings, *facts.findings, *findings))
    record = Record(
        group=group.name,
        number=records[-1].number + 1 if records else 1,
        epoch=plan.epoch,
        kind="begun",
        at=by.clock(),
        operator=secrets.token_hex(4),
        nonce=secrets.token_hex(8),
        actor=by.actor,
        reason=by.reason,
        plan=plan,
        terms=terms,
        routes=routes,
        findings=(*plan.findings, *(each for each in findings if each not in plan.findings)),
    )
    record = evolve(record, next=steps(opened(record)))
    return await uninterrupted(engine(group, journal, opened(record), by), record)


def engine(group: FailoverGroup, journal: Journal, execution: Execution, by: Operator) -> Engine:
    """Return the engine that carries an execution on."""
    return Engine(
        group=group,
        journal=journal,
        execution=execution,
        told=by.told,
        clock=by.clock,
        actor=by.actor,
        reason=by.reason,
    )


async def uninterrupted(running: Engine, first: Record) -> FailoverReport:
    """Let an engine run; if we are cancelled it comes to an end in its own way before the cancellation is raised."""
    task = asyncio.create_task(running.run(first))
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
            running.cancel()
    if cancelled is not None:
        task.exception()
        raise cancelled
    return task.result()


async def _looked(
    group: FailoverGroup, plan: FailoverPlan, journal: Journal
) -> tuple[GroupFacts, tuple[RouteFacts, ...], tuple[Finding, ...], tuple[Record, ...]]:
    """Look at everything again, side by side."""
    survey = asyncio.create_task(group.promoter.survey())
    routes = [asyncio.create_task(route_facts(switch)) for switch in group.switches]
    checks = asyncio.create_task(looked(group.before, plan, unable="blocker"))
    records = asyncio.create_task(journal.last())
    try:
        return await survey, tuple(await asyncio.gather(*routes)), await checks, await records
    finally:
        await stop_tasks([survey, checks, records, *routes])


def refuse_unconfirmed(group: FailoverGroup, plan: FailoverPlan, confirm: str) -> None:
    """Raise NotConfirmed unless the words that were typed are those of this plan; ValueError if it is another's."""
    if plan.group != group.name:
        raise ValueError(f"the plan is for {plan.group}, and the group is {group.name}")
    if not secrets.compare_digest(" ".join(confirm.split()).encode(), plan.confirmation.encode()):
        raise NotConfirmed(
            "the words that were typed do not confirm this plan",
            operation=plan.kind,
            subject=group.name,
            hint="look at the plan; it shows the words to type, with a code of its own",
        )


def _refuse_second(group: FailoverGroup, plan: FailoverPlan, before: Execution | None) -> None:
    """Refuse where somebody is at work, or has been since the plan was made."""
    if before is not None and before.report is None and before.state not in PROMOTED:
        who = f"{before.actor or 'somebody'}, since {before.began_at:%H:%M:%S}"
        raise JournalConflict(
            f"a {before.plan.kind} of this group is under way: {who}, in epoch {before.epoch}",
            operation=plan.kind,
            subject=group.name,
            hint="if nobody works on it any more, resume() finishes it, and resume(stop=True) undoes it",
        )
    epoch = before.epoch if before is not None else 0
    if plan.epoch != epoch + 1:
        raise _stale(
            plan, f"somebody has acted on the group since: epoch {epoch} has been, the plan is for {plan.epoch}"
        )


def _refuse_moved(plan: FailoverPlan, facts: GroupFacts, routes: Sequence[RouteFacts], now: datetime) -> None:
    moved = stale(plan, facts, routes, now=now)
    if moved:
        raise _stale(plan, "; ".join(moved))


def _refuse_blocked(plan: FailoverPlan, terms: Terms, findings: Sequence[Finding]) -> None:
    blockers = list(dict.fromkeys(standing(findings, terms.accepted)))
    if not blockers:
        return
    kinds: dict[str, type[Refused]] = {"split brain": FencingUnproven, "data loss": LossTooGreat}
    kind = kinds.get(blockers[0].subject, Refused)
    text = "; ".join(f"{each.subject}: {each.text}" for each in blockers)
    raise kind(text, operation=plan.kind, subject=plan.group, hint=blockers[0].hint)


def _stale(plan: FailoverPlan, why: str) -> StalePlan:
    return StalePlan(why, operation=plan.kind, subject=plan.group, hint="make a new plan")
