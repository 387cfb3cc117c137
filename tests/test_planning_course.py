"""Which backups and which stretches of the log lead to a target; or the reason why none do, with numbers."""

from __future__ import annotations

from datetime import timedelta

import pytest
from attrs import evolve

from resilience.model.errors import NoBackup, NotRecoverable
from resilience.model.log import Stretch
from resilience.model.targets import RecoveryTarget
from resilience.planning.course import Course, Holdings, holdings

from .plans import at, entries, entry, fork, gap, held, lsn, moment, name, place, taken, view

LATEST = RecoveryTarget.latest()
PLAIN = {"1": entries(*range(0, 44, 4))}


def told(course: Course) -> tuple[list[str], list[tuple[str, int, int]], bool]:
    """Say in short what a course is."""
    replay = [(each.branch, int(each.begins.offset), int(each.ends.offset)) for each in course.replay]
    return [each.id[-2:] for each in course.chain], replay, course.to_the_end


def refused(of: Holdings, until: RecoveryTarget) -> str:
    with pytest.raises(NotRecoverable) as refusal:
        of.decide(until)
    assert refusal.value.hint
    return str(refusal.value)


def test_the_latest_is_all_the_log_behind_the_newest_backup() -> None:
    course = held(view(PLAIN), taken(1, 4), taken(2, 12)).decide(LATEST)
    assert told(course) == (["02"], [("1", 11, 40)], True)
    assert course.replayed == 29
    assert course.findings == ()


def test_the_newest_backup_before_a_target_is_taken_and_those_after_it_are_not() -> None:
    archive = held(view(PLAIN), taken(1, 4), taken(2, 12), taken(3, 30))
    assert told(archive.decide(moment(20))) == (["02"], [("1", 11, 40)], False)
    assert told(archive.decide(moment(12))) == (["02"], [("1", 11, 40)], False)
    assert told(archive.decide(moment(11.9))) == (["01"], [("1", 3, 40)], False)
    assert told(archive.decide(lsn(29))) == (["02"], [("1", 11, 40)], False)
    assert told(archive.decide(lsn(31))) == (["03"], [("1", 29, 40)], False)
    assert archive.decide(moment(20)).replayed == 20 - 11
    assert archive.decide(lsn(21)).replayed == 21 - 11


def test_a_backup_whose_recovery_point_is_later_than_its_hosts_clock_says_is_not_taken_for_earlier() -> None:
    slow = evolve(taken(2, 20), ended_at=at(5))
    slow = evolve(slow, recovery_point=evolve(slow.recovery_point, time=at(20)))
    archive = held(view(PLAIN), taken(1, 4), slow)
    assert told(archive.decide(moment(10)))[0] == ["01"]
    assert told(archive.decide(moment(20)))[0] == ["02"]


def test_a_backup_taken_by_a_host_whose_clock_is_behind_the_servers_is_not_taken_for_earlier() -> None:
    taken_at = taken(2, 10)
    server_time = (taken_at.started_at + timedelta(minutes=5)).isoformat().replace("+00:00", "Z")
    archive = held(view(PLAIN), taken(1, 4), evolve(taken_at, details={**taken_at.details, "server_time": server_time}))
    assert told(archive.decide(moment(14.9)))[0] == ["01"], "by the server's clock it ended in minute 15"
    assert told(archive.decide(moment(15)))[0] == ["02"]


def test_a_target_at_the_end_of_the_log_means_all_of_it() -> None:
    log = {"1": [*entries(0, 4, 8), entry(8, 12, latest=10)]}
    archive = held(view(log), taken(1, 4))
    assert not archive.decide(moment(9)).to_the_end
    assert archive.decide(moment(10)).to_the_end
    assert archive.decide(moment(12)).to_the_end
    assert archive.decide(lsn(12)).to_the_end
    assert not archive.decide(lsn(11)).to_the_end


def test_what_a_backup_restores_to_by_itself_needs_no_log() -> None:
    assert told(held(view({"1": []}), taken(1, 4)).decide(lsn(4))) == (["01"], [], True)
    assert told(held(view({"1": []}), taken(1, 4)).decide(LATEST)) == (["01"], [], True)


def test_the_log_of_a_backup_that_it_does_not_reach_back_to_comes_with_the_backup() -> None:
    archive = held(view({"1": entries(12, 16, 20)}), evolve(taken(1, 14), begins=place(9)))
    assert told(archive.decide(LATEST)) == (["01"], [("1", 12, 20)], True)


