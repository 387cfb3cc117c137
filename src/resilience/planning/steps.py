"""The steps of a failover, in the order in which they happen, as a person reads them."""

from __future__ import annotations

from collections.abc import Iterator

from resilience.model.failover import FailoverPlan, Step


def steps_of(plan: FailoverPlan) -> tuple[Step, ...]:
    """Return what carrying out a plan takes, step by step."""
    return tuple(_steps(plan))


def _steps(plan: FailoverPlan) -> Iterator[Step]:
    yield from _before(plan)
    if not plan.facts.elects:
        yield Step(kind="settle", text="the standbys stop receiving and apply all they have")
        yield Step(kind="decide", text="again, within what was confirmed")
    yield Step(kind="promote", subject=plan.candidate or "", text=waits(plan.sync, plan.sync_needed))
    yield from _after(plan)


def _before(plan: FailoverPlan) -> Iterator[Step]:
    planned = plan.kind != "failover"
    if planned and plan.candidate is not None:
        yield Step(kind="prepare", subject=plan.candidate, text="a checkpoint, and it catches up, while clients write")
    for route in plan.routes:
        if not route.follows:
            yield Step(kind="hold", subject=route.route, text="clients wait")
    for member in plan.fences:
        handed = planned and member == plan.primary
        text = "it finishes, hands all over and stops" if handed else "until it is proven unable to write"
        yield Step(kind="fence", subject=member, text=text)


def _after(plan: FailoverPlan) -> Iterator[Step]:
    new = plan.candidate or "whom it elects"
    for route in plan.routes:
        found = "clients find it by themselves" if route.follows else "clients go on there"
        yield Step(kind="switch", subject=route.route, text=f"to {new}; {found}")
    for name in _followers(plan):
        yield Step(kind="follow", subject=name, text=f"it receives from {new}; beside the switch")
    yield Step(kind="verify", subject=plan.candidate or "", text="a mark is written and read back")
    if plan.kind != "failover" and plan.candidate is not None:
        yield Step(kind="rejoin", subject=plan.primary, text=f"it comes back behind {new}")
        if plan.required_needed:
            yield Step(kind="require", subject=plan.candidate, text=waits(plan.required, plan.required_needed))


def _followers(plan: FailoverPlan) -> Iterator[str]:
    if plan.facts.elects:
        return
    for member in plan.facts.members:
        if member.reachable and member.role == "standby" and member.name not in (plan.candidate, plan.primary):
            yield member.name


def waits(members: tuple[str, ...], needed: int) -> str:
    """Say whom a write waits for."""
    if not needed:
        return "a write then waits for no other member"
    return f"a write then waits for {needed} of {', '.join(members)}"
