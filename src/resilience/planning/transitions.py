"""How a failover goes on from where it is: one table, and an execution folded from its journal.

The table is all that decides what comes next. It is drawn into docs/failover.md, and a test walks through every state
that can be reached, whatever fails and whoever dies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Literal, TypeVar

from attrs import evolve, frozen

from resilience.model.failover import (
    Decision,
    FailoverKind,
    FailoverPlan,
    FailoverReport,
    Outcome,
    Promoted,
    PromotionOrder,
    Step,
    StepDone,
    StepKind,
)
from resilience.model.findings import Finding, blocker
from resilience.model.groups import Fence, GroupFacts, RouteFacts
from resilience.model.journal import Record, Terms

T = TypeVar("T")
State = Literal[
    "begun",
    "returned",
    "prepared",
    "held",
    "fenced",
    "settled",
    "decided",
    "in doubt",
    "promoted",
    "switched",
    "verified",
    "rejoined",
    "completed",
    "stopping",
    "lifted",
    "stopped",
]


@frozen
class Row:
    """What is done in a state, all of it at once, and where that leads.

    Of the steps the `optional` ones only leave a finding when they fail, in failovers of those kinds. `taken_over` is
    where somebody goes on who finds the steps begun and knows no more.
    """

    state: State
    steps: tuple[StepKind, ...]
    done: State
    failed: State
    unknown: State
    taken_over: State
    optional: tuple[tuple[StepKind, FailoverKind], ...] = ()


def _always(*steps: StepKind) -> tuple[tuple[StepKind, FailoverKind], ...]:
    kinds: tuple[FailoverKind, ...] = ("failover", "switchover", "failback")
    return tuple((step, kind) for step in steps for kind in kinds)


TABLE = (
    Row("begun", ("rejoin",), "returned", "stopping", "stopping", "begun"),
    Row("returned", ("prepare",), "prepared", "stopping", "stopping", "returned"),
    Row("prepared", ("hold",), "held", "stopping", "stopping", "prepared", optional=(("hold", "failover"),)),
    Row("held", ("fence",), "fenced", "stopping", "stopping", "held"),
    Row("fenced", ("settle",), "settled", "stopping", "stopping", "held"),
    Row("settled", ("decide",), "decided", "stopping", "stopping", "held"),
    Row("decided", ("promote",), "promoted", "stopping", "in doubt", "in doubt"),
    Row("in doubt", ("promote",), "promoted", "in doubt", "in doubt", "in doubt"),
    Row("in doubt", ("fence",), "held", "in doubt", "in doubt", "in doubt"),
    Row("promoted", ("switch", "follow"), "switched", "promoted", "promoted", "promoted", optional=_always("follow")),
    Row("switched", ("verify",), "verified", "switched", "switched", "switched"),
    Row("verified", ("rejoin",), "rejoined", "rejoined", "rejoined", "verified", optional=_always("rejoin")),
    Row("rejoined", ("require",), "completed", "completed", "completed", "rejoined", optional=_always("require")),
    Row("stopping", ("lift",), "lifted", "lifted", "lifted", "stopping", optional=_always("lift")),
    Row("lifted", ("release", "follow"), "stopped", "lifted", "lifted", "lifted"),
)

TRIES = 3
"""How often what has failed, and cannot be undone, is done before it is left to resume()."""
UNDOABLE: tuple[State, ...] = ("begun", "returned", "prepared", "held", "fenced", "settled")
"""Where all can still be undone: nobody has been told to take the primary's place."""
PROMOTED: tuple[State, ...] = ("promoted", "switched", "verified", "rejoined", "completed")
"""Where there is a new primary, and no way back but another failover."""
FINAL: tuple[State, ...] = ("completed", "stopped")