def test_a_backup_before_the_log_begins_does_not_lead_into_it() -> None:
    archive = held(view({"1": entries(12, 16, 20)}), taken(1, 10))
    assert "goes on after a hole that no backup bridges: 0/A to 0/C on 1 (2 B" in refused(archive, LATEST)
    assert "RecoveryTarget.backup('" + name(1) in refused(archive, LATEST)
    assert "0/A to 0/C on 1" in refused(archive, lsn(15))
    assert "0/A to 0/C on 1" in refused(archive, moment(15))


def test_before_the_earliest_backup_there_is_nothing() -> None:
    archive = held(view(PLAIN), taken(1, 4), taken(2, 12))
    for target in (moment(3.9), lsn(3)):
        said = refused(archive, target)
        assert f"lies before the earliest backup, base {name(1)}, which ended at 2026-11-21 12:04:00 UTC" in said


def test_beyond_what_is_archived_it_is_said_until_when_it_is_complete() -> None:
    archive = held(view(PLAIN), taken(1, 4))
    assert "its log is complete until 2026-11-21 12:40:00 UTC, 0/28 on 1 (wait until" in refused(archive, moment(41))
    assert "lies beyond what the archive holds: its log ends at 0/28 on 1" in refused(archive, lsn(41))


def test_between_two_backups_without_a_log_the_one_before_is_named() -> None:
    archive = held(view({"1": []}), taken(1, 4), taken(2, 12))
    assert f"lies after base {name(1)}" in refused(archive, moment(8))
    assert f"RecoveryTarget.backup({name(1)!r})" in refused(archive, moment(8))
    assert "0/4 on 1, no log" in refused(archive, lsn(8))


HOLED = {"1": [*entries(0, 4, 8, 12), *entries(20, 24, 28)]}


@pytest.mark.parametrize("gaps", [[], [gap(12, 20)]], ids=["found", "acknowledged"])
def test_nothing_in_a_hole_or_across_it_is_recovered(gaps: list[Stretch]) -> None:
    archive = held(view(HOLED, gaps=[gap(12, 20)] if gaps else []), taken(1, 4))
    interval = "0/C to 0/14 on 1 (8 B, written after 2026-11-21 12:12:00 UTC and before 2026-11-21 12:24:00 UTC"
    for target in (moment(13), moment(25), lsn(13), lsn(25), LATEST):
        said = refused(archive, target)
        assert interval in said
        assert ("acknowledged as lost: the slot was lost" in said) == bool(gaps)
    assert told(archive.decide(moment(12)))[1] == [("1", 3, 12)]
    assert told(archive.decide(lsn(12))) == (["01"], [("1", 3, 12)], True)


def test_a_backup_behind_a_hole_leads_on_from_there() -> None:
    archive = held(view(HOLED), taken(1, 4), taken(2, 22))
    assert told(archive.decide(LATEST)) == (["02"], [("1", 21, 28)], True)
    assert told(archive.decide(moment(25)))[0] == ["02"]
    assert f"the next backup after it, base {name(2)}" in refused(archive, moment(15))
    assert told(archive.decide(moment(12)))[0] == ["01"]


def test_a_backup_in_a_hole_is_restored_alone_only_if_asked_for() -> None:
    archive = held(view(HOLED), taken(1, 4), taken(2, 15))
    assert f"RecoveryTarget.backup({name(2)!r})" in refused(archive, LATEST)
    assert told(archive.decide(lsn(15))) == (["02"], [], True)


def test_a_backup_newer_than_the_log_is_the_latest_and_that_is_said() -> None:
    course = held(view({"1": entries(0, 4, 8)}), taken(1, 4), taken(2, 12)).decide(LATEST)
    assert told(course) == (["02"], [], True)
    assert [(each.severity, each.text) for each in course.findings] == [
        ("note", "its log ends before the newest backup, which is restored alone")
    ]


def test_an_incremental_backup_brings_all_that_it_builds_on() -> None:
    known = [taken(1, 4), taken(2, 12, parent=1), taken(3, 20, parent=2), taken(4, 24, parent=2)]
    course = held(view(PLAIN), *known).decide(moment(22))
    assert told(course) == (["01", "02", "03"], [("1", 19, 40)], False)


