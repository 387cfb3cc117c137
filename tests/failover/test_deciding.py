"""The second decision, stale plans, and what a blocker tells a tired person to do."""

from __future__ import annotations

from datetime import timedelta

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from resilience.model.failover import Accepted, FailoverPolicy, Loss, PhaseFloor, standing
from resilience.model.findings import Finding
from resilience.model.groups import Sighting
from resilience.planning.deciding import decide
from resilience.planning.staleness import stale

from .groups import ROUTE, SEEN_DEAD, at, fence, forked, gone, group, moment, planned, primary, sample, standby, sync_of

HOUR = FailoverPolicy(max_loss=timedelta(hours=1))
ALIVE = (Sighting(vantage="here", alive=True, text="it answered in 0.002 s"),)
RISKS: tuple[tuple[Accepted, ...], ...] = ((), ("data loss",), ("data loss", "split brain"))
RANK = {"nothing": 0, "bounded": 1, "unknown": 2}


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_what_was_confirmed_is_never_exceeded_whatever_happens_in_between(data: st.DataObject) -> None:
    """Standbys vanish, come back, get further, are made anew; samples come; risks are accepted by name."""
    seconds = st.one_of(st.none(), st.integers(0, 30))
    offsets = {name: data.draw(st.integers(0, 6)) for name in "bc"}
    sync = data.draw(
        st.sampled_from([None, sync_of(needed=0), sync_of("b"), sync_of("b", "c"), sync_of("b", "c", needed=2)])
    )
    recorded = data.draw(st.sampled_from([None, sample(3, sync=sync, seconds=2)]))
    policy = FailoverPolicy(max_loss=timedelta(seconds=data.draw(st.integers(0, 20))))
    facts = group(gone(), *(standby(name, offsets[name], complete=data.draw(seconds)) for name in "bc"))
    plan = planned(facts, recorded=recorded, policy=policy)
    settled = group(
        gone(),
        *(
            gone(name)
            if data.draw(st.booleans())
            else standby(name, data.draw(st.integers(0, 8)), complete=data.draw(seconds))
            for name in "bc"
        ),
    )
    kind = data.draw(st.sampled_from(["proven", "waived"]))
    accepted = data.draw(st.sampled_from(RISKS))
    decision = decide(plan, settled, fences=[fence(data.draw(st.integers(5, 60)), kind=kind)], accepted=accepted)
    if decision.candidate is None:
        assert decision.blockers and decision.why
        return
    assert not standing(decision.findings)
    assert RANK[decision.loss.kind] <= RANK[plan.loss.kind]
    if decision.loss.kind == "bounded" and plan.loss.kind == "bounded":
        assert decision.loss.since is not None and plan.loss.since is not None
        assert decision.loss.since >= plan.loss.since
    if "data loss" not in accepted:
        assert decision.loss.at_most is not None and decision.loss.at_most <= policy.max_loss
    if kind == "waived":
        assert "split brain" in accepted
    member = settled.member(decision.candidate)
    assert member is not None and member.reachable
    assert set(decision.sync) <= {each.name for each in settled.members if each.reachable} - {decision.candidate}
    assert decision.sync_needed <= len(decision.sync)


def test_whoever_has_more_once_all_stand_still_is_promoted() -> None:
    plan = planned(group(gone(), standby("b", 9, complete=2), standby("c", 8, complete=2)), policy=HOUR)
    assert plan.candidate == "b"
    settled = group(gone(), standby("b", 9, complete=2), standby("c", 12, complete=3))
    decision = decide(plan, settled, fences=[fence()])
    assert decision.candidate == "c" and "b is behind it" in decision.why
    asked = planned(group(gone(), standby("b", 9, complete=2), standby("c", 8, complete=2)), policy=HOUR, to="b")
    assert decide(asked, settled, fences=[fence()]).candidate == "b"


def test_a_standby_that_was_counted_on_and_is_gone_stops_it() -> None:
    recorded = sample(5, sync=sync_of("b", "c"))
    facts = group(gone(), standby("b", 9), standby("c", 8))
    plan = planned(facts, recorded=recorded)
    assert plan.loss.kind == "nothing" and not plan.blockers
    decision = decide(plan, group(gone(), gone("b"), standby("c", 9)), fences=[fence()])
    assert decision.candidate is None
    assert any("more would be lost than was confirmed" in each.text for each in decision.blockers)


