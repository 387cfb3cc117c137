"""What a failover did, from its journal: the report and where the time went (R39)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from resilience.model.failover import FailoverReport, Loss, Phase, StepDone
from resilience.model.findings import Finding

from .transitions import Execution

ASTRAY = "it may receive from nobody: plan_failback(group) brings it back"


def reported(execution: Execution, *, now: datetime, checking: float = 0.0) -> FailoverReport:
    """Return the report of an execution that has come to its end; `checking` are seconds that the checks took."""
    plan = execution.plan
    completed = execution.state == "completed"
    return FailoverReport(
        group=plan.group,
        system=plan.system,
        kind=plan.kind,
        ending="completed" if completed else "stopped",
        epoch=execution.epoch,
        plan=plan,
        primary=execution.primary,
        promoted=execution.promoted,
        fences=execution.fences,
        loss=_loss(execution),
        steps=execution.done,
        phases=tuple(_phases(execution, checking)) if completed else (),
        began_at=execution.began_at,
        ended_at=now,
        cause="; ".join(str(each) for each in plan.facts.sightings if each.alive is False),
        why=execution.stop,
        resumed=execution.resumed,
        actor=execution.actor,
        reason=execution.reason,
        findings=tuple(dict.fromkeys([*execution.findings, *_decided(execution), *_left(execution)])),
    )


def _loss(execution: Execution) -> Loss:
    """Return what was lost: as it has turned out, else as it was decided on last."""
    if execution.promoted is not None and execution.promoted.loss is not None:
        return execution.promoted.loss
    return execution.decision.loss if execution.decision is not None else execution.plan.loss


def _phases(execution: Execution, checking: float) -> Iterator[tuple[Phase, float]]:
    """Yield how long each phase took; one follows the other, but for the clients that find the primary themselves."""
    plan, promoted = execution.plan, execution.promoted
    failed_at = execution.terms.failed_at
    if failed_at is not None:
        yield "detection", _between(failed_at, plan.made_at)
    yield "decision", _between(plan.made_at, execution.began_at)
    if promoted is not None:
        yield "promotion", _between(execution.began_at, promoted.at)
        follows = {route.route for route in execution.routes if route.follows}
        led = [each for each in execution.done if each.step.kind == "switch" and each.outcome == "done"]
        for phase, steps in _sorted(led, follows):
            yield phase, max((_between(promoted.at, each.at) + each.seconds for each in steps), default=0.0)
    verified = sum(each.seconds for each in execution.done if each.step.kind == "verify")
    yield "validation", verified + checking


def _sorted(led: list[StepDone], follows: set[str]) -> Iterator[tuple[Phase, list[StepDone]]]:
    yield "propagation", [each for each in led if each.step.subject not in follows]
    yield "reconnect", [each for each in led if each.step.subject in follows]


def _decided(execution: Execution) -> tuple[Finding, ...]:
    """Return what was said of the second decision, if it was carried out."""
    return execution.decision.findings if execution.decision is not None and execution.promoted is not None else ()


def _left(execution: Execution) -> Iterator[Finding]:
    """Yield what was tried and did not come about, and what nobody knows: somebody has to look at it."""
    last = {(each.step.kind, each.step.subject): each for each in execution.done}
    for each in last.values():
        if each.outcome != "done" and each.step.kind not in {"decide", "fence", "promote"}:
            name = " ".join(filter(None, [each.step.kind, each.step.subject]))
            text = f"{name}: {each.outcome}: {each.text}"
            hint = ASTRAY if each.step.kind == "follow" else ""
            yield Finding(severity="warning", subject=each.step.subject, text=text, hint=hint)
    for name in execution.doubted:
        text = "it may have been promoted and taken writes before it was fenced, and stays fenced"
        yield Finding(severity="warning", subject=name, text=text, hint="look at what it has before it comes back")
    for name in execution.terms.let_go:
        yield Finding(severity="warning", subject=name, text="it was given up: nobody knows where it leads or stands")


def _between(earlier: datetime, later: datetime) -> float:
    return max(0.0, (later - earlier).total_seconds())
