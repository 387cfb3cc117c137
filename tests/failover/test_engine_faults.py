"""What fails on the way: nothing is left half-done or repeated blindly, and what was waived is written down."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from itertools import count

import pytest
from attrs import define, evolve

from resilience.model.errors import (
    FencedOff,
    FencingUnproven,
    Interrupted,
    JournalConflict,
    LossTooGreat,
    NotConfirmed,
    Refused,
    RouteMoved,
    StalePlan,
    TimedOut,
    Unreachable,
)
from resilience.model.failover import FailoverPlan
from resilience.model.findings import Finding, Severity
from resilience.operations.failback import failback
from resilience.operations.failover import failover
from resilience.operations.resume import resume
from resilience.operations.switchover import switchover

from .staged import Stage

ERRORS = [
    Unreachable("no route to host", operation="do", subject="it"),
    TimedOut("no answer", operation="do", subject="it"),
    Interrupted("the connection broke", operation="do", subject="it"),
    Refused("it will not", operation="do", subject="it"),
    RouteMoved("it is elsewhere", operation="do", subject="it"),
    KeyError("a mistake of ours"),
]
LAST = 1 << 20


@define
class Failing:
    """Raises at the point number `at`, and at the same point every time after it."""

    at: int
    error: Exception
    points: int = 0
    point: str = ""

    async def __call__(self, point: str) -> None:
        await asyncio.sleep(0)
        if "put" in point or "survey" in point or point == self.point:
            if point == self.point:
                raise self.error
            return
        if self.points == self.at:
            self.point = point
            raise self.error
        self.points += 1


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resilience.journal.journal.PATIENCE", 0.1)
    monkeypatch.setattr("resilience.operations.executing.PAUSE", 0.001)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_whatever_fails_before_or_after_an_effect_it_is_finished_undone_or_left_to_a_resume(
    error: Exception,
) -> None:
    endings = set()
    for at in count():
        stage = await Stage.of("a", "b", "c")
        watch = Failing(at, error)
        stage.world.watch = watch
        try:
            report = await switchover(stage.group, to="b", clock=stage.world.clock)
        except Interrupted:
            endings.add("interrupted")
            stage.assert_safe()
            watch.at, watch.point = LAST, "healed"
            report = await resume(stage.group, clock=stage.world.clock)
        endings.add(report.ending)
        stage.assert_safe()
        if not watch.point:
            break
        watch.at, watch.point = LAST, "healed"
        if report.ending == "completed":
            stage.assert_failed_over("b")
        else:
            assert report.why
            if stage.world.servers["a"].fenced:
                await stage.fencer.lift("a", epoch=9)
            stage.assert_as_before()
    assert at > 20
    assert endings == {"completed", "stopped", "interrupted"}


async def test_a_switchover_that_is_stopped_after_the_fence_leaves_everything_as_it_was() -> None:
    stage = await Stage.of("a", "b", "c")

    async def refuses(point: str) -> None:
        if point == "before promote b":
            raise FencingUnproven("a takes writes again", operation="promote", subject="a")

    stage.world.watch = refuses
    report = await switchover(stage.group, to="b", clock=stage.world.clock)
    assert report.ending == "stopped" and "a takes writes again" in report.why
    stage.assert_as_before()
    assert stage.world.write("a", "one more")
    assert {name: stage.world.servers[name].upstream for name in "bc"} == {"b": "a", "c": "a"}
    assert stage.world.effects[-4] == "lift a"
    assert set(stage.world.effects[-3:]) == {"follow b", "follow c", "switch pool a"}


@pytest.mark.parametrize("at", range(2, 20))
async def test_the_journal_that_goes_away_in_the_middle_stops_it_before_the_next_effect(at: int) -> None:
    stage = await Stage.of("a", "b", "c")
    stage.store.gone_at = at
    try:
        report = await switchover(stage.group, to="b", clock=stage.world.clock)
    except Interrupted as error:
        said = str(error)
    else:
        assert report.ending == "completed" and stage.store.puts < at
        return
    assert "the journal cannot be written" in said and "resume() looks again" in said
    done = len(stage.world.effects)
    found = (await _healed(stage).execution()) if stage.store.gone else None
    assert found is not None
    if found.only_held:
        assert not stage.switch.held, "clients that only waited were let go"
    report = await resume(stage.group, clock=stage.world.clock)
    assert report.ending == "completed" and len(stage.world.effects) > done - 1
    assert stage.world.promotions == ["b"] and stage.world.two_writers == []
    assert (stage.switch.to, stage.switch.held) == ("b", False)


@pytest.mark.parametrize("at", range(1, 14))
async def test_a_record_whose_answer_was_lost_is_found_again_by_its_nonce(at: int) -> None:
    stage = await Stage.of("a", "b", "c")
    stage.store.mute_at = at
    report = await switchover(stage.group, to="b", clock=stage.world.clock)
    assert report.ending == "completed"
    stage.assert_failed_over("b")
    assert [each.number for each in await stage.journal.last()] == list(range(1, 12))


async def test_without_its_journal_nothing_is_begun() -> None:
    stage = await Stage.of("a", "b", "c")
    stage.world.kill("a")
    plan = await stage.plan()
    stage.store.gone = True
    with pytest.raises(Unreachable):
        await stage.fail_over(plan)
    _healed(stage).store.gone_at = 1
    stage.store.puts = 0
    with pytest.raises(Unreachable):
        await stage.fail_over(plan)
    assert stage.world.effects == []
    stage.assert_as_before()


async def test_the_words_have_to_be_those_of_this_plan() -> None:
    stage = await Stage.of("a", "b", "c")
    stage.world.kill("a")
    plan, other = await stage.plan(), evolve(await stage.plan(), id="another")
    for words in ("", "FAIL OVER", other.confirmation, plan.confirmation.lower() + "x"):
        with pytest.raises(NotConfirmed):
            await failover(stage.group, plan, confirm=words)
    assert stage.world.effects == [] and await stage.journal.last() == ()
    assert (await failover(stage.group, plan, confirm=f" {plan.confirmation}\n", clock=stage.world.clock)).promoted


async def test_a_plan_of_another_group_is_a_mistake() -> None:
    stage = await Stage.of("a", "b", "c")
    plan = evolve(await stage.plan("switchover"), group="payments")
    with pytest.raises(ValueError, match="the plan is for payments"):
        await stage.fail_over(plan)


async def test_what_the_plan_rests_on_has_moved() -> None:
    stage = await Stage.of("a", "b", "c")
    stage.world.kill("a")
    plan = await stage.plan()
    stage.world.revive("a")
    with pytest.raises(StalePlan, match="a is a primary now"):
        await stage.fail_over(plan)
    stage.world.kill("a")
    stage.world.now += timedelta(hours=1)
    with pytest.raises(StalePlan, match="it expired at"):
        await stage.fail_over(plan)
    plan = await stage.plan()
    stage.switch.version += 1
    with pytest.raises(StalePlan, match="pool was changed by somebody"):
        await stage.fail_over(plan)
    assert stage.world.effects == []


async def test_a_plan_is_good_for_one_failover_only() -> None:
    stage = await Stage.of("a", "b", "c")
    plan = await stage.plan("switchover", "b")
    await stage.fail_over(plan)
    with pytest.raises(StalePlan, match="somebody has acted on the group since"):
        await stage.fail_over(plan)


async def test_a_fence_that_cannot_be_proven_refuses_and_all_is_as_before() -> None:
    stage = await Stage.of("a", "b", "c")
    stage.world.kill("a")
    plan = await stage.plan()
    stage.fencer.beyond.add("a")
    report = await stage.fail_over(plan)
    assert report.ending == "stopped" and "its machine does not answer" in report.why
    stage.assert_as_before()


async def test_unless_somebody_accepts_it_by_name_which_is_written_down() -> None:
    stage = await Stage.of("a", "b", "c")
    stage.world.kill("a")
    plan = await stage.plan(max_loss=timedelta(days=1))
    stage.fencer.beyond.add("a")
    report = await stage.fail_over(plan, accept_split_brain=True)
    assert report.ending == "completed"
    (fence,) = report.fences
    assert fence.kind == "waived" and "accepted by anna though" in fence.evidence
    assert "accepts split brain" in await stage.story() and "waived: accepted by anna" in await stage.story()


async def test_a_member_that_nobody_can_fence_is_refused_before_anything_is_touched() -> None:
    stage = await Stage.of("a", "b", "c")
    stage.world.kill("a")
    stage.fencer.members = ("b", "c")
    plan = await stage.plan()
    with pytest.raises(FencingUnproven, match="nobody can fence a"):
        await stage.fail_over(plan)
    assert stage.world.effects == []


async def test_a_loss_that_the_policy_does_not_allow_is_refused_unless_accepted_by_name() -> None:
    stage = await Stage.of("a", "b", "c", needed=0)
    stage.world.servers["b"].lagging = stage.world.servers["c"].lagging = True
    assert stage.world.write("a", "nobody else has it")
    stage.world.kill("a")
    plan = await stage.plan()
    with pytest.raises(LossTooGreat):
        await stage.fail_over(plan)
    assert stage.world.effects == []
    report = await stage.fail_over(plan, accept_data_loss=True)
    assert report.ending == "completed" and report.loss.kind != "nothing"
    assert stage.world.lost("b") == ["nobody else has it"]


async def test_a_pool_that_cannot_be_held_does_not_keep_a_dead_primary() -> None:
    stage = await Stage.of("a", "b", "c")
    stage.world.kill("a")
    plan = await stage.plan()

    async def refuses(point: str) -> None:
        if point == "before hold pool":
            raise Unreachable("its console does not answer", operation="hold", subject="pool")

    stage.world.watch = refuses
    report = await stage.fail_over(plan)
    assert report.ending == "completed"
    assert [each.text for each in report.findings if each.subject == "pool"] == [
        "hold pool: unknown: its console does not answer"
    ]
    stage.assert_failed_over("b")


async def test_but_a_switchover_without_it_would_fail_transactions_and_is_stopped() -> None:
    stage = await Stage.of("a", "b", "c")

    async def refuses(point: str) -> None:
        if point == "before hold pool":
            raise Unreachable("its console does not answer", operation="hold", subject="pool")

    stage.world.watch = refuses
    assert (await switchover(stage.group, to="b", clock=stage.world.clock)).ending == "stopped"
    stage.assert_as_before()


async def test_a_route_that_is_gone_is_given_up_by_name() -> None:
    stage = await Stage.of("a", "b", "c")
    stage.world.kill("a")
    plan = await stage.plan()

    async def gone(point: str) -> None:
        if point.startswith("before switch pool"):
            raise Unreachable("no route to host", operation="switch", subject="pool")

    stage.world.watch = gone
    with pytest.raises(Interrupted, match="there is a new primary, and not all clients were led to it"):
        await stage.fail_over(plan)
    with pytest.raises(Interrupted):
        await resume(stage.group, clock=stage.world.clock)
    report = await resume(stage.group, give_up=["pool"], clock=stage.world.clock)
    assert report.ending == "completed" and stage.world.promotions == ["b"]
    assert any(each.subject == "pool" and "given up" in each.text for each in report.findings)


async def test_somebody_who_led_the_route_elsewhere_meanwhile_is_not_overruled() -> None:
    stage = await Stage.of("a", "b", "c")
    stage.world.kill("a")
    plan = await stage.plan()

    async def meddles(point: str) -> None:
        if point == "after promote b":
            stage.switch.to, stage.switch.held, stage.switch.version = "c", False, 77

    stage.world.watch = meddles
    with pytest.raises(Interrupted, match="somebody else led it to c"):
        await stage.fail_over(plan)
    assert stage.switch.to == "c"
    stage.switch.to = "a"
    assert (await resume(stage.group, clock=stage.world.clock)).ending == "completed"
    assert stage.world.promotions == ["b"] and stage.switch.to == "b"


async def test_a_second_member_that_takes_writes_stops_it() -> None:
    stage = await Stage.of("a", "b", "c")
    stage.world.kill("a")
    plan = await stage.plan()

    async def another(point: str) -> None:
        if point == "before settle":
            stage.world.servers["c"].role = "primary"

    stage.world.watch = another
    report = await stage.fail_over(plan)
    assert report.ending == "stopped" and "c: it takes writes and is not fenced" in report.why
    assert stage.world.promotions == []


async def test_a_standby_that_dies_during_the_promotion_is_a_finding() -> None:
    stage = await Stage.of("a", "b", "c")
    stage.world.kill("a")
    plan = await stage.plan()

    async def dies(point: str) -> None:
        if point == "before promote b":
            stage.world.kill("c")
        if point == "before verify b":  # somebody noticed that writes wait for it
            stage.world.needed = 0

    stage.world.watch = dies
    report = await stage.fail_over(plan)
    assert report.ending == "completed"
    assert any(each.subject == "c" and "follow c: unknown" in each.text for each in report.findings)
    stage.assert_failed_over("b")


async def test_a_write_that_hangs_after_the_promotion_is_told_and_can_be_resumed() -> None:
    stage = await Stage.of("a", "b", "c")
    stage.world.kill("a")
    plan = await stage.plan()

    async def dies(point: str) -> None:
        if point == "before promote b":
            stage.world.kill("c")

    stage.world.watch = dies
    with pytest.raises(Interrupted, match="it could not be proven that it takes writes: verify b: .* not acknowledged"):
        await stage.fail_over(plan)
    stage.world.needed = 0
    assert (await resume(stage.group, clock=stage.world.clock)).ending == "completed"


async def test_a_new_primary_that_fails_in_its_turn_is_failed_over_by_a_new_plan() -> None:
    stage = await Stage.of("a", "b", "c", needed=0)
    stage.world.kill("a")
    plan = await stage.plan(max_loss=timedelta(days=1))

    async def dies(point: str) -> None:
        if point == "before verify b":
            stage.world.kill("b")

    stage.world.watch = dies
    with pytest.raises(Interrupted):
        await stage.fail_over(plan, accept_data_loss=True)
    stage.fate()
    plan = await stage.plan(max_loss=timedelta(days=1))
    assert plan.primary == "b"
    report = await stage.fail_over(plan, accept_data_loss=True)
    assert (report.ending, report.primary) == ("completed", "c")
    assert stage.world.writers() == ("c",) and stage.world.two_writers == []


@define
class Line:
    """One line of a checklist."""

    name: str
    severity: Severity = "note"
    broken: bool = False
    system: str = "simulated"

    async def look(self, plan: FailoverPlan) -> tuple[Finding, ...]:
        await asyncio.sleep(0)
        if self.broken:
            raise Unreachable("no route to host", operation="ask", subject=self.name)
        return (Finding(severity=self.severity, subject=self.name, text=f"{plan.kind} of {plan.group}"),)


@pytest.mark.parametrize("line", [Line("approval", "blocker"), Line("approval", broken=True)])
async def test_a_line_of_the_checklist_that_is_not_ticked_off_refuses(line: Line) -> None:
    stage = await Stage.of("a", "b", "c", before=(Line("backup"), line))
    stage.world.kill("a")
    plan = await stage.plan()
    with pytest.raises(Refused, match="approval"):
        await stage.fail_over(plan)
    assert stage.world.effects == []


async def test_what_the_checklist_afterwards_finds_stands_in_the_report() -> None:
    stage = await Stage.of("a", "b", "c", after=(Line("writable"), Line("alerts", broken=True)))
    stage.world.kill("a")
    report = await stage.fail_over(await stage.plan())
    assert [(each.severity, each.subject) for each in report.findings] == [("note", "writable"), ("warning", "alerts")]
    assert (await stage.journal.last())[-1].report == report


async def test_a_failback_brings_the_old_primary_back_and_gives_it_its_role() -> None:
    stage = await Stage.of("a", "b", "c")
    stage.world.kill("a")
    await stage.fail_over(await stage.plan())
    stage.world.servers["a"].log.append("never acknowledged")
    plan = await stage.failback_plan("a")
    report = await failback(stage.group, plan, confirm=plan.confirmation, actor="anna", clock=stage.world.clock)
    assert (report.ending, report.primary) == ("completed", "a")
    assert stage.world.writers() == ("a",) and stage.world.two_writers == []
    assert stage.world.promotions == ["b", "a"] and stage.switch.switches == ["b", "a"]
    assert "never acknowledged" not in stage.world.servers["a"].log and stage.world.lost("a") == []
    assert stage.world.servers["b"].upstream == "a"


async def test_a_failback_never_takes_a_heavier_way_than_was_confirmed() -> None:
    stage = await Stage.of("a", "b", "c")
    stage.world.kill("a")
    await stage.fail_over(await stage.plan())
    plan = await stage.failback_plan(None)
    assert [each.way for each in plan.divergences] == ["follow"]
    stage.world.servers["a"].log.append("never acknowledged")
    report = await failback(stage.group, plan, confirm=plan.confirmation, clock=stage.world.clock)
    assert report.ending == "stopped" and "what was confirmed is follow" in report.why
    assert "never acknowledged" in stage.world.servers["a"].log
    with pytest.raises(ValueError, match="the plan of a switchover"):
        plan = await stage.plan("switchover", "c")
        await failback(stage.group, plan, confirm=plan.confirmation)


async def test_who_is_overtaken_in_the_middle_of_a_step_stops() -> None:
    stage = await Stage.of("a", "b", "c")
    stage.world.kill("a")
    plan = await stage.plan()

    async def overtaken(point: str) -> None:
        if point == "before settle":
            stage.fate()
            await resume(stage.group, actor="bert", clock=stage.world.clock)

    stage.world.watch = overtaken
    with pytest.raises(FencedOff, match="epoch 2 has begun"):
        await stage.fail_over(plan)
    stage.assert_failed_over("b")


async def test_who_stood_still_after_his_record_looks_whose_turn_it_is_before_he_acts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = await Stage.of("a", "b", "c")
    stage.world.kill("a")
    plan = await stage.plan()
    finished: list[str] = []

    async def overtaken(point: str) -> None:
        if point == "after put" and stage.store.puts == 2:
            stage.fate()
            await resume(stage.group, actor="bert", clock=stage.world.clock)
            finished.extend(stage.world.effects)

    stage.store.watch = overtaken
    monkeypatch.setattr("resilience.operations.executing.STOOD_STILL", -1.0)
    with pytest.raises(JournalConflict, match="bert acts on this group"):
        await stage.fail_over(plan)
    assert stage.world.effects == finished
    stage.assert_failed_over("b")


def _healed(stage: Stage) -> Stage:
    stage.store.gone, stage.store.gone_at = False, -1
    return stage


async def test_a_route_that_failed_with_the_primary_keeps_nobody_from_failing_over() -> None:
    stage = await Stage.of("a", "b", "c")
    stage.world.kill("a")

    async def gone(point: str) -> None:
        if "pool" in point:
            raise Unreachable("no route to host", operation="connect", subject="pool")

    stage.world.watch = gone
    plan = await stage.plan()
    assert not plan.blockers and not [step for step in plan.steps if step.subject == "pool"]
    report = await stage.fail_over(plan)
    assert report.ending == "completed" and stage.world.writers() == ("b",)
    assert any(each.subject == "pool" and "lead it by hand" in each.hint for each in report.findings)


async def test_but_nobody_switches_over_without_it() -> None:
    stage = await Stage.of("a", "b", "c")

    async def gone(point: str) -> None:
        if "pool" in point:
            raise Unreachable("no route to host", operation="connect", subject="pool")

    stage.world.watch = gone
    with pytest.raises(Refused, match="pool: nobody could look at it"):
        await switchover(stage.group, to="b", clock=stage.world.clock)
    assert stage.world.effects == []
