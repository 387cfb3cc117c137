"""Failbacks, groups that elect their own primary, and budgets of time: decided from facts."""

from __future__ import annotations

from datetime import timedelta

from attrs import evolve

from resilience.model.failover import Divergence, FailoverPlan, FailoverPolicy, PhaseFloor
from resilience.model.groups import GroupFacts
from resilience.planning.budget import floors, over_budget
from resilience.planning.deciding import decide
from resilience.planning.failback import apart, plan_failback

from .groups import ROUTE, fence, forked, gone, group, moment, planned, primary, sample, standby, sync_of

YOUNG = forked(("2", 10))
REWIND = Divergence(member="a", primary="b", way="rewind", lost=8, why="it went on for 8 B")
FOLLOW = Divergence(member="c", primary="b", way="follow", lost=0)


def after(*members: object) -> GroupFacts:
    """The group after b was promoted."""
    facts = group(primary("b", 30, branches=YOUNG), *members)  # type: ignore[arg-type]
    return evolve(facts, primary="b", sightings=())


def back(facts: GroupFacts, *found: Divergence, to: str | None = None) -> FailoverPlan:
    before = planned(group(gone(), standby("b", 9)), recorded=sample(5, sync=sync_of("b")))
    return plan_failback(
        facts, [ROUTE], FailoverPolicy(), divergences=found, before=before,
        id="1", epoch=4, now=moment(60), to=to, fenceable=("a", "b"),
    )  # fmt: skip


def kinds(plan: FailoverPlan) -> list[str]:
    return [f"{each.kind} {each.subject}".strip() for each in plan.steps]


def test_whoever_does_not_receive_the_primary_s_history_has_fallen_out() -> None:
    facts = after(gone("a"), standby("c", 30), evolve(standby("d", 30), receiving=False))
    assert apart(facts) == ("a", "d")


def test_members_come_back_and_writes_wait_for_them_again() -> None:
    plan = back(after(gone("a")), REWIND)
    assert not plan.blockers and plan.candidate is None and not plan.fences
    assert kinds(plan) == ["rejoin a", "require b"]
    assert (plan.required, plan.required_needed) == (("a",), 1)
    assert plan.loss.kind == "unknown" and plan.loss.missing == 8
    assert "failback of orders behind b" in str(plan)


def test_the_role_goes_back_as_in_a_switchover() -> None:
    plan = back(after(gone("a")), REWIND, to="a")
    assert not plan.blockers and plan.fences == ("b",) and plan.asked
    assert kinds(plan)[:2] == ["rejoin a", "prepare a"]
    assert kinds(plan)[-2:] == ["rejoin b", "require a"]
    assert plan.required == ("b",)


def test_all_who_acknowledged_before_the_failover_do_so_again_and_not_only_its_survivors() -> None:
    lost = planned(group(gone(), standby("b", 9), standby("c", 9)), recorded=sample(5, sync=sync_of("b", "c")))

    def planning(before: FailoverPlan, now: tuple[str, ...], to: str | None = None) -> FailoverPlan:
        facts = evolve(after(gone("a"), standby("c", 30), standby("d", 30)), sync=sync_of(*now))
        return plan_failback(
            facts, [ROUTE], FailoverPolicy(), divergences=[REWIND], before=before,
            id="1", epoch=4, now=moment(60), to=to, fenceable=("a", "b"),
        )  # fmt: skip

    first = planning(lost, ("c",))  # the promotion has left its survivor only
    assert (first.required, first.required_needed) == (("a", "c"), 1)
    assert planning(lost, ("c",), to="a").required == ("b", "c")
    assert planning(first, ("c",)).required == ("a", "c"), "it was stopped, and is planned again"
    assert planning(first, ("c",), to="a").required == ("b", "c")
    assert planning(lost, ("c", "d")).required == ("c", "d"), "somebody has named others since"


def test_nothing_is_given_up_where_nobody_has_anything_of_his_own() -> None:
    assert back(after(gone("a"), gone("c")), FOLLOW, evolve(REWIND, lost=0)).loss.kind == "nothing"
    assert back(after(gone("a")), evolve(REWIND, lost=None)).loss.missing is None


def test_a_failback_that_cannot_be_says_what_to_do() -> None:
    facts = after(gone("a"))
    plans = [
        back(facts),
        back(facts, REWIND, to="b"),
        back(facts, REWIND, to="z"),
        back(facts, evolve(REWIND, way="none", why="")),
        back(evolve(facts, owner="Patroni"), REWIND),
        back(evolve(facts, primary=""), REWIND),
    ]
    for plan in plans:
        assert plan.blockers and all(each.hint and each.text for each in plan.blockers), plan
    assert kinds(plans[3]) == ["require b"]  # nobody can tell how it comes back, so it does not


def test_a_parted_standby_counts_for_what_it_has_of_the_primary_s_history() -> None:
    """It was in the set: what it acknowledged lies before the place where it left."""
    b, c = standby("b", 90), standby("c", 40, branches=YOUNG)
    seen = sample(20, sync=sync_of("b", "c", branch="2", since=12), members=(primary("a", 20, branches=YOUNG),))
    plan = planned(group(gone(), b, c), recorded=seen)
    assert plan.candidate == "c" and plan.loss.kind == "nothing", str(plan)


def test_a_group_that_elects_its_own_is_planned_without_a_candidate_and_with_the_worst_loss() -> None:
    facts = evolve(group(gone(), standby("b", 9, complete=3), standby("c", 9, complete=1)), elects=True)
    plan = planned(facts, policy=FailoverPolicy(max_loss=timedelta(hours=1)))
    assert plan.candidate is None and not plan.blockers, str(plan)
    assert plan.loss.since == moment(1)
    assert kinds(plan) == ["hold pgbouncer", "fence a", "promote", "switch pgbouncer", "verify"]
    decision = decide(plan, facts, fences=[fence(kind="delegated")])
    assert decision.candidate is None and not decision.blockers


def floor_of(phase: str, seconds: float) -> PhaseFloor:
    return PhaseFloor(phase=phase, seconds=seconds, why=f"{phase} takes that")  # type: ignore[arg-type]


def test_routes_are_switched_side_by_side_so_the_slowest_counts() -> None:
    policy = FailoverPolicy(detection=timedelta(seconds=10), validation=timedelta(seconds=1))
    found = floors(
        policy,
        [floor_of("promotion", 0.1)],
        [[floor_of("propagation", 0.2), floor_of("reconnect", 15)], [floor_of("propagation", 60)]],
    )
    assert [(each.phase, each.seconds) for each in found] == [
        ("detection", 10), ("promotion", 0.1), ("propagation", 60), ("reconnect", 15), ("validation", 1)
    ]  # fmt: skip


def test_an_objective_below_the_floor_is_warned_about_with_the_arithmetic() -> None:
    def said(seconds: float) -> list[str]:
        policy = FailoverPolicy(rto=timedelta(seconds=seconds))
        return [str(each) for each in over_budget([floor_of("detection", 30), floor_of("promotion", 10)], policy)]

    (over,) = said(20)
    assert "detection 30 s + promotion 10 s = 40 s, more than the objective of 20 s" in over
    assert "the longest is detection: detection takes that" in over
    assert "most of the objective" in said(60)[0]
    assert said(300) == [] and list(over_budget([], FailoverPolicy(rto=timedelta(seconds=1)))) == []
