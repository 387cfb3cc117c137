"""The steps of a failover, in the order in which they happen, as a person reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from resilience.model.failover import FailoverPlan, Step
from resilience.model.findings import Finding, blocker
from resilience.model.groups import RouteFacts, some_of


def steps_of(plan: FailoverPlan, *, followers: Sequence[str] = ()) -> tuple[Step, ...]:
    """Return what carrying out a plan takes, step by step; `followers` are the standbys that can follow the new one."""
    return tuple(_steps(plan, followers))


def _steps(plan: FailoverPlan, followers: Sequence[str]) -> Iterator[Step]:
    yield from _before(plan)
    if not plan.facts.elects:
        yield Step(kind="settle", text="the standbys stop receiving and apply all they have")
        yield Step(kind="decide", text="again, within what was confirmed")
    elected = "" if plan.candidate is not None else "the group elects; "
    yield Step(kind="promote", subject=plan.candidate or "", text=elected + waits(plan.sync, plan.sync_needed))
    yield from _after(plan, followers)


def _before(plan: FailoverPlan) -> Iterator[Step]:
    planned = plan.kind != "failover"
    if planned and plan.candidate is not None:
        yield Step(kind="prepare", subject=plan.candidate, text="a checkpoint, and it catches up, while clients write")
    for route in plan.routes:
        if not route.follows and route.reachable:
            yield Step(kind="hold", subject=route.route, text="clients wait")
    for member in plan.fences:
        handed = planned and member == plan.primary
        text = "it finishes, hands all over and stops" if handed else "until it is proven unable to write"
        yield Step(kind="fence", subject=member, text=text)


def _after(plan: FailoverPlan, followers: Sequence[str]) -> Iterator[Step]:
    new = plan.candidate or "whom it elects"
    for route in plan.routes:
        found = "clients find it by themselves" if route.follows else "clients go on there"
        if route.reachable:
            yield Step(kind="switch", subject=route.route, text=f"to {new}; {found}")
    for name in followers:
        yield Step(kind="follow", subject=name, text=f"it receives from {new}; beside the switch")
    yield Step(kind="verify", subject=plan.candidate or "", text="a mark is written and read back")
    if plan.kind != "failover" and (plan.candidate is not None or plan.facts.elects):
        yield Step(kind="rejoin", subject=plan.primary, text=f"it comes back behind {new}")
        if plan.required_needed and plan.candidate is not None:
            yield Step(kind="require", subject=plan.candidate, text=waits(plan.required, plan.required_needed))


def waits(members: tuple[str, ...], needed: int) -> str:
    """Say whom a write waits for."""
    return f"a write then waits for {some_of(members, needed)}"


def unreachable(routes: Sequence[RouteFacts]) -> Iterator[Finding]:
    """Yield a blocker for every route that nobody could look at: what can wait waits until its clients can be led."""
    for route in routes:
        if not route.reachable:
            hint = "make it answer, or take it out of the group"
            yield blocker(route.route, "nobody could look at it", hint)
