"""The second decision of a failover, and the order that comes of it: nobody can write, and the standbys stand still."""

from __future__ import annotations

from attrs import evolve

from resilience.model.failover import Decision, PromotionOrder
from resilience.model.groups import Sample

from .failover import decide
from .transitions import Execution, unfenced


def decided(execution: Execution, *, sample: Sample | None) -> tuple[Decision, PromotionOrder | None]:
    """Return whom to promote and the order to do so; no order where nobody is.

    Whatever else was found: nobody is promoted who is fenced, and nobody beside one who takes writes.
    """
    plan, fences = execution.plan, execution.fences
    settled = execution.settled or plan.facts
    decision = decide(plan, settled, fences=fences, sample=sample, accepted=execution.terms.accepted)
    writers = unfenced(settled, fences)
    if writers or decision.candidate in {fence.member for fence in fences}:
        why = "; ".join(f"{each.subject}: {each.text}" for each in writers) or f"{decision.candidate} is fenced"
        decision = evolve(decision, candidate=None, why=why, findings=(*decision.findings, *writers))
    if decision.candidate is None and (decision.blockers or not settled.elects):
        return decision, None
    order = PromotionOrder(
        candidate=decision.candidate,
        epoch=execution.epoch,
        fences=fences,
        sync=decision.sync,
        sync_needed=decision.sync_needed,
    )
    return decision, order
