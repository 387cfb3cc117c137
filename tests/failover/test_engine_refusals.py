"""What is refused before anything is touched, or undone, unless somebody accepts it by name."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from attrs import define, evolve

from resilience.model.errors import (
    Corrupt,
    FencingUnproven,
    LossTooGreat,
    NotConfirmed,
    Refused,
    ResilienceError,
    StalePlan,
    Unreachable,
    Unsupported,
)
from resilience.model.failover import FailoverPlan
from resilience.model.findings import Finding, Severity
from resilience.operations.failover import failover
from resilience.operations.switchover import switchover

from .staged import Stage


async def test_without_its_journal_nothing_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resilience.journal.journal.PATIENCE", 0.1)
    stage, plan = await Stage.struck()
    stage.store.gone = True
    with pytest.raises(Unreachable):
        await stage.fail_over(plan)
    stage.healed().store.gone_at = 1
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
    stage, plan = await Stage.struck()
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
    stage, plan = await Stage.struck()
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


@pytest.mark.parametrize(
    "error", [Refused("its mark cannot be read"), Corrupt("its pg_control cannot be read"), Unsupported("no /proc")]
)
async def test_whatever_keeps_a_fence_from_being_proven_can_be_accepted_by_name(error: ResilienceError) -> None:
    stage = await Stage.of("a", "b", "c")
    stage.world.kill("a")
    plan = await stage.plan(max_loss=timedelta(days=1))
    stage.failing("before fence a", error)
    report = await stage.fail_over(plan, accept_split_brain=True)
    assert report.ending == "completed" and error.what in report.fences[0].evidence


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


async def test_a_route_that_failed_with_the_primary_keeps_nobody_from_failing_over() -> None:
    stage = await Stage.of("a", "b", "c")
    stage.world.kill("a")

    stage.failing("pool", Unreachable("no route to host", operation="connect", subject="pool"))
    plan = await stage.plan()
    assert not plan.blockers and not [step for step in plan.steps if step.subject == "pool"]
    report = await stage.fail_over(plan)
    assert report.ending == "completed" and stage.world.writers() == ("b",)
    assert any(each.subject == "pool" and "lead it by hand" in each.hint for each in report.findings)


async def test_but_nobody_switches_over_without_it() -> None:
    stage = await Stage.of("a", "b", "c")
    stage.failing("pool", Unreachable("no route to host", operation="connect", subject="pool"))
    with pytest.raises(Refused, match="pool: nobody could look at it"):
        await switchover(stage.group, to="b", clock=stage.world.clock)
    assert stage.world.effects == []
