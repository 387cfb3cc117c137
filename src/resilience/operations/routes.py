"""The routes of a group as they are now; one that cannot be looked at keeps nobody from failing over."""

from __future__ import annotations

from resilience.model.errors import Unavailable
from resilience.model.findings import Finding
from resilience.model.groups import RouteFacts
from resilience.primitives import TrafficSwitch


async def route_facts(switch: TrafficSwitch) -> RouteFacts:
    """Look at a route. If it does not answer that is a finding: what it led to may be where it failed, too."""
    try:
        return await switch.survey()
    except Unavailable as error:
        silent = Finding(
            severity="warning",
            subject=switch.name,
            text=f"it cannot be looked at, so nobody leads it to a new primary: {error}",
            hint="once it is back, lead it by hand before it lets clients in",
        )
        return RouteFacts(route=switch.name, to=None, version="", findings=(silent,))
