"""The operator's process dies at every boundary, stands still, is cancelled; a resume finishes what was begun, once."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest

from resilience.model.errors import FencedOff, Interrupted, JournalConflict, Refused
from resilience.operations.resume import resume
from resilience.operations.switchover import switchover
from resilience.testing.cancellation import cancellations

from .staged import Died, Stage


async def test_killed_at_every_point_of_a_failover_a_resume_finishes_with_one_promotion_and_one_switch() -> None:
    for at in count():
        stage = await Stage.of("a", "b", "c")
        stage.world.kill("a")
        plan = await stage.plan()
        fate = stage.fate(at)
        try:
            await stage.fail_over(plan)
        except Died:
            pass
        else:
            break
        stage.fate()
        if not await stage.journal.last():
            stage.assert_as_before()
            assert stage.world.effects == []
            continue
        report = await resume(stage.group, clock=stage.world.clock)
        assert report.ending == "completed", fate.points
        stage.assert_failed_over("b")
    assert at > 30


@pytest.mark.parametrize("second", range(3, 28, 4))
async def test_killed_again_while_it_resumes_the_next_resume_finishes(second: int) -> None:
    for at in range(5, 30, 3):
        stage = await Stage.of("a", "b", "c")
        stage.world.kill("a")
        plan = await stage.plan()
        stage.fate(at)
        with pytest.raises(Died):
            await stage.fail_over(plan)
        stage.fate(second)
        try:
            await resume(stage.group, clock=stage.world.clock)
        except Died:
            stage.fate()
            report = await resume(stage.group, clock=stage.world.clock)
            assert report.ending == "completed"
        stage.assert_failed_over("b")


async def test_killed_at_every_point_of_a_switchover_a_resume_finishes_and_the_old_primary_is_back() -> None:
    for at in count():
        stage = await Stage.of("a", "b", "c")
        stage.fate(at)
        try:
            await switchover(stage.group, to="b", clock=stage.world.clock)
        except Died:
            stage.fate()
        else:
            break
        if not await stage.journal.last():
            continue
        report = await resume(stage.group, clock=stage.world.clock)
        assert report.ending == "completed"
        stage.assert_failed_over("b")
        assert stage.world.servers["a"].role == "standby" and stage.world.servers["a"].upstream == "b"
        assert (stage.world.sync, stage.world.needed) == (("a", "c"), 1)
    assert at > 40


async def test_killed_at_every_point_it_is_undone_instead_as_long_as_no_promotion_has_begun() -> None:
    undone = 0
    for at in count():
        stage = await Stage.of("a", "b", "c")
        fate = stage.fate(at)
        try:
            await switchover(stage.group, to="b", clock=stage.world.clock)
        except Died:
            stage.fate()
        else:
            break
        if not await stage.journal.last():
            continue
        try:
            report = await resume(stage.group, stop=True, clock=stage.world.clock)
        except Refused:
            assert (await resume(stage.group, clock=stage.world.clock)).ending == "completed"
            stage.assert_failed_over("b")
            continue
        if report.ending == "completed":  # it had come to its end
            continue
        undone += 1
        assert report.why == "it was asked for", fate.points
        stage.assert_as_before()
        assert stage.world.write("a", "one more")
        assert all(stage.world.servers[name].upstream == "a" for name in "bc")
    assert undone > 10


async def test_cancelled_at_every_point_it_is_undone_or_a_resume_finishes() -> None:
    undone = finished = 0
    for attempt in cancellations():
        stage = await Stage.of("a", "b", "c")
        if await attempt(switchover(stage.group, to="b", clock=stage.world.clock)):
            continue
        found = await stage.execution()
        stage.assert_safe()
        if found is None:
            assert stage.world.effects == []
        elif found.report is not None and found.report.ending == "stopped":
            undone += 1
            stage.assert_as_before()
            assert stage.world.write("a", "one more")
        else:
            finished += 1
            assert (await resume(stage.group, clock=stage.world.clock)).ending == "completed"
            stage.assert_failed_over("b")
    assert undone > 10
    assert finished > 10


async def test_whoever_stood_still_while_another_took_over_does_nothing_more() -> None:
    for at in count():
        stage = await Stage.of("a", "b", "c")
        stage.world.kill("a")
        plan = await stage.plan()
        asleep, awake, seen = asyncio.Event(), asyncio.Event(), 0

        async def hang(_: str, at: int = at, asleep: asyncio.Event = asleep, awake: asyncio.Event = awake) -> None:
            nonlocal seen
            seen += 1
            if seen == at + 1:
                asleep.set()
                await awake.wait()

        stage.world.watch = stage.store.watch = hang
        first = asyncio.create_task(stage.fail_over(plan))
        waiting = asyncio.create_task(asleep.wait())
        await asyncio.wait([first, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if first.done():
            await first
            break
        begun = bool(await stage.journal.last())
        if begun:
            await resume(stage.group, actor="bert", clock=stage.world.clock)
            stage.assert_failed_over("b")
        awake.set()
        await asyncio.wait([first])
        if begun and first.exception() is not None:
            assert isinstance(first.exception(), JournalConflict | FencedOff), first.exception()
        stage.assert_failed_over("b")
    assert at > 30


async def test_of_two_who_carry_out_the_same_plan_one_acts_and_the_other_is_told() -> None:
    stage = await Stage.of("a", "b", "c")
    stage.world.kill("a")
    plan = await stage.plan()
    stage.fate()
    results = await asyncio.gather(stage.fail_over(plan), stage.fail_over(plan), return_exceptions=True)
    assert [type(each).__name__ for each in results] == ["FailoverReport", "JournalConflict"]
    stage.assert_failed_over("b")


async def test_a_second_operator_is_told_who_acts_and_what_to_do() -> None:
    stage = await Stage.of("a", "b", "c")
    stage.world.kill("a")
    plan = await stage.plan()
    stage.fate(12)
    with pytest.raises(Died):
        await stage.fail_over(plan)
    stage.fate()
    with pytest.raises(JournalConflict, match="a failover of this group is under way: anna, since .* in epoch 1"):
        await stage.fail_over(await stage.plan())


async def test_there_is_nothing_to_resume_where_nothing_was_begun() -> None:
    stage = await Stage.of("a", "b")
    with pytest.raises(Refused, match="nothing was ever begun"):
        await resume(stage.group)


async def test_a_resume_of_what_has_ended_returns_its_report() -> None:
    stage = await Stage.of("a", "b", "c")
    stage.world.kill("a")
    report = await stage.fail_over(await stage.plan())
    assert await resume(stage.group) == report
    assert len(stage.world.promotions) == 1


async def test_if_the_primary_came_back_before_anything_was_touched_a_resume_lets_clients_go() -> None:
    stage = await Stage.of("a", "b", "c")
    stage.world.kill("a")
    plan = await stage.plan()
    fate = stage.fate()
    stage.world.watch = stage.store.watch = fate
    fate.at = 5
    with pytest.raises(Died):
        await stage.fail_over(plan)
    assert stage.switch.held
    stage.fate()
    stage.world.revive("a")
    report = await resume(stage.group, clock=stage.world.clock)
    assert report.ending == "stopped" and "a is a primary now" in report.why
    stage.assert_as_before()


async def lost_while_promoted(needed: int) -> Stage:
    """The candidate dies the moment it was promoted, and the operator hears nothing of it."""
    stage = await Stage.of("a", "b", "c", needed=needed)
    stage.world.kill("a")
    plan = await stage.plan()

    async def dies(point: str) -> None:
        if point == "after promote b":
            stage.world.kill("b")
            raise Interrupted("the connection broke", operation="promote", subject="b")

    stage.world.watch = dies
    with pytest.raises(Interrupted, match="nobody can tell whether the candidate was promoted"):
        await stage.fail_over(plan)
    return stage


async def test_a_candidate_that_nobody_reaches_any_more_leaves_it_open_until_somebody_accepts_the_loss() -> None:
    stage = await lost_while_promoted(needed=2)
    with pytest.raises(Refused, match="cannot be undone"):
        await resume(stage.group, stop=True)
    with pytest.raises(Interrupted, match="connection refused"):
        await resume(stage.group, clock=stage.world.clock)
    report = await resume(stage.group, accept_data_loss=True, actor="anna", clock=stage.world.clock)
    assert (report.ending, report.primary) == ("completed", "c")
    assert stage.world.servers["b"].fenced and stage.world.writers() == ("c",)
    assert any(each.subject == "b" and "may have been promoted" in each.text for each in report.findings)
    stage.world.revive("b")
    assert stage.world.two_writers == []


async def test_without_it_more_would_be_lost_than_was_confirmed_so_nobody_else_is_promoted() -> None:
    stage = await lost_while_promoted(needed=1)
    report = await resume(stage.group, accept_data_loss=True, actor="anna", clock=stage.world.clock)
    assert report.ending == "stopped" and "more would be lost than was confirmed" in report.why
    assert stage.world.servers["b"].fenced, "it may have been promoted: it never writes beside the old primary"
    stage.world.revive("a")
    assert stage.world.writers() == ("a",) and stage.world.two_writers == []
