"""How long a failover takes at least, by live settings, against how long it may take: the arithmetic is shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import get_args

from resilience.model.failover import FailoverPolicy, Phase, PhaseFloor
from resilience.model.findings import Finding
from resilience.model.show import as_span

TIGHT = 0.5
"""Of the objective: if the floor alone takes more, nothing may go wrong."""


def floors(
    policy: FailoverPolicy, promoter: Sequence[PhaseFloor], switches: Sequence[Sequence[PhaseFloor]]
) -> tuple[PhaseFloor, ...]:
    """Return the least time of every phase, in order: what is allotted, what the promoter takes, the slowest switch.

    Routes are switched side by side, so only the slowest of each phase counts.
    """
    allotted = [
        PhaseFloor(phase=phase, seconds=span.total_seconds(), why="allotted by the policy")
        for phase, span in _allotted(policy)
        if span is not None
    ]
    slowest: dict[str, PhaseFloor] = {}
    for each in (floor for switch in switches for floor in switch):
        if each.phase not in slowest or each.seconds > slowest[each.phase].seconds:
            slowest[each.phase] = each
    found = [*allotted, *promoter, *slowest.values()]
    order: tuple[Phase, ...] = get_args(Phase)
    return tuple(each for phase in order for each in found if each.phase == phase)


def over_budget(floor: Sequence[PhaseFloor], policy: FailoverPolicy) -> Iterator[Finding]:
    """Yield why an objective cannot be met, or only just."""
    if policy.rto is None:
        return
    least, allowed = sum(each.seconds for each in floor), policy.rto.total_seconds()
    arithmetic = " + ".join(f"{each.phase} {as_span(each.seconds)}" for each in floor) or "nothing"
    if least > allowed:
        text = f"{arithmetic} = {as_span(least)}, more than the objective of {as_span(policy.rto)}"
        yield Finding(severity="warning", subject="RTO", text=text, hint=_hint(floor))
    elif least > TIGHT * allowed:
        text = f"{arithmetic} = {as_span(least)}, most of the objective of {as_span(policy.rto)}"
        yield Finding(severity="warning", subject="RTO", text=text, hint=_hint(floor))


def _allotted(policy: FailoverPolicy) -> tuple[tuple[Phase, timedelta | None], ...]:
    return ("detection", policy.detection), ("decision", policy.decision), ("validation", policy.validation)


def _hint(floor: Sequence[PhaseFloor]) -> str:
    longest = max(floor, key=lambda each: each.seconds)
    return f"the longest is {longest.phase}: {longest.why}"