def test_an_incremental_backup_without_its_parent_is_not_used_and_that_is_said() -> None:
    course = held(view(PLAIN), taken(1, 4), taken(3, 20, parent=2)).decide(LATEST)
    assert told(course)[0] == ["01"]
    assert [(each.severity, each.subject) for each in course.findings] == [("warning", name(3))]
    assert f"builds on {name(2)}, which the archive does not hold" in course.findings[0].text
    with pytest.raises(NotRecoverable, match="cannot be the base: not usable"):
        held(view(PLAIN), taken(1, 4), taken(3, 20, parent=2)).decide(lsn(30, base=3))


def test_a_base_that_is_named_is_taken_or_refused() -> None:
    archive = held(view(PLAIN), taken(1, 4), taken(2, 12))
    assert told(archive.decide(lsn(20, base=1))) == (["01"], [("1", 3, 40)], False)
    assert f"cannot be reached from backup {name(2)}" in refused(archive, lsn(8, base=2))
    with pytest.raises(NoBackup, match=f"there is no backup {name(9)}"):
        archive.decide(lsn(8, base=9))


# Timeline 2 left timeline 1 at 18, at minute 30; timeline 1 was written on until minute 24.
FORKED = {"1": entries(*range(0, 28, 4)), "2": entries(*range(16, 44, 4), branch="2", later=12)}
FORK = fork("2", 18)


def test_the_latest_is_on_the_branch_that_moved_last_and_the_other_is_named() -> None:
    course = held(view(FORKED, FORK), taken(1, 4)).decide(LATEST)
    assert told(course) == (["01"], [("1", 3, 18), ("2", 18, 40)], True)
    (finding,) = course.findings
    assert finding.severity == "warning"
    assert "timeline 1 has been written until 2026-11-21 12:24:00 UTC, 6 B after 0/12 on 1" in finding.text
    named = held(view(FORKED, FORK), taken(1, 4)).decide(RecoveryTarget.latest(timeline="1"))
    assert told(named) == (["01"], [("1", 3, 24)], True)
    assert named.findings == ()


def test_a_parent_that_ended_where_it_was_left_is_no_branch_of_its_own() -> None:
    ended = {**FORKED, "1": [*entries(0, 4, 8, 12, 16), entry(16, 18)]}
    archive = held(view(ended, FORK), taken(1, 4))
    assert archive.leaves() == ["2"]
    assert told(archive.decide(LATEST))[1] == [("1", 3, 18), ("2", 18, 40)]
    assert archive.decide(LATEST).findings == ()


def test_a_moment_on_two_timelines_has_to_say_which() -> None:
    archive = held(view(FORKED, FORK), taken(1, 4))
    for target in (moment(20), lsn(20)):
        said = refused(archive, target)
        assert "exists on timelines 1 and 2 (say which one: timeline='1' or timeline='2')" in said
    assert told(archive.decide(moment(20, timeline="1")))[1] == [("1", 3, 24)]
    assert told(archive.decide(moment(20, timeline="2")))[1] == [("1", 3, 18), ("2", 18, 40)]
    assert told(archive.decide(lsn(20, timeline="2")))[1] == [("1", 3, 18), ("2", 18, 40)]


def test_a_moment_before_the_fork_is_the_same_on_both_timelines() -> None:
    archive = held(view(FORKED, FORK), taken(1, 4))
    for target in (moment(16), lsn(18), moment(16, timeline="2")):
        course = archive.decide(target)
        assert told(course)[1] == [("1", 3, 24)]
        assert course.findings == ()


def test_a_moment_that_only_one_timeline_has_is_found_there() -> None:
    course = held(view(FORKED, FORK), taken(1, 4)).decide(moment(40))
    assert told(course)[1] == [("1", 3, 18), ("2", 18, 40)]
    assert [each.severity for each in course.findings] == ["note"]
    assert told(held(view(FORKED, FORK), taken(1, 4)).decide(lsn(30)))[1][-1] == ("2", 18, 40)


def test_a_backup_of_another_branch_is_no_base() -> None:
    archive = held(view(FORKED, FORK), taken(1, 4), taken(2, 22), taken(3, 30, "2", ended=42))
    assert told(archive.decide(LATEST))[0] == ["03"]
    assert told(archive.decide(moment(41))) == (["01"], [("1", 3, 18), ("2", 18, 40)], False)
    assert told(archive.decide(RecoveryTarget.latest(timeline="1")))[0] == ["02"]
    assert "no usable backup lies on the way to timeline 2" in refused(
        held(view(FORKED, FORK), taken(2, 22)), RecoveryTarget.latest(timeline="2")
    )