def test_a_switchover_promotes_nobody_who_lacks_a_byte_of_what_the_old_primary_had() -> None:
    facts = group(primary("a", 20), standby("b", 20), sightings=ALIVE)
    plan = planned(facts, kind="switchover")
    assert plan.candidate == "b" and not plan.blockers, str(plan)
    settled = group(gone(), standby("b", 24))
    assert decide(plan, settled, fences=[fence(end=at(24))]).candidate == "b"
    behind = decide(plan, settled, fences=[fence(end=at(25))])
    assert behind.candidate is None
    assert behind.loss.missing == 1


def test_who_is_made_anew_does_not_count_for_what_he_once_acknowledged() -> None:
    recorded = sample(9, sync=sync_of("b", "c", needed=1), members=(primary("a", 9), standby("b", 9), standby("c", 4)))
    assert planned(group(gone(), standby("b", 9), standby("c", 4)), recorded=recorded).loss.kind == "nothing"
    assert planned(group(gone(), standby("b", 3), standby("c", 4)), recorded=recorded).loss.kind == "unknown"


def test_a_bound_from_the_future_is_none() -> None:
    """A recorder whose clock is ahead says that all was there later than the primary died."""
    facts = group(gone(), standby("b", 9))
    seen = sample(9, sync=sync_of(needed=0), seconds=300)
    assert "the clocks disagree" in str(planned(facts, recorded=seen, policy=HOUR, now=5).blockers)
    plan = planned(facts, recorded=seen, policy=HOUR, now=301)
    assert not plan.blockers
    decision = decide(plan, facts, fences=[fence(10)])
    assert decision.candidate is None
    assert decision.loss.kind == "unknown"
    assert "the clocks disagree" in str(decision.loss.evidence)


def test_a_later_record_that_took_long_does_not_make_the_clocks_disagree_more() -> None:
    facts = group(gone(), standby("b", 9, complete=4))
    plan = planned(facts, recorded=sample(9, sync=sync_of(needed=0), ahead=0.002), policy=HOUR)
    woken = sample(12, sync=sync_of(needed=0, seconds=6), seconds=6, ahead=0.5)
    later = group(gone(), standby("b", 11, complete=4))
    decision = decide(plan, later, fences=[fence(10)], sample=woken)
    assert decision.candidate == "b"
    assert decision.loss.since == plan.loss.since == moment(3.998)
    quicker = decide(plan, later, fences=[fence(10)], sample=sample(12, sync=sync_of(needed=0), seconds=6, ahead=0.001))
    assert quicker.loss.since == moment(3.999)


def test_a_primary_that_was_dead_and_is_heard_from_makes_the_plan_stale() -> None:
    facts = group(gone(), standby("b", 9))
    plan = planned(facts, recorded=sample(9, sync=sync_of("b")))
    assert not stale(plan, facts, [ROUTE], now=moment(6))
    heard = Sighting(vantage="b", alive=True, text="its WAL receiver heard from it 0.1 s ago")
    (why,) = stale(plan, evolve(facts, sightings=(SEEN_DEAD[0], heard)), [ROUTE], now=moment(6))
    assert "the primary lives, as b sees it" in why


def test_where_clients_find_the_primary_themselves_no_answer_is_no_move() -> None:
    known = evolve(ROUTE, follows=True)
    nowhere = evolve(known, to=None)
    dead, alive = group(gone(), standby("b", 9)), group(primary("a", 9), standby("b", 9), sightings=ALIVE)
    over = evolve(planned(alive, kind="switchover"), routes=(nowhere,))
    assert not stale(over, alive, [known], now=moment(6))
    assert not stale(evolve(over, routes=(known,)), alive, [nowhere], now=moment(6))
    assert stale(over, alive, [evolve(known, to="b")], now=moment(6))
    plan = evolve(planned(dead, recorded=sample(9, sync=sync_of("b"))), routes=(nowhere,))
    assert stale(plan, dead, [known], now=moment(6)) == ("pgbouncer leads to a now, and led to nobody known",)
    assert stale(evolve(plan, routes=(ROUTE,)), dead, [evolve(ROUTE, to=None)], now=moment(6))  # led by somebody


