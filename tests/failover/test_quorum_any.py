"""What is true of any group: nothing is called safe that some pattern of acknowledgements could have lost."""

from __future__ import annotations

from datetime import timedelta
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from resilience.model.failover import FailoverPolicy
from resilience.planning.deciding import decide

from .groups import fence, gone, group, moment, planned, sample, standby, sync_of

NAMES = ("b", "c", "d", "e")
EPSILON = timedelta(microseconds=5)


def acknowledged_without(has: dict[str, int], members: tuple[str, ...], needed: int, offset: int) -> bool:
    """Whether a write at `offset` may have been acknowledged: k of the members have it, or nobody can see that not.

    Of those that cannot be looked at the adversary says what they have.
    """
    return any(
        all(name not in has or has[name] >= offset for name in voters) for voters in combinations(members, needed)
    )


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_nothing_is_called_lost_only_where_no_pattern_of_acknowledgements_could_lose_anything(
    data: st.DataObject,
) -> None:
    total = data.draw(st.integers(1, 4))
    names = NAMES[:total]
    members = tuple(data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=total, unique=True)))
    needed = data.draw(st.integers(1, len(members)))
    here = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=total, unique=True))
    has = {name: data.draw(st.integers(0, 6)) for name in here}
    to = data.draw(st.sampled_from([None, *here]))
    facts = group(
        gone(), *(standby(name, has[name]) for name in here), *(gone(name) for name in names if name not in here)
    )
    plan = planned(facts, recorded=sample(0, sync=sync_of(*members, needed=needed)), to=to)
    assert plan.candidate is not None
    held = has[plan.candidate]
    lost = any(acknowledged_without(has, members, needed, offset) for offset in range(held + 1, 8))
    if plan.loss.kind == "nothing":
        assert not lost, (members, needed, has, plan.candidate)
    elif to is None and set(members) & set(here):
        assert lost, f"it could have been proven: {members}, {needed}, {has}: {plan.loss}"
    decision = decide(plan, facts, fences=[fence()], accepted=["data loss"])
    assert decision.loss.kind == plan.loss.kind


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_change_of_the_set_is_survived_too(data: st.DataObject) -> None:
    """First one set, then another: writes were acknowledged by the first up to `changed`, by the second after it."""
    names = NAMES[:3]
    first = data.draw(st.sampled_from([c for n in (1, 2, 3) for c in combinations(names, n)]))
    second = data.draw(st.sampled_from([c for n in (1, 2, 3) for c in combinations(names, n)]))
    k1, k2 = data.draw(st.integers(1, len(first))), data.draw(st.integers(1, len(second)))
    changed = data.draw(st.integers(0, 5))
    written = data.draw(st.integers(changed, 8))
    has = {name: data.draw(st.integers(0, written)) for name in names}
    before = [n for n in range(1, changed + 1) if sum(has[name] >= n for name in first) >= k1]
    after = [n for n in range(changed + 1, written + 1) if sum(has[name] >= n for name in second) >= k2]
    here = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    facts = group(
        gone(), *(standby(name, has[name]) for name in here), *(gone(name) for name in names if name not in here)
    )
    since = data.draw(st.integers(changed, written))
    plan = planned(facts, recorded=sample(since, sync=sync_of(*second, needed=k2, since=since)))
    assert plan.candidate is not None
    if plan.loss.kind == "nothing":
        assert all(n <= has[plan.candidate] for n in (*before, *after))


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_a_bound_is_never_below_what_was_lost(data: st.DataObject) -> None:
    """An asynchronous primary that commits once a tick, acknowledged at once; standbys that follow as they like.

    Its clock is ahead of everybody else's, or behind, and a recorder has seen it at some moment.
    """
    ahead = data.draw(st.floats(-3, 3, allow_nan=False))
    died = data.draw(st.integers(1, 20))
    commits = sorted(data.draw(st.lists(st.integers(0, died), unique=True, max_size=12)))
    names = NAMES[: data.draw(st.integers(1, 3))]
    has = {name: data.draw(st.integers(0, len(commits))) for name in names}
    recorded = data.draw(st.integers(0, died))
    position = sum(moment_of <= recorded for moment_of in commits)
    standbys = [
        standby(name, count, complete=None if not count else commits[count - 1] + ahead) for name, count in has.items()
    ]
    seen = sample(position, sync=sync_of(needed=0), seconds=recorded, ahead=ahead) if data.draw(st.booleans()) else None
    policy = FailoverPolicy(max_loss=moment(1000) - moment(0))
    facts = group(gone(), *standbys)
    plan = planned(facts, recorded=seen, policy=policy, now=died + 1)
    fenced = died + data.draw(st.integers(0, 5))
    decision = decide(plan, facts, fences=[fence(fenced)], accepted=["data loss"])
    if decision.candidate is None:  # it was fenced before the last that it had committed, by its own clock
        assert any("the clocks disagree" in each for each in decision.loss.evidence)
        return
    held = has[decision.candidate]
    lost = commits[held:]
    if decision.loss.kind == "nothing":
        assert not lost
    if decision.loss.kind == "bounded" and lost and (seen is not None or ahead <= 0):
        since, until = decision.loss.since, decision.loss.until
        assert since is not None and until is not None and decision.loss.at_most is not None
        # All that is lost was acknowledged in the time that was said, by the clock of those who record and fence.
        assert since <= moment(lost[0]) + EPSILON and moment(lost[-1]) <= until
        assert decision.loss.at_most + EPSILON >= moment(fenced) - moment(lost[0])
    if decision.loss.missing is not None:
        assert decision.loss.missing <= max(0, len(commits) - held)