def test_a_timeline_that_nobody_knows_is_refused_with_those_that_are_known() -> None:
    archive = held(view(FORKED, FORK), taken(1, 4))
    assert "there is no timeline 7 (the archive knows 1, 2)" in refused(archive, moment(20, timeline="7"))
    empty = held(view({"1": PLAIN["1"], "2": []}, FORK), taken(1, 4))
    assert "holds nothing of timeline 2" in refused(empty, RecoveryTarget.latest(timeline="2"))


def test_a_name_is_looked_for_behind_the_newest_backup_or_the_one_that_is_named() -> None:
    archive = held(view(PLAIN), taken(1, 4), taken(2, 12))
    course = archive.decide(RecoveryTarget.name("before the release"))
    assert told(course) == (["02"], [("1", 11, 40)], False)
    assert f"is looked for after base {name(2)}" in course.findings[0].text
    older = archive.decide(RecoveryTarget.name("before the release", base=name(1)))
    assert told(older)[0] == ["01"]
    assert "has no log that goes on from" in refused(held(view({"1": []}), taken(1, 4)), RecoveryTarget.name("x"))
    holed = held(view(HOLED), taken(1, 4)).decide(RecoveryTarget.name("x"))
    assert [each.severity for each in holed.findings] == ["note", "warning"]
    assert "may be on timelines 1 and 2" in refused(held(view(FORKED, FORK), taken(1, 4)), RecoveryTarget.name("x"))


def test_a_transaction_is_looked_for_behind_a_backup_that_was_taken_before_it_began() -> None:
    archive = held(view(PLAIN), taken(1, 4, xid="700"), taken(2, 12, xid="4294968000"), taken(3, 20))
    assert told(archive.decide(RecoveryTarget.xid(4294968000)))[0] == ["02"]
    assert told(archive.decide(RecoveryTarget.xid(4294967999)))[0] == ["01"]
    assert told(archive.decide(RecoveryTarget.xid(5, base=name(3))))[0] == ["03"]
    said = refused(archive, RecoveryTarget.xid(699))
    assert "no backup is known to have been taken before transaction 699 began" in said
    assert f"base={name(1)!r}" in said


def test_a_log_without_times_cannot_be_asked_for_a_moment() -> None:
    silent = {"1": [evolve(each, complete_at=None, latest=None) for each in PLAIN["1"]]}
    assert "does not say when it was written" in refused(held(view(silent), taken(1, 4)), moment(10))
    assert told(held(view(silent), taken(1, 4)).decide(lsn(10)))[1] == [("1", 3, 40)]


def test_where_the_clock_went_back_a_moment_is_left_to_the_system_to_find() -> None:
    jumped = {"1": [*entries(0, 4, 8), entry(8, 12, latest=30, complete=30), entry(12, 16, latest=16, complete=16)]}
    archive = held(view(jumped), taken(1, 4))
    course = archive.decide(moment(16))
    assert not course.to_the_end
    assert "clock went back" in course.findings[0].text
    assert "complete until 2026-11-21 12:16:00 UTC" in refused(archive, moment(20))


def test_nothing_usable_at_all_is_said() -> None:
    assert "neither a usable backup nor a log" in refused(held(view({})), LATEST)
    assert "neither a usable backup nor a log" in refused(held(view({})), moment(3))
    assert "no usable backup lies on the way to timeline 1" in refused(held(view(PLAIN)), LATEST)


def test_of_very_many_backups_each_is_looked_at_once() -> None:
    known = []
    for number in range(20_000):
        parent = None if number % 24 == 0 else name(number - 1)
        kind = "base" if parent is None else "incremental"
        known.append(evolve(taken(number, 100 * number, ended=60 * number), parent=parent, kind=kind))
    del known[240]
    held = holdings("orders", known, view({"1": entries(0, 2_000_000)}), kinds=("base", "incremental"))
    assert len(held.backups) == 20_000 - 24
    assert {each.text for each in held.broken} == {
        f"not usable: {name(241)} builds on {name(240)}, which the archive does not hold"
    }
    assert held.decide(RecoveryTarget.latest()).chain[-1].id == name(19_999)
