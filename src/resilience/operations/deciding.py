"""The second decision of a failover: the primary is fenced, the standbys stand still; within what was confirmed."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

from attrs import evolve

from resilience.concurrency import closing
from resilience.model.failover import Decision, PromotionOrder, Step, StepDone
from resilience.model.groups import Sample
from resilience.model.json import from_json
from resilience.planning.failover import decide
from resilience.planning.transitions import Execution, unfenced

from .group import FailoverGroup


async def newest(group: FailoverGroup) -> Sample | None:
    """Return what was recorded of the group last."""
    found = None
    async with closing(group.samples.list(f"failover/{group.name}/samples/")) as infos:
        async for info in infos:
            found = info.key
    if found is None:
        return None
    async with group.samples.get(found) as chunks:
        return from_json(b"".join([chunk async for chunk in chunks]), Sample)


Decided = tuple[Decision, PromotionOrder | None, StepDone]


async def decided(group: FailoverGroup, execution: Execution, *, clock: Callable[[], datetime]) -> Decided:
    """Return whom to promote, the order to do so (None: nobody), and the step of having decided it."""
    at, began = clock(), time.monotonic()
    plan, fences = execution.plan, execution.fences
    settled = execution.settled or plan.facts
    decision = decide(plan, settled, fences=fences, sample=await newest(group), accepted=execution.terms.accepted)
    writers = unfenced(settled, fences)
    if writers or decision.candidate in {fence.member for fence in fences}:
        why = "; ".join(map(str, writers)) or f"{decision.candidate} is fenced"
        decision = evolve(decision, candidate=None, why=why, findings=(*decision.findings, *writers))
    promotes = decision.candidate is not None or settled.elects
    order = PromotionOrder(
        candidate=decision.candidate,
        epoch=execution.epoch,
        fences=fences,
        sync=decision.sync,
        sync_needed=decision.sync_needed,
    )
    step = StepDone(
        step=Step(kind="decide"),
        outcome="done" if promotes else "not done",
        at=at,
        seconds=time.monotonic() - began,
        text="" if promotes else decision.why,
    )
    return decision, order if promotes else None, step
