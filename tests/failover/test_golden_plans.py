"""Plans as a tired person reads them at night: each is a short story, kept word by word in tests/golden/plans.

`GOLDEN=write pytest tests/failover/test_golden_plans.py` writes them anew; then read them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from attrs import evolve

from resilience.model.failover import Decision, Divergence, FailoverPlan, FailoverPolicy, PhaseFloor
from resilience.model.groups import Sighting
from resilience.model.json import from_json
from resilience.planning.deciding import decide
from resilience.planning.failback import plan_failback

from .groups import ROUTE, at, fence, forked, gone, group, moment, planned, primary, sample, standby, sync_of

GOLDEN = Path(__file__).parent.parent / "golden" / "plans"
KB = 1 << 10
END = 0x5000148
ALIVE = (Sighting(vantage="here", alive=True, text="it answered in 0.002 s"),)
FLOOR = (
    PhaseFloor(phase="promotion", seconds=0.06, why="the end of recovery, and a timeline of its own"),
    PhaseFloor(phase="propagation", seconds=0.02, why="PgBouncer reads its file again"),
    PhaseFloor(phase="reconnect", seconds=0.2, why="server_login_retry = 0.2 s"),
)


def killed_with_synchronous_standbys() -> FailoverPlan:
    """The primary was killed. One of two standbys had to have each write, and both are here."""
    facts = group(gone(), standby("b", END, complete=-0.4), standby("c", END - 2 * KB, complete=-0.9))
    return planned(
        facts, recorded=sample(END - 5 * KB, sync=sync_of("b", "c", since=0x4000000), seconds=-2), floor=FLOOR
    )


def killed_with_an_asynchronous_standby() -> FailoverPlan:
    """The primary was killed. Its standby followed as fast as it could; a quarter of an hour may be lost."""
    facts = group(gone(), standby("b", END, complete=-0.8))
    seen = sample(END + 3 * KB, sync=sync_of(needed=0), seconds=-1.2, ahead=0.004)
    return planned(facts, recorded=seen, policy=FailoverPolicy(max_loss=timedelta(minutes=15)), floor=FLOOR)


def killed_and_nobody_recorded_anything() -> FailoverPlan:
    """The primary was killed. Nobody knows who had to have its writes, nor up to when the standby has them."""
    return planned(group(gone(), standby("b", END)), fenceable=("b",), routes=())


def half_of_the_quorum_is_gone() -> FailoverPlan:
    """One of two standbys had to have each write. The primary is gone, and so is one of them."""
    facts = group(gone(), gone("b", "no route to host"), standby("c", END - 2 * KB, complete=-0.9))
    return planned(facts, recorded=sample(END - 5 * KB, sync=sync_of("b", "c", since=0x4000000), seconds=-2))


def cut_off_from_a_primary_that_lives() -> FailoverPlan:
    """We do not reach the primary. Its standby does."""
    facts = group(
        gone(problem="no answer within 2 s"),
        standby("b", END, complete=-0.2),
        sightings=(
            Sighting(vantage="here", alive=False, text="no answer within 2 s"),
            Sighting(vantage="b", alive=True, text="its WAL receiver heard from it 0.3 s ago"),
        ),
    )
    return planned(facts, recorded=sample(END, sync=sync_of("b", since=0x4000000), seconds=-1))


def owned_by_patroni() -> FailoverPlan:
    """Somebody else fails this group over."""
    return planned(
        group(gone(), standby("b", END), owner="Patroni"), recorded=sample(END, sync=sync_of("b"), seconds=-1)
    )


def histories_that_parted() -> FailoverPlan:
    """An old primary came back as a standby with writes of its own: its position is higher, its timeline older."""
    b = standby("b", END + 900 * KB)
    c = standby("c", END, branches=forked(("2", END - 100 * KB)), complete=-0.5)
    seen = sample(
        END - KB,
        sync=sync_of("c", since=END - 60 * KB, branch="2"),
        seconds=-2,
        members=(primary("a", END - KB, branches=forked(("2", END - 100 * KB)), now=-2),),
    )
    return planned(group(gone(), b, c), recorded=seen)


def a_region_is_gone() -> FailoverPlan:
    """The whole region is gone. Words have to be typed, people have to agree, and two hours are not enough."""
    policy = FailoverPolicy(
        max_loss=timedelta(minutes=15),
        rto=timedelta(hours=2),
        confirmation="ACTIVATE DR",
        approvals=("manager", "DBA", "CTO"),
        detection=timedelta(minutes=15),
        decision=timedelta(minutes=15),
        validation=timedelta(minutes=15),
    )
    floor = (
        PhaseFloor(phase="detection", seconds=900, why="allotted by the policy"),
        PhaseFloor(phase="decision", seconds=900, why="allotted by the policy"),
        PhaseFloor(phase="promotion", seconds=5400, why="2.1 GiB to apply at 0.4 MiB/s"),
        PhaseFloor(phase="propagation", seconds=60, why="names are cached for 60 s"),
        PhaseFloor(phase="validation", seconds=900, why="allotted by the policy"),
    )
    facts = group(
        gone(problem="no answer within 2 s"), gone("b", "no answer within 2 s"), standby("west", END, complete=-40)
    )
    return planned(facts, recorded=sample(END + 64 * KB, sync=sync_of("b"), seconds=-42), policy=policy, floor=floor)


def a_switchover() -> FailoverPlan:
    """Nothing is wrong: the role moves to b, and a comes back behind it."""
    facts = group(
        primary("a", END, now=0),
        standby("b", END, complete=-0.1),
        standby("c", END - KB, complete=-0.1),
        sightings=ALIVE,
        sync=evolve(sync_of("b", "c"), recorded=False),
    )
    return planned(facts, kind="switchover", to="b", floor=FLOOR)


def a_failback() -> FailoverPlan:
    """The old primary is reachable again: it has writes that nobody has, is rewound, and gets its role back."""
    young = forked(("2", END))
    before = killed_with_synchronous_standbys()
    facts = evolve(
        group(evolve(gone(), problem="it is stopped"), primary("b", END + 700 * KB, branches=young)),
        primary="b",
        sightings=(),
    )
    back = Divergence(
        member="a",
        primary="b",
        way="rewind",
        forked_at=at(END),
        end=at(END + 8 * KB),
        lost=8 * KB,
        why="it went on for 8.0 KiB after b left its history at 0/5000148",
    )
    return plan_failback(
        facts,
        [evolve(ROUTE, to="b", instance="b-1")],
        FailoverPolicy(),
        divergences=[back],
        before=before,
        id="20261122T040000.000Z-5f3a9c",
        epoch=4,
        now=moment(3600),
        to="a",
        fenceable=("a", "b"),
        floor=FLOOR,
    )


STORIES: tuple[Callable[[], FailoverPlan], ...] = (
    killed_with_synchronous_standbys,
    killed_with_an_asynchronous_standby,
    killed_and_nobody_recorded_anything,
    half_of_the_quorum_is_gone,
    cut_off_from_a_primary_that_lives,
    owned_by_patroni,
    histories_that_parted,
    a_region_is_gone,
    a_switchover,
    a_failback,
)


def decided() -> dict[str, Decision]:
    """Second decisions, as they come once the primary is fenced and the standbys stand still."""
    sync, alone = killed_with_synchronous_standbys(), killed_with_an_asynchronous_standby()
    both = group(gone(), standby("b", END, complete=-0.4), standby("c", END, complete=-0.4))
    one = group(gone(), gone("b", "no answer within 2 s"), standby("c", END, complete=-0.4))
    late = group(gone(), standby("b", END, complete=-0.8))
    return {
        "as planned": decide(sync, both, fences=[fence(1)]),
        "b died while the standbys settled": decide(sync, one, fences=[fence(1)]),
        "asynchronous, fenced six seconds later": decide(alone, late, fences=[fence(6)]),
        "asynchronous, fenced after an hour": decide(alone, late, fences=[fence(3600)]),
    }


def kept(name: str, text: str) -> None:
    """Compare with what is kept, or keep it."""
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("GOLDEN") == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text, f"{path.name} reads differently now: GOLDEN=write writes it anew; then read it"


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_a_plan_reads_like_a_story(story: Callable[[], FailoverPlan]) -> None:
    plan = story()
    kept(story.__name__.replace("_", "-"), f"{story.__doc__}\n\n{plan}\n")


def test_a_second_decision_reads_like_one_too() -> None:
    kept("second-decisions", "\n\n".join(f"{case}\n\n{decision}" for case, decision in decided().items()) + "\n")


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_a_plan_that_was_sent_for_approval_is_the_same_when_it_comes_back(story: Callable[[], FailoverPlan]) -> None:
    plan = story()
    back = from_json(plan.to_json().encode(), FailoverPlan)
    assert back == plan and back.confirmation == plan.confirmation and str(back) == str(plan)


def test_the_code_to_type_is_another_one_for_every_plan() -> None:
    codes = [story().code for story in STORIES]
    assert len(set(codes)) == len(codes)
    plan = a_switchover()
    assert evolve(plan, epoch=plan.epoch + 1).code != plan.code


def test_every_file_of_the_golden_folder_belongs_to_a_story() -> None:
    names = {story.__name__.replace("_", "-") for story in STORIES} | {"second-decisions"}
    assert {path.stem for path in GOLDEN.iterdir()} == names
