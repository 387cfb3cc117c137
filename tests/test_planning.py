"""Decisions are functions of what was seen, and of nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest
from attrs import evolve

from resilience.model.errors import DestinationNotEmpty, DiskTooSmall, NoBackup, Refused
from resilience.model.facts import DestinationFacts, TargetFacts
from resilience.model.findings import Finding
from resilience.model.manifests import Manifest
from resilience.model.positions import Position, RecoveryPoint
from resilience.planning.backup import plan_backup
from resilience.planning.restore import choose, newer, plan_restore

from .test_model import MANIFEST, NOW

FACTS = TargetFacts(target="orders", system="memory", kind="base", lineage="1", size=77, details={"version": "17.1"})
EMPTY = DestinationFacts(destination="there", system="memory", empty=True, needed=5120, free=5120)
BLOCKER = Finding(severity="blocker", subject="orders", text="it is too old", hint="upgrade it")
WARNING = Finding(severity="warning", subject="orders", text="it is slow", hint="be patient")
OLDER = evolve(MANIFEST, id="20261120T203001.250Z-00000a")
DUMP = evolve(MANIFEST, id="20261122T203001.250Z-00000a", kind="dump")


def test_a_backup_is_planned_of_what_was_seen_at_the_time_that_is_given() -> None:
    plan = plan_backup(evolve(FACTS, findings=(WARNING,)), id="20261121T203001.250Z-00000a", now=NOW)
    assert (plan.id, plan.made_at) == ("20261121T203001.250Z-00000a", NOW)
    assert (plan.target, plan.system, plan.kind, plan.lineage, plan.size) == ("orders", "memory", "base", "1", 77)
    assert plan.details == FACTS.details
    assert plan.findings == (WARNING,)


def test_every_blocker_is_said_at_once_and_warnings_block_nothing() -> None:
    another = Finding(severity="blocker", subject="orders", text="it is asleep")
    with pytest.raises(Refused) as refused:
        plan_backup(evolve(FACTS, findings=(BLOCKER, WARNING, another)), id="x", now=NOW)
    assert str(refused.value) == "backup orders: it is too old; it is asleep (upgrade it)"


def test_the_newest_backup_that_the_destination_takes_is_chosen() -> None:
    known = [OLDER, MANIFEST, DUMP]
    assert choose(known, target="orders", system="memory", accepts=("base",)) is MANIFEST
    assert choose(known, target="orders", system="memory", accepts=("dump",)) is DUMP
    assert choose(known, target="orders", system="memory", accepts=("base", "dump")) is DUMP
    assert choose(known, target="orders", system="memory", accepts=("base",), backup=OLDER.id) is OLDER


def taken(number: int, *, offset: int, clock: int, branch: str = "1", lineage: str = "1") -> Manifest:
    """Make a backup by a host whose clock is some hours off."""
    time = NOW + timedelta(hours=clock)
    return evolve(
        MANIFEST,
        id=f"{time:%Y%m%dT%H%M%S}.000Z-00000{number}",
        lineage=lineage,
        started_at=time,
        ended_at=time,
        recovery_point=RecoveryPoint(position=Position(branch=branch, offset=offset, text=str(offset))),
    )


def newest(*known: Manifest) -> Manifest:
    """Choose as restore() does: of what is listed, in the order of the ids."""
    return choose(sorted(known, key=lambda each: each.id), target="orders", system="memory", accepts=("base",))


def test_the_newest_is_what_reaches_furthest_whatever_the_clocks_of_the_hosts_say() -> None:
    first, late, last = taken(1, offset=100, clock=0), taken(2, offset=200, clock=-2), taken(3, offset=300, clock=-1)
    assert newest(first, late) is late
    for some in permutations([first, late, last]):
        assert newest(*some) is last
        with pytest.raises(NoBackup, match=f"the newest is {last.id}"):
            choose(some, target="orders", system="memory", accepts=("base",), backup="yesterday")


@pytest.mark.parametrize("apart", [{"branch": "2"}, {"lineage": "2"}], ids=str)
def test_where_positions_cannot_be_compared_the_clock_says_which_is_newer(apart: dict[str, str]) -> None:
    there, here = taken(1, offset=300, clock=0), taken(2, offset=100, clock=1, **apart)
    assert newest(there, here) is newer(there, here) is newer(here, there) is here


def test_of_two_that_reach_the_same_the_one_that_ended_later_is_newer() -> None:
    first, last = taken(1, offset=100, clock=0), taken(2, offset=100, clock=1)
    assert newest(first, last) is newer(last, first) is last


def test_what_cannot_be_chosen_is_said_with_what_there_is() -> None:
    with pytest.raises(NoBackup, match="orders: the archive holds no backup of it"):
        choose([], target="orders", system="memory", accepts=("base",))
    with pytest.raises(NoBackup, match=f"there is no backup yesterday .the newest is {MANIFEST.id}"):
        choose([OLDER, MANIFEST], target="orders", system="memory", accepts=("base",), backup="yesterday")
    with pytest.raises(
        NoBackup, match=r"holds only memory base, memory dump, the destination takes other base or dump"
    ):
        choose([MANIFEST, DUMP], target="orders", system="other", accepts=("base", "dump"))
    with pytest.raises(NoBackup, match="holds only memory dump, the destination takes memory base"):
        choose([MANIFEST, DUMP], target="orders", system="memory", accepts=("base",), backup=DUMP.id)


def test_a_restore_says_what_it_will_read_and_write() -> None:
    plan = plan_restore([MANIFEST], evolve(EMPTY, findings=(WARNING,)))
    assert (plan.target, plan.destination, plan.chain) == ("orders", "there", (MANIFEST.id,))
    assert (plan.read, plan.written) == (30, 5120)
    assert plan.findings == (WARNING,)


def test_a_destination_that_is_not_empty_is_refused_with_its_own_advice_if_it_has_any() -> None:
    with pytest.raises(DestinationNotEmpty, match=r"there is not empty \(choose an empty place"):
        plan_restore([MANIFEST], evolve(EMPTY, empty=False))
    with pytest.raises(DestinationNotEmpty, match=r"there is not empty \(be patient\)"):
        plan_restore([MANIFEST], evolve(EMPTY, empty=False, findings=(WARNING,)))


def test_a_destination_without_room_is_refused_and_one_that_cannot_tell_is_not() -> None:
    with pytest.raises(DiskTooSmall, match=r"there has 5.0 KiB free and needs 5.0 KiB"):
        plan_restore([MANIFEST], evolve(EMPTY, free=5119))
    for unknown in (evolve(EMPTY, free=None), evolve(EMPTY, needed=None), EMPTY):
        assert plan_restore([MANIFEST], unknown).written == 5120


def test_what_the_destination_says_against_it_is_refused() -> None:
    with pytest.raises(Refused, match="restore orders: it is too old .upgrade it"):
        plan_restore([MANIFEST], evolve(EMPTY, findings=(BLOCKER,)))


def test_a_chain_of_two_lineages_is_refused() -> None:
    with pytest.raises(Refused, match="belong to different lineages"):
        plan_restore([evolve(OLDER, lineage="2"), MANIFEST], EMPTY)


def test_planning_knows_no_clock() -> None:
    ancient = datetime(1999, 12, 31, tzinfo=UTC)
    assert plan_backup(FACTS, id="x", now=ancient) == plan_backup(FACTS, id="x", now=ancient)
    assert plan_backup(FACTS, id="x", now=ancient).made_at == ancient
