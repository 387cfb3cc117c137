"""What is written down of a failover before and after each of its steps, so that whoever comes next knows how it is."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from attrs import field, frozen

from .failover import Accepted, Decision, FailoverPlan, FailoverReport, Promoted, PromotionOrder, Step, StepDone
from .findings import Finding
from .groups import Fence, GroupFacts, RouteFacts
from .moments import aware
from .show import Shown

RecordKind = Literal["begun", "taken over", "went on", "ended"]


@frozen(kw_only=True)
class Terms(Shown):
    """On what terms an operator carries out a plan: what he takes upon himself, and what he gives up, by name.

    `failed_at` is when the failure was, if somebody knows. `let_go` are routes and members that could not be reached
    and are no longer waited for.
    """

    accept_split_brain: bool = False
    accept_data_loss: bool = False
    failed_at: datetime | None = field(default=None, validator=aware)
    let_go: tuple[str, ...] = ()

    @property
    def accepted(self) -> tuple[Accepted, ...]:
        """The risks that were accepted by name."""
        split_brain: tuple[Accepted, ...] = ("split brain",) if self.accept_split_brain else ()
        data_loss: tuple[Accepted, ...] = ("data loss",) if self.accept_data_loss else ()
        return (*split_brain, *data_loss)

    def __str__(self) -> str:
        words = ["accepts split brain"] if self.accept_split_brain else []
        words += ["accepts data loss"] if self.accept_data_loss else []
        words += [f"gives up {', '.join(self.let_go)}"] if self.let_go else []
        return "; ".join(words)


@frozen(kw_only=True)
class Record(Shown):
    """One record of a group's journal: what came of the steps before it, and which ones begin once it is durable.

    `nonce` tells it from what anybody else would write at its place; `operator` is the run of the program that wrote
    it. An execution is all from its record `begun` (with the `plan`) to the one that `ended` it (with the `report`);
    whoever has `taken over` another's works on it in an epoch of its own. `stop` says why it is undone from here on.
    What the steps returned stands beside them.
    """

    group: str
    number: int
    epoch: int
    kind: RecordKind
    at: datetime = field(validator=aware)
    operator: str
    nonce: str
    format: int = 1
    actor: str = ""
    reason: str = ""
    plan: FailoverPlan | None = None
    terms: Terms | None = None
    done: tuple[StepDone, ...] = ()
    next: tuple[Step, ...] = ()
    stop: str = ""
    fences: tuple[Fence, ...] = ()
    routes: tuple[RouteFacts, ...] = ()
    settled: GroupFacts | None = None
    decision: Decision | None = None
    order: PromotionOrder | None = None
    promoted: Promoted | None = None
    findings: tuple[Finding, ...] = ()
    report: FailoverReport | None = None

    def __str__(self) -> str:
        lines = [self._head()]
        lines += map(str, self.done)
        if self.decision is not None:
            lines += [str(self.decision.loss)]
            lines += map(str, self.decision.findings)
        lines += map(str, self.findings)
        lines += [f"to be undone: {self.stop}"] if self.stop else []
        lines += [f"next: {', '.join(map(_name, self.next))}"] if self.next else []
        head = f"{self.number:>4}  {self.at:%H:%M:%S}.{self.at.microsecond // 1000:03d}  "
        return head + f"\n{' ' * len(head)}".join(line for line in lines if line)

    def _head(self) -> str:
        who = f" by {self.actor}" if self.actor else ""
        why = f", because {self.reason}" if self.reason else ""
        terms = f", {self.terms}" if self.terms is not None and str(self.terms) else ""
        if self.kind == "begun" and self.plan is not None:
            way = f"from {self.plan.primary or 'nobody known'} to {self.plan.candidate or 'whom it elects'}"
            return f"{self.plan.kind} of {self.group} {way} begun in epoch {self.epoch}{who}{why}{terms}"
        if self.kind == "taken over":
            return f"taken over in epoch {self.epoch}{who}{why}{terms}"
        if self.kind == "ended" and self.report is not None:
            primary = (
                f"{self.report.primary} is primary" if self.report.ending == "completed" else "nobody was promoted"
            )
            return f"{self.report.ending} after {self.report.seconds:.3f} s: {primary}"
        return ""


def _name(step: Step) -> str:
    return " ".join(filter(None, [step.kind, step.subject]))