def test_unknown_is_said_as_unknown() -> None:
    plan = planned(group(gone(), standby("b", 9)))
    assert plan.loss == Loss(kind="unknown", evidence=plan.loss.evidence)
    assert plan.loss.at_most is None
    assert "nobody can tell" in str(plan.loss) and "no heartbeat has reached b" in str(plan)
    assert [each.subject for each in plan.blockers] == ["data loss"]
    assert planned(group(gone(), standby("b", 9)), policy=HOUR).blockers  # an hour is not "whatever it may be"


def test_a_fence_that_was_waived_leaves_the_loss_open_unless_acknowledgements_need_a_standby() -> None:
    facts = group(gone(), standby("b", 9, complete=4))
    plan = planned(facts, policy=HOUR)
    decision = decide(plan, facts, fences=[fence(kind="waived")], accepted=("split brain", "data loss"))
    assert decision.candidate is None and "confirmed" in {each.subject for each in decision.blockers}
    waits = sample(5, sync=sync_of("b"))
    plan = planned(facts, recorded=waits)
    decision = decide(plan, facts, fences=[fence(kind="waived")], accepted=["split brain"])
    assert decision.candidate == "b" and decision.loss.kind == "nothing"
    assert decide(plan, facts, fences=[]).candidate is None


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (group(primary(), standby("b", 9)), "a is a primary now, and was not to be seen"),
        (group(gone(), gone("b")), "b is not to be seen now, and was a standby: connection refused"),
        (group(gone(), standby("b", 9, branches=forked(("2", 5)))), "b is on 2 now, and was on 1"),
        (group(gone(), standby("b", 9), owner="Patroni"), "the group is owned by Patroni now"),
        (group(gone()), "b is no member any more"),
        (group(gone(), standby("b", 9), standby("c", 9)), "c has become a member"),
        (evolve(group(gone(), standby("b", 9)), primary="b"), "the primary is b now, and was a"),
    ],
)
def test_a_plan_is_stale_once_what_it_rests_on_has_moved(facts: object, words: str) -> None:
    plan = planned(group(gone(), standby("b", 9)))
    assert not stale(plan, group(gone(), standby("b", 99, complete=50)), [ROUTE], now=moment(6))  # never positions
    assert words in stale(plan, facts, [ROUTE], now=moment(6))  # type: ignore[arg-type]


def test_a_standby_that_has_found_its_way_to_the_primary_makes_no_plan_stale() -> None:
    new, old = forked(("2", 5)), standby("c", 9)
    facts = group(primary("a", 9, branches=new), standby("b", 9, branches=new), old, sightings=ALIVE)
    joined = group(primary("a", 9, branches=new), standby("b", 9, branches=new), standby("c", 9, branches=new))
    parted = evolve(joined, members=(*joined.members[:2], standby("c", 9, branches=forked(("3", 5)))))
    plan = planned(facts, kind="switchover", to="b")
    assert plan.candidate == "b"
    assert not stale(plan, evolve(joined, sightings=ALIVE), [ROUTE], now=moment(6))
    assert stale(plan, evolve(parted, sightings=ALIVE), [ROUTE], now=moment(6)) == ("c is on 3 now, and was on 1",)


def test_a_plan_is_stale_once_it_expired_or_its_routes_or_its_synchronous_standbys_changed() -> None:
    facts = group(primary("a", 9), standby("b", 9), standby("c", 9), sightings=ALIVE, sync=sync_of("b", "c"))
    plan = planned(facts, kind="switchover")
    assert not stale(plan, facts, [ROUTE], now=moment(6))
    assert stale(plan, facts, [ROUTE], now=plan.expires_at) == ("it expired at 2026-11-22 03:15:05 UTC",)
    assert stale(plan, facts, [], now=moment(6)) == ("there is no route pgbouncer any more",)
    assert stale(plan, facts, [evolve(ROUTE, to="b")], now=moment(6)) == ("pgbouncer leads to b now, and led to a",)
    assert stale(plan, facts, [evolve(ROUTE, version="2")], now=moment(6)) == ("pgbouncer was changed by somebody",)
    assert not stale(plan, evolve(facts, sync=sync_of("c", "b")), [ROUTE], now=moment(6))
    (moved,) = stale(plan, evolve(facts, sync=sync_of("b")), [ROUTE], now=moment(6))
    assert moved.startswith("a write is acknowledged by b, as recorded")


