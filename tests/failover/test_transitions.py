"""Every state that a failover can come to, whatever fails, whoever dies and whenever: nobody writes beside another."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import pytest
from attrs import evolve, frozen

from resilience.model.failover import (
    Decision,
    Divergence,
    FailoverKind,
    FailoverPlan,
    FailoverPolicy,
    Loss,
    Outcome,
    Promoted,
    PromotionOrder,
    Step,
    StepDone,
)
from resilience.model.groups import Fence, GroupFacts, MemberFacts, RouteFacts
from resilience.model.journal import Record, Terms
from resilience.model.positions import Position, RecoveryPoint
from resilience.planning.transitions import FINAL, TABLE, UNDOABLE, Execution, after, opened, steps
from resilience.render.transitions import state_diagram

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
DOCS = Path(__file__).parents[2] / "docs" / "failover.md"
BEGINS, ENDS = "<!-- diagram: transitions -->\n", "<!-- /diagram: transitions -->"


@frozen
class World:
    """What is really so: who could write, who is fenced, where clients go."""

    primaries: frozenset[str] = frozenset({"a"})
    fenced: frozenset[str] = frozenset()
    route: str = "a"
    held: bool = False
    frozen: frozenset[str] = frozenset()

    @property
    def writers(self) -> frozenset[str]:
        return self.primaries - self.fenced

    def possible(self, execution: Execution, step: Step) -> bool:
        """Whether the step could be done at all; a promoter rechecks its fences."""
        if step.kind == "promote":
            fences = execution.order.fences if execution.order else ()
            return step.subject not in self.fenced and all(fence.member in self.fenced for fence in fences)
        return True

    def done(self, execution: Execution, step: Step) -> World:
        """Return how it is once a step was done."""
        name = step.subject
        match step.kind:
            case "fence":
                return evolve(self, fenced=self.fenced | {name})
            case "lift":
                return evolve(self, fenced=self.fenced - {name})
            case "promote":
                return evolve(self, primaries=self.primaries | {name}, frozen=self.frozen - {name})
            case "settle":
                return evolve(self, frozen=frozenset("bc") - self.primaries - self.fenced)
            case "follow":
                return evolve(self, frozen=self.frozen - {name})
            case "rejoin":
                return evolve(
                    self,
                    primaries=self.primaries - {name},
                    fenced=self.fenced - {name},
                    frozen=self.frozen - {name},
                )
            case "hold":
                return evolve(self, held=True)
            case "switch":
                return evolve(self, held=False, route=execution.primary)
            case "release":
                return evolve(self, held=False, route="a")
            case _:
                return self


@frozen
class Node:
    """An execution and the world it acts on."""

    execution: Execution
    world: World

    @property
    def key(self) -> tuple[object, ...]:
        e = self.execution
        return (
            e.state,
            e.begun,
            frozenset(step.kind for step in e.touched),
            frozenset((each.step.kind, each.step.subject) for each in e.done if each.outcome == "done"),
            tuple(fence.member for fence in e.fences),
            e.order.candidate if e.order else None,
            e.promoted.primary if e.promoted else None,
            e.doubted,
            e.in_vain,
            e.astray,
            tuple(member.reachable for member in e.settled.members) if e.settled else None,
            e.terms.accept_data_loss and e.state not in ("stopping", "lifted", "stopped"),  # it decides nothing there
            self.world,
        )


def plan_of(kind: FailoverKind) -> FailoverPlan:
    members = tuple(MemberFacts(name=name, role="standby" if name != "a" else "primary") for name in "abc")
    planned = kind != "failover"
    apart = (Divergence(member="b", primary="a", way="rewind"),) if kind == "failback" else ()
    back = [Step(kind="rejoin", subject=each.member) for each in apart]
    before = [*back, Step(kind="prepare", subject="b")] if planned else []
    later = [Step(kind="rejoin", subject="a"), Step(kind="require", subject="b")] if planned else []
    return FailoverPlan(
        id="1",
        group="orders",
        system="simulated",
        kind=kind,
        policy=FailoverPolicy(),
        candidate="b",
        primary="a",
        epoch=1,
        steps=(
            *before,
            Step(kind="hold", subject="pool"),
            Step(kind="fence", subject="a"),
            Step(kind="settle"),
            Step(kind="decide"),
            Step(kind="promote", subject="b"),
            Step(kind="switch", subject="pool"),
            Step(kind="follow", subject="c"),
            Step(kind="verify", subject="b"),
            *later,
        ),
        fences=("a",),
        divergences=apart,
        loss=Loss(kind="nothing"),
        facts=GroupFacts(group="orders", system="simulated", at=NOW, members=members, primary="a"),
        routes=(RouteFacts(route="pool", to="a", version="1"),),
        made_at=NOW,
        expires_at=NOW,
    )


def record(execution: Execution | None, **fields: object) -> Record:
    number = execution.number + 1 if execution else 1
    epoch = execution.epoch if execution else 1
    base = {"kind": "went on", "number": number, "epoch": epoch, **fields}
    return Record(group="orders", at=NOW, operator="o", nonce="n", **base)  # type: ignore[arg-type]


def begun(kind: FailoverKind) -> Node:
    first = record(None, kind="begun", plan=plan_of(kind), terms=Terms())
    return Node(opened(evolve(first, next=steps(opened(first)))), World())


def nexts(node: Node) -> Iterator[Node]:
    """Everything that can happen next."""
    execution = node.execution
    if execution.state in FINAL:
        return
    yield from stage(node)
    yield from crashes(node)
    if execution.undoable:
        yield recorded(execution, node.world, record(execution, stop="cancelled"))


def stage(node: Node) -> Iterator[Node]:
    """The steps are carried out, each with any outcome, and what came of them is written down."""
    execution = node.execution
    todo = steps(execution)
    if execution.state == "settled":
        yield from decisions(node)
        return
    for came in product(*(outcomes(node, step) for step in todo)):
        world = node.world
        for step, (_, happened) in zip(todo, came, strict=True):
            world = world.done(execution, step) if happened else world
        done = tuple(ended(step, outcome) for step, (outcome, _) in zip(todo, came, strict=True))
        fences = tuple(
            Fence(member=each.step.subject, kind="proven", epoch=1, at=NOW, evidence="")
            for each in done
            if each.step.kind == "fence" and each.outcome == "done"
        )
        name = next((each.step.subject for each in done if each.step.kind == "promote" and each.outcome == "done"), "")
        settled = execution.plan.facts if any(map(has_settled, done)) else None
        if settled is not None and execution.plan.kind == "switchover":
            # Of one that does not answer any more nobody knows whether it is frozen.
            silent = MemberFacts(name="c", problem="it hangs")
            settled = evolve(settled, members=(*settled.members[:2], silent))
        yield recorded(
            execution,
            world,
            record(
                execution,
                done=done,
                fences=fences,
                promoted=promoted(name) if name else None,
                settled=settled,
            ),
        )


def has_settled(done: StepDone) -> bool:
    return done.step.kind == "settle" and done.outcome == "done"


def outcomes(node: Node, step: Step) -> Iterator[tuple[Outcome, bool]]:
    """What can come of a step, and whether it has happened: an unknown one may have or not."""
    yield "not done", False
    yield "unknown", False
    if node.world.possible(node.execution, step):
        yield "unknown", True
        yield "done", True


def decisions(node: Node) -> Iterator[Node]:
    execution = node.execution
    fences = execution.fences
    for name in ("b", "c"):
        if name not in {fence.member for fence in fences}:
            decision = Decision(candidate=name, why="", loss=Loss(kind="nothing"))
            order = PromotionOrder(candidate=name, epoch=execution.epoch, fences=fences)
            done = (ended(Step(kind="decide"), "done"),)
            yield recorded(execution, node.world, record(execution, done=done, decision=decision, order=order))
    nobody = (ended(Step(kind="decide"), "not done"),)
    yield recorded(execution, node.world, record(execution, done=nobody))


def crashes(node: Node) -> Iterator[Node]:
    """The operator dies, after any of the steps that were begun had happened; somebody takes over."""
    execution = node.execution
    possible = [step for step in execution.begun if node.world.possible(execution, step)]
    for happened in product((False, True), repeat=len(possible)):
        world = node.world
        for step, did in zip(possible, happened, strict=True):
            world = world.done(execution, step) if did else world
        for terms in (Terms(), Terms(accept_data_loss=True)):
            for stop in ("", "it was asked for"):
                if not stop or execution.undoable:
                    epoch = execution.epoch + 1
                    yield recorded(
                        execution, world, record(execution, kind="taken over", epoch=epoch, terms=terms, stop=stop)
                    )


def recorded(execution: Execution, world: World, written: Record) -> Node:
    ahead = after(execution, written)
    return Node(after(execution, evolve(written, next=steps(ahead))), world)


def ended(step: Step, outcome: Outcome) -> StepDone:
    return StepDone(step=step, outcome=outcome, at=NOW, seconds=0.0, text="")


def promoted(name: str) -> Promoted:
    point = RecoveryPoint(position=Position(branch="2", offset=1, text="0/1"))
    return Promoted(primary=name, epoch=1, instance=name, point=point, at=NOW)


def explored(kind: FailoverKind) -> tuple[dict[tuple[object, ...], Node], dict[tuple[object, ...], set[object]]]:
    """Walk through everything that can be reached."""
    first = begun(kind)
    nodes, left = {first.key: first}, [first]
    ways: dict[tuple[object, ...], set[object]] = {}
    while left:
        node = left.pop()
        ways[node.key] = set()
        for each in nexts(node):
            ways[node.key].add(each.key)
            if each.key not in nodes:
                nodes[each.key] = each
                left.append(each)
    return nodes, ways


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize("kind", ["failover", "switchover", "failback"])
def test_whatever_happens_there_are_never_two_who_could_write_and_every_state_has_an_exit(
    kind: FailoverKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resilience.planning.transitions.TRIES", 2 if kind == "switchover" else 1)  # 3 say no more
    nodes, ways = explored(kind)
    assert {node.execution.state for node in nodes.values()} >= {row.state for row in TABLE} - {
        "begun",
        "returned",
        "verified",
        "rejoined",
    }
    for node in nodes.values():
        assert len(node.world.writers) <= 1, node
        if node.execution.state == "completed":
            assert node.world.writers == {node.execution.primary}
            assert not node.world.held and node.world.route == node.execution.primary
        if node.execution.state == "stopped":
            assert node.world.writers <= {"a"} and not node.world.held and node.world.route == "a"
            touched = node.execution.touched
            assert Step(kind="lift", subject="a") in touched or not {each.kind for each in touched} & {
                "prepare",
                "fence",
            }, "whatever was prepared is undone"
        if node.execution.state in FINAL:
            told = [each for each in node.execution.done if each.step.kind == "follow" and each.outcome != "done"]
            known = {each.step.subject for each in told} | set(node.execution.doubted)
            assert node.world.frozen <= known, "who may be frozen is told to follow, or somebody hears of it"
    leads = {key for key, node in nodes.items() if node.execution.state in FINAL}
    growing = True
    while growing:
        more = {key for key, to in ways.items() if key not in leads and to & leads}
        leads |= more
        growing = bool(more)
    assert leads == set(nodes)


def test_what_is_drawn_is_what_is_done() -> None:
    known = {row.state for row in TABLE} | set(FINAL)
    assert {state for row in TABLE for state in (row.done, row.failed, row.unknown, row.taken_over)} <= known
    assert "decided --> promoted: promote" in state_diagram()
    assert all(f"{state} --> stopping" in state_diagram() for state in UNDOABLE)


def test_the_documentation_shows_the_table_as_it_is() -> None:
    text = DOCS.read_text()
    drawn = text[text.index(BEGINS) + len(BEGINS) : text.index(ENDS)]
    assert drawn == f"```mermaid\n{state_diagram()}```\n", "draw it again: python -m tests.failover.test_transitions"


if __name__ == "__main__":
    text = DOCS.read_text()
    head, tail = text[: text.index(BEGINS) + len(BEGINS)], text[text.index(ENDS) :]
    DOCS.write_text(f"{head}```mermaid\n{state_diagram()}```\n{tail}")
