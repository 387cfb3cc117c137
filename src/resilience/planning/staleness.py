"""Whether what a plan rests on still holds: roles, timelines, sync set, routes, its time; never positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from resilience.model.failover import FailoverPlan
from resilience.model.groups import GroupFacts, MemberFacts, RouteFacts, SyncSet
from resilience.model.show import when


def stale(plan: FailoverPlan, facts: GroupFacts, routes: Sequence[RouteFacts], *, now: datetime) -> tuple[str, ...]:
    """Say what of that which a plan rests on has moved, sentence by sentence; nothing if it still holds."""
    return tuple(_moved(plan, facts, routes, now))


def _moved(plan: FailoverPlan, facts: GroupFacts, routes: Sequence[RouteFacts], now: datetime) -> Iterator[str]:
    if now >= plan.expires_at:
        yield f"it expired at {when(plan.expires_at)}"
    if facts.owner != plan.facts.owner:
        yield f"the group is owned by {facts.owner or 'nobody'} now"
    if has_elected(plan, facts):
        yield from _routes_changed(plan, plan.routes, routes)
        return
    if facts.primary != plan.facts.primary:
        yield f"the primary is {facts.primary or 'nobody known'} now, and was {plan.facts.primary or 'nobody known'}"
    if plan.kind == "failover" and not any(each.alive for each in plan.facts.sightings):
        yield from (
            f"the primary lives, as {each.vantage} sees it: {each.text}" for each in facts.sightings if each.alive
        )
    yield from _members_moved(plan, facts)
    yield from _sync_moved(plan.facts.sync, facts.sync)
    yield from (_routes_changed if plan.facts.elects else _routes_moved)(plan, plan.routes, routes)


def has_elected(plan: FailoverPlan, facts: GroupFacts) -> bool:
    """Tell whether the group has done meanwhile what was planned: another member takes writes for one that was dead."""
    was = plan.facts.member(plan.primary)
    now = facts.member(facts.primary)
    asked = plan.kind == "failover" and plan.candidate is None and plan.facts.elects
    moved = facts.primary not in ("", plan.primary) and now is not None and now.role == "primary"
    return asked and moved and was is not None and not was.reachable


def _routes_changed(plan: FailoverPlan, before: Sequence[RouteFacts], routes: Sequence[RouteFacts]) -> Iterator[str]:
    """Routes on which clients follow whom the group elects may lead elsewhere by now, and that is as it should be."""
    follow = {each.route for each in routes if each.follows}
    yield from _routes_moved(
        plan,
        [each for each in before if each.route not in follow],
        [each for each in routes if each.route not in follow],
    )


def _members_moved(plan: FailoverPlan, facts: GroupFacts) -> Iterator[str]:
    was, primary = plan.facts, facts.member(facts.primary)
    home = _branch(primary) if primary is not None else ""
    for before in was.members:
        member = facts.member(before.name)
        if member is None:
            yield f"{before.name} is no member any more"
            continue
        returned = before.role == "unknown" and member.role == "standby"  # it is only one more to choose from
        if member.role != before.role and not returned:
            problem = f": {member.problem}" if member.problem else ""
            yield f"{before.name} is {_role(member.role)} now, and was {_role(before.role)}{problem}"
        then, branch = _branch(before), _branch(member)
        joined = branch == home and member.role == "standby" and member.name != plan.candidate  # it has found its way
        if then and branch and then != branch and not joined:
            yield f"{before.name} is on {branch} now, and was on {then}"
    for new in facts.members:
        if was.member(new.name) is None:
            yield f"{new.name} has become a member"


def _sync_moved(before: SyncSet | None, now: SyncSet | None) -> Iterator[str]:
    if before is None or now is None:
        return
    if (set(before.members), before.needed) != (set(now.members), now.needed):
        yield f"a write is acknowledged by {now}, and was by {before}"


def _unseen(plan: FailoverPlan, before: RouteFacts, now: RouteFacts) -> bool:
    """Tell whether one of two looks just got no answer, where nobody leads clients but themselves.

    That they arrive at the primary again is another matter where it was taken for dead.
    """
    came_back = before.to is None and now.to == plan.primary and plan.kind != "failover"
    return now.follows and (now.to is None or came_back)


def _routes_moved(plan: FailoverPlan, before: Sequence[RouteFacts], routes: Sequence[RouteFacts]) -> Iterator[str]:
    known = {each.route: each for each in routes}
    for route in before:
        here = known.pop(route.route, None)
        if here is None:
            yield f"there is no route {route.route} any more"
        elif here.to != route.to and not _unseen(plan, route, here):
            yield f"{route.route} leads to {here.to or 'nobody known'} now, and led to {route.to or 'nobody known'}"
        elif here.version != route.version:
            yield f"{route.route} was changed by somebody"
    for name in known:
        yield f"there is a new route, {name}"


def _branch(member: MemberFacts) -> str:
    last = member.branches[-1:]
    return last[0].name if last else (member.durable.branch if member.durable is not None else "")


def _role(role: str) -> str:
    return {"primary": "a primary", "standby": "a standby"}.get(role, "not to be seen")
