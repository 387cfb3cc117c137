"""What fails on the way: nothing is left half-done or repeated blindly, and what was waived is written down."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from itertools import count

import pytest
from attrs import define

from resilience.model.errors import (
    FencedOff,
    FencingUnproven,
    Interrupted,
    JournalConflict,
    Refused,
    ResilienceError,
    RouteMoved,
    TimedOut,
    Unreachable,
)
from resilience.operations.failback import failback
from resilience.operations.resume import resume
from resilience.operations.switchover import switchover

from .staged import Stage

ERRORS: list[Exception] = [
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
    stage.failing("before promote b", FencingUnproven("a takes writes again", operation="promote", subject="a"))
    report = await switchover(stage.group, to="b", clock=stage.world.clock)
    assert report.ending == "stopped" and "a takes writes again" in report.why
    stage.assert_as_before()
    assert stage.world.write("a", "one more")
    assert {name: stage.world.servers[name].upstream for name in "bc"} == {"b": "a", "c": "a"}
    assert stage.world.effects[-4] == "lift a"
    assert set(stage.world.effects[-3:]) == {"follow b", "follow c", "switch pool a"}


@pytest.mark.parametrize("at", range(2, 20))
@pytest.mark.parametrize("error", ERRORS[:4], ids=lambda error: type(error).__name__)
async def test_the_journal_that_fails_in_the_middle_stops_it_before_the_next_effect(
    error: ResilienceError, at: int
) -> None:
    stage = await Stage.of("a", "b", "c")
    stage.store.gone_at, stage.store.error = at, error
    try:
        report = await switchover(stage.group, to="b", clock=stage.world.clock)
    except Interrupted as caught:
        said = str(caught)
    else:
        assert report.ending == "completed" and stage.store.puts < at
        return
    assert "the journal cannot be written" in said and "resume() looks again" in said
    done = len(stage.world.effects)
    found = (await stage.healed().execution()) if stage.store.gone else None
    assert found is not None
    if found.only_held:
        assert not stage.switch.held, "clients that only waited were let go"
    report = await resume(stage.group, clock=stage.world.clock)
    assert report.ending == "completed" and len(stage.world.effects) > done - 1
    assert stage.world.promotions == ["b"] and stage.world.two_writers == []
    assert (stage.switch.to, stage.switch.held) == ("b", False)


@pytest.mark.parametrize("at", range(1, 7))
async def test_who_stood_still_and_cannot_look_into_the_journal_leaves_it_to_a_resume(
    monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    stage = await Stage.of("a", "b", "c")
    monkeypatch.setattr("resilience.operations.executing.STOOD_STILL", -1.0)

    async def goes_away(point: str) -> None:
        stage.store.gone = stage.store.puts == at and point == "after put"

    stage.store.watch = goes_away
    with pytest.raises(Interrupted, match="the journal cannot be read"):
        await switchover(stage.group, to="b", clock=stage.world.clock)
    stage.store.watch = stage.world.watch
    found = await stage.healed().execution()
    assert found is not None and stage.switch.held == (not found.only_held)
    assert (await resume(stage.group, clock=stage.world.clock)).ending == "completed"
    stage.assert_safe()


@pytest.mark.parametrize("at", range(1, 14))
async def test_a_record_whose_answer_was_lost_is_found_again_by_its_nonce(at: int) -> None:
    stage = await Stage.of("a", "b", "c")
    stage.store.mute_at = at
    report = await switchover(stage.group, to="b", clock=stage.world.clock)
    assert report.ending == "completed"
    stage.assert_failed_over("b")
    assert [each.number for each in await stage.journal.last()] == list(range(1, 12))


async def test_a_pool_that_cannot_be_held_does_not_keep_a_dead_primary() -> None:
    stage, plan = await Stage.struck()
    stage.failing("before hold pool", Unreachable("its console does not answer", operation="hold", subject="pool"))
    report = await stage.fail_over(plan)
    assert report.ending == "completed"
    assert [each.text for each in report.findings if each.subject == "pool"] == [
        "hold pool: unknown: its console does not answer"
    ]
    stage.assert_failed_over("b")


async def test_but_a_switchover_without_it_would_fail_transactions_and_is_stopped() -> None:
    stage = await Stage.of("a", "b", "c")
    stage.failing("before hold pool", Unreachable("its console does not answer", operation="hold", subject="pool"))
    assert (await switchover(stage.group, to="b", clock=stage.world.clock)).ending == "stopped"
    stage.assert_as_before()


async def test_a_route_that_is_gone_is_given_up_by_name() -> None:
    stage, plan = await Stage.struck()
    stage.failing("before switch pool", Unreachable("no route to host", operation="switch", subject="pool"))
    with pytest.raises(Interrupted, match="there is a new primary, and not all clients were led to it"):
        await stage.fail_over(plan)
    with pytest.raises(Interrupted):
        await resume(stage.group, clock=stage.world.clock)
    report = await resume(stage.group, give_up=["pool"], clock=stage.world.clock)
    assert report.ending == "completed" and stage.world.promotions == ["b"]
    assert any(each.subject == "pool" and "given up" in each.text for each in report.findings)


async def test_somebody_who_led_the_route_elsewhere_meanwhile_is_not_overruled() -> None:
    stage, plan = await Stage.struck()

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
    stage, plan = await Stage.struck()

    async def another(point: str) -> None:
        if point == "before settle":
            stage.world.servers["c"].role = "primary"

    stage.world.watch = another
    report = await stage.fail_over(plan)
    assert report.ending == "stopped" and "c: it takes writes and is not fenced" in report.why
    assert stage.world.promotions == []


async def test_a_standby_that_dies_during_the_promotion_is_a_finding() -> None:
    stage, plan = await Stage.struck()

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
    stage, plan = await Stage.struck()

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
    stage, plan = await Stage.struck()

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
    stage, plan = await Stage.struck()
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