@frozen(kw_only=True)
class Execution:
    """How far the carrying out of a plan has come, by its journal.

    `begun` are the steps that were begun and of which nobody has written down what came of them; `touched` all that
    were ever begun. `doubted` may have been promoted though nobody knows: they are never let write again by us.
    `in_vain`: whoever works on it now has asked for the promotion again, and nobody knows any more than before.
    `astray` are standbys that he has told to follow the old primary again, and that did not, each as often as that.
    """

    plan: FailoverPlan
    state: State
    epoch: int
    number: int
    operator: str
    terms: Terms
    began_at: datetime
    actor: str = ""
    reason: str = ""
    resumed: int = 0
    begun: tuple[Step, ...] = ()
    touched: tuple[Step, ...] = ()
    done: tuple[StepDone, ...] = ()
    fences: tuple[Fence, ...] = ()
    routes: tuple[RouteFacts, ...] = ()
    settled: GroupFacts | None = None
    decision: Decision | None = None
    order: PromotionOrder | None = None
    promoted: Promoted | None = None
    doubted: tuple[str, ...] = ()
    in_vain: bool = False
    astray: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    stop: str = ""
    report: FailoverReport | None = None

    @property
    def primary(self) -> str:
        """Who is primary by what was done."""
        return self.promoted.primary if self.promoted is not None else self.plan.primary

    @property
    def undoable(self) -> bool:
        """Whether it can still be undone."""
        return self.state in UNDOABLE

    @property
    def only_held(self) -> bool:
        """Whether nothing was begun but that clients wait, and what changes nothing."""
        return self.undoable and not any(step.kind in {"fence", "rejoin", "settle"} for step in self.touched)

    def route(self, name: str) -> RouteFacts | None:
        """Return what was last seen of a route."""
        return next((each for each in self.routes if each.route == name), None)


def folded(records: Sequence[Record]) -> Execution | None:
    """Return how far the execution has come that these records are of; None without records."""
    if not records:
        return None
    execution = opened(records[0])
    for record in records[1:]:
        execution = after(execution, record)
    return execution


def opened(record: Record) -> Execution:
    """Return the execution that a record begins."""
    if record.plan is None or record.kind != "begun":
        raise ValueError(f"record {record.number} begins nothing")
    execution = Execution(
        plan=record.plan,
        state="begun",
        epoch=record.epoch,
        number=record.number,
        operator=record.operator,
        terms=record.terms or Terms(),
        began_at=record.at,
        actor=record.actor,
        reason=record.reason,
        routes=record.routes,
        findings=record.findings,
    )
    return _intending(_passed_over(execution), record.next)


def after(execution: Execution, record: Record) -> Execution:
    """Return how far an execution has come with one record more."""
    now = evolve(
        execution,
        epoch=record.epoch,
        number=record.number,
        operator=record.operator,
        terms=record.terms or execution.terms,
        done=(*execution.done, *record.done),
        fences=_newest(execution.fences, record.fences, lambda fence: fence.member),
        routes=_newest(execution.routes, record.routes, lambda route: route.route),
        settled=record.settled or execution.settled,
        decision=record.decision or execution.decision,
        order=record.order or execution.order,
        promoted=record.promoted or execution.promoted,
        findings=(*execution.findings, *record.findings),
        report=record.report,
    )
    if record.kind == "taken over":
        now = evolve(now, state=_taken_over(now.state), resumed=now.resumed + 1, in_vain=False, astray=())
    now = _passed_over(_with_outcomes(now, record.done))
    if record.stop and now.undoable:
        now = _passed_over(evolve(now, state="stopping", stop=record.stop))
    return _intending(now, record.next)


def steps(execution: Execution) -> tuple[Step, ...]:
    """Return what is to be done in the state that an execution is in."""
    given_up = _given_up(execution)
    if given_up:
        return (Step(kind="fence", subject=given_up, text="it may have been promoted, and does not answer"),)
    rows = rows_of(execution.state)
    return tuple(step for kind in (rows[0].steps if rows else ()) for step in _steps(execution, kind))


def _given_up(execution: Execution) -> str:
    """Return the candidate that may have been promoted, was asked again in vain, and may be fenced and given up."""
    order, accepted = execution.order, execution.terms.accept_data_loss
    if execution.state != "in doubt" or not execution.in_vain or not accepted or order is None:
        return ""
    return order.candidate or ""


def rows_of(state: State) -> tuple[Row, ...]:
    """Return the rows of the table for a state; none for one that is final."""
    return tuple(row for row in TABLE if row.state == state)


def outcome(row: Row, kind: FailoverKind, done: Sequence[StepDone]) -> Outcome:
    """Sum up what came of all the steps of a row: the worst, but for those that are optional."""
    counted = [each.outcome for each in done if (each.step.kind, kind) not in row.optional]
    order: tuple[Outcome, ...] = ("unknown", "not done")
    return next((each for each in order if each in counted), "done")


def unfenced(facts: GroupFacts, fences: Sequence[Fence]) -> tuple[Finding, ...]:
    """Return a blocker for every member that could write and that nobody has fenced."""
    fenced = {fence.member for fence in fences}
    return tuple(
        blocker(member.name, "it takes writes and is not fenced")
        for member in facts.members
        if member.reachable and (member.role == "primary" or member.writable) and member.name not in fenced
    )