def every_blocker() -> list[Finding]:
    """Blockers of every sort, from plans that have something in their way."""
    broken = evolve(
        standby("b", 9), findings=(Finding(severity="blocker", subject="b", text="its disk is full", hint=""),)
    )
    slow = (PhaseFloor(phase="promotion", seconds=90, why="replay of 2 GiB"),)
    plans = [
        planned(group(gone(), standby("b", 9), owner="Patroni")),
        planned(group(gone(), gone("b"))),
        planned(group(gone(), broken)),
        planned(group(gone(), standby("b", 9)), fenceable=()),
        planned(group(gone(), standby("b", 9), sightings=SEEN_DEAD[:1])),
        planned(group(primary("a", 9), standby("b", 9), sightings=ALIVE)),
        planned(group(primary("a", 9), evolve(primary("b", 9), name="b"), standby("c", 9))),
        planned(group(gone(), standby("b", 9)), kind="switchover"),
        planned(group(primary("a", 9), standby("b", 9), sightings=ALIVE), kind="switchover", to="a"),
        planned(group(primary("a", 9), standby("b", 9), sightings=ALIVE), kind="switchover", fenceable=()),
        planned(group(gone(), standby("b", 9, complete=1)), policy=FailoverPolicy(max_loss=timedelta(seconds=1))),
        planned(group(gone(), standby("b", 9)), policy=FailoverPolicy(rto=timedelta(seconds=60)), floor=slow),
        planned(
            group(gone(), standby("b", 30, branches=forked(("2", 10))), standby("c", 5, branches=forked(("2", 2))))
        ),
        planned(group(gone(), standby("b", 9)), policy=FailoverPolicy(never=("b",))),
    ]
    return [finding for plan in plans for finding in plan.blockers]


def test_every_blocker_says_in_a_sentence_what_to_do() -> None:
    blockers = every_blocker()
    assert len({each.text for each in blockers}) >= 12
    for each in blockers:
        assert each.text and each.hint and each.subject, each
        assert "None" not in str(each) and "()" not in str(each), each


def test_a_blocked_plan_says_so_in_its_last_line() -> None:
    plan = planned(group(gone(), gone("b")))
    assert str(plan).splitlines()[-1].strip().startswith("it cannot be carried out")
    risky = planned(group(gone(), standby("b", 9)))
    assert f"confirm with: {risky.confirmation}; it is carried out only with accept_data_loss=True" in str(risky)


def test_what_clients_wait_for_afterwards_is_decided_too() -> None:
    facts = group(primary("a", 9), standby("b", 9), standby("c", 9), sightings=ALIVE, sync=sync_of("b", "c", needed=2))
    plan = planned(facts, kind="switchover", to="b")
    assert (plan.sync, plan.sync_needed) == (("c",), 1)
    assert (plan.required, plan.required_needed) == (("a", "c"), 2)
    assert any("waits for c, and not for 2 as before, until a is back" in each.text for each in plan.findings)
    lonely = planned(group(gone(), standby("b", 9)), recorded=sample(5, sync=sync_of("b")))
    assert (lonely.sync, lonely.sync_needed) == ((), 0)
    assert any(
        "waits for no other member, and not for 1 as before, until another standby is there" in each.text
        for each in lonely.findings
    )


def test_the_policy_s_preference_decides_between_equals_only() -> None:
    policy = FailoverPolicy(preferred=("c", "b"), max_loss=timedelta(hours=1))
    assert planned(group(gone(), standby("b", 9), standby("c", 9)), policy=policy).candidate == "c"
    assert planned(group(gone(), standby("b", 10), standby("c", 9)), policy=policy).candidate == "b"
    live = group(primary("a", 20), standby("b", 20), standby("c", 19), sightings=ALIVE)
    assert planned(live, policy=policy, kind="switchover").candidate == "c"  # it catches up beforehand


def test_where_the_primary_is_unknown_all_that_do_not_answer_are_fenced() -> None:
    facts = evolve(group(gone("a"), standby("b", 9), gone("c")), primary="")
    assert planned(facts).fences == ("a", "c")
    assert planned(facts, recorded=sample(5)).fences == ("a",)
