"""Checklists before and after a failover: every check looks, and what it cannot tell is a finding too."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from resilience.concurrency import stop_tasks
from resilience.model.failover import FailoverPlan
from resilience.model.findings import Finding, Severity
from resilience.primitives import Check


async def looked(checks: Sequence[Check], plan: FailoverPlan, *, unable: Severity) -> tuple[Finding, ...]:
    """Have all checks look side by side; one that could not is a finding of the severity `unable`."""

    async def one(check: Check) -> tuple[Finding, ...]:
        try:
            return await check.look(plan)
        except Exception as error:  # noqa: BLE001  # whatever it is, this line of the checklist is not ticked off
            return (Finding(severity=unable, subject=check.name, text=f"it could not look: {error}"),)

    tasks = [asyncio.create_task(one(check)) for check in checks]
    try:
        found = await asyncio.gather(*tasks)
    finally:
        await stop_tasks(tasks)
    return tuple(finding for findings in found for finding in findings)