def _with_outcomes(execution: Execution, done: Sequence[StepDone]) -> Execution:
    left = list(done)
    while left:
        row = next((row for row in rows_of(execution.state) if left[0].step.kind in row.steps), None)
        if row is None:
            raise ValueError(f"nobody does {left[0].step} in the state {execution.state!r}")
        mine = [each for each in left if each.step.kind in row.steps]
        left = [each for each in left if each.step.kind not in row.steps]
        came = outcome(row, execution.plan.kind, mine)
        state = {"done": row.done, "not done": row.failed, "unknown": row.unknown}[came]
        if execution.state == "in doubt" and "fence" in row.steps and came == "done":
            execution = evolve(execution, doubted=(*execution.doubted, *(each.step.subject for each in mine)))
        in_vain = execution.state == state == "in doubt"
        stop = _why(mine) if state == "stopping" else execution.stop
        if execution.state == "lifted":
            astray = [each.step.subject for each in mine if each.step.kind == "follow" and each.outcome != "done"]
            execution = evolve(execution, astray=tuple(sorted([*execution.astray, *astray])))
        execution = _passed_over(evolve(execution, state=state, in_vain=in_vain, stop=stop))
    return execution


def _passed_over(execution: Execution) -> Execution:
    """Pass over the states in which the plan has nothing to do."""
    while execution.state not in FINAL and not steps(execution):
        execution = evolve(execution, state=rows_of(execution.state)[0].done)
    return execution


def _intending(execution: Execution, begun: Sequence[Step]) -> Execution:
    touched = tuple(dict.fromkeys([*execution.touched, *begun]))
    return evolve(execution, begun=tuple(begun), touched=touched)


def _taken_over(state: State) -> State:
    rows = rows_of(state)
    return rows[0].taken_over if rows else state


def _steps(execution: Execution, kind: StepKind) -> Iterator[Step]:
    plan = execution.plan
    planned = [step for step in plan.steps if step.kind == kind and step.subject not in execution.terms.let_go]
    returning = {found.member for found in plan.divergences}
    if kind == "rejoin":
        yield from (step for step in planned if (step.subject in returning) is (execution.state == "begun"))
    elif kind == "fence":
        members = dict.fromkeys([*plan.fences, *execution.doubted])
        yield from (next((s for s in planned if s.subject == name), Step(kind=kind, subject=name)) for name in members)
    elif kind == "promote" and execution.order is not None:
        yield Step(kind=kind, subject=execution.order.candidate or "")
    elif kind == "switch":
        yield from (step for step in planned if not _is_done(execution, step))
    elif kind == "follow":
        # Of one that is gone, a finding is left: it does not keep from its end what was undone.
        left = [name for name in _followers(execution) if execution.astray.count(name) < TRIES]
        yield from (step for name in left if not _is_done(execution, step := Step(kind=kind, subject=name)))
    elif kind == "lift":
        fenced = [step.subject for step in execution.touched if step.kind == "fence"]
        # Whoever was to be fenced, its fencer also undoes what was prepared for that.
        prepared = plan.fences if any(step.kind == "prepare" for step in execution.touched) else ()
        names = dict.fromkeys([*fenced, *prepared])
        yield from (Step(kind=kind, subject=name) for name in names if name not in execution.doubted)
    elif kind == "release":
        held = dict.fromkeys(step.subject for step in execution.touched if step.kind == "hold")
        left = [name for name in held if name not in execution.terms.let_go]
        yield from (step for name in left if not _is_done(execution, step := Step(kind=kind, subject=name)))
    else:
        yield from planned


def _followers(execution: Execution) -> Iterator[str]:
    """The standbys that may have been made to stop receiving, so that they receive from whoever is primary now.

    Also one that did not answer any more as they settled: it may have stopped all the same.
    """
    if not any(step.kind == "settle" for step in execution.touched):
        return
    seen = [execution.plan.facts, *([execution.settled] if execution.settled is not None else [])]
    roles = {member.name: member.role for facts in seen for member in facts.members if member.reachable}
    fenced = {fence.member for fence in execution.fences}
    away = {execution.primary, *fenced, *execution.doubted, *execution.terms.let_go}
    yield from (name for name, role in roles.items() if role == "standby" and name not in away)


def _is_done(execution: Execution, step: Step) -> bool:
    return any(
        each.step.kind == step.kind and each.step.subject == step.subject and each.outcome == "done"
        for each in execution.done
    )


def _newest(known: Sequence[T], seen: Sequence[T], name: Callable[[T], str]) -> tuple[T, ...]:
    return tuple({name(each): each for each in (*known, *seen)}.values())


def _why(done: Sequence[StepDone]) -> str:
    return "; ".join(f"{each.step.kind} {each.step.subject}: {each.text}" for each in done if each.outcome != "done")
