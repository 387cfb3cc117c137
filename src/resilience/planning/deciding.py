"""The second decision of a failover, and the order that comes of it: nobody can write, and the standbys stand still."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from attrs import evolve

from resilience.model.failover import Accepted, Decision, FailoverPlan, Loss, PromotionOrder, standing
from resilience.model.findings import Finding, blocker
from resilience.model.groups import Fence, GroupFacts, Sample, SyncSet

from .candidates import muster
from .choosing import choose_again, survivors
from .loss import SPLIT_BRAIN, Ending, exceeds, known_sync, loss_of, too_much
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


def decide(
    plan: FailoverPlan,
    settled: GroupFacts,
    *,
    fences: Sequence[Fence],
    sample: Sample | None = None,
    accepted: Collection[Accepted] = (),
) -> Decision:
    """Decide again, once the primary is fenced and the standbys stand still: within what was confirmed, or nobody.

    It rests on `sample`, or on the one that the plan was made with. A blocker says why nobody is promoted. Those whose
    subject is in `accepted` were accepted by name and stand no more in the way; what was confirmed is never exceeded,
    whatever is accepted.
    """
    known = sample or plan.sample
    found = muster(evolve(settled, primary=plan.primary or settled.primary), known, never=plan.policy.never)
    sync = known_sync(found.sample, plan.facts)  # the primary is gone: what it said itself is in the plan
    if plan.candidate is None and settled.elects:
        return Decision(candidate=None, why="the group elects its own", loss=plan.loss)
    chosen, why = choose_again(plan, found)
    ending = Ending.of(fences, found.primary, found.main)
    if chosen is None:
        nobody = blocker("candidate", why, "look at the standbys, then plan again")
        loss = Loss(kind="unknown", evidence=("nobody is promoted",))
        return Decision(candidate=None, why=why, loss=loss, findings=(nobody,))
    loss = loss_of(chosen, found, sync=sync, ending=ending, before=plan.sample)
    findings = tuple(_within(plan, loss, fences, ending))
    left = [name for name in plan.sync if name != chosen.name and found.standby(name) is not None]
    if plan.candidate != chosen.name:
        left = survivors(sync, found, chosen.name)
    if blockers := standing(findings, accepted):
        return Decision(candidate=None, why=blockers[0].text, loss=loss, findings=findings)
    return Decision(
        candidate=chosen.name,
        why=why,
        loss=loss,
        sync=tuple(left),
        sync_needed=min(_needed(plan, sync), len(left)),
        findings=tuple(
            evolve(each, severity="warning", text=f"{each.text}; accepted by name")
            if each.severity == "blocker"
            else each
            for each in findings
        ),
    )


def _within(plan: FailoverPlan, loss: Loss, fences: Sequence[Fence], ending: Ending) -> Iterator[Finding]:
    """Yield what of a second decision goes beyond what was confirmed."""
    fenced = {each.member for each in fences}
    for name in plan.fences:
        if name not in fenced:
            yield blocker(SPLIT_BRAIN, f"nobody has fenced {name}", "fence it, then plan again")
    for each in fences:
        if each.kind == "waived":
            yield blocker(SPLIT_BRAIN, f"nobody has proven that {each.member} cannot write", "fence it by hand")
    if beyond := exceeds(loss, plan.loss):
        yield blocker("confirmed", f"more would be lost than was confirmed: {beyond}", "plan again")
    # Where it was fenced is when the loss ends; without a proof there is no end, and the loss is unknown.
    yield from too_much(loss, plan.policy, now=ending.until or plan.made_at)


def _needed(plan: FailoverPlan, sync: SyncSet | None) -> int:
    return max(plan.sync_needed, sync.needed if sync is not None else 0)
