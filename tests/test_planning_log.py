"""What a log covers: runs, holes, and the ways that branches lead to one another."""

from __future__ import annotations

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from resilience.model.log import Branch, Watermark
from resilience.planning.log import Leg, Step, clock_jumps, heads_wanted, leg_of, runs, with_heads

from .plans import at, entries, entry, fork, gap, place, view


def spans(found: object) -> list[tuple[int, int]]:
    assert isinstance(found, tuple | list)
    return [(int(each.begins.offset), int(each.ends.offset)) for each in found]


def steps(found: list[Step]) -> list[tuple[str, int, int]]:
    return [(each.run.branch, int(each.stretch.begins.offset), int(each.ends.offset)) for each in found]


def test_entries_that_follow_each_other_are_one_run_and_a_missing_one_makes_two() -> None:
    assert spans(runs(entries(0, 4, 8, 12))) == [(0, 12)]
    assert spans(runs([*entries(0, 4), *entries(8, 12, 16)])) == [(0, 4), (8, 16)]
    assert spans(runs([entry(4, 6), entry(0, 4), entry(4, 5)])) == [(0, 6)]
    assert runs([]) == ()


@pytest.mark.parametrize(
    ("lost", "left"),
    [
        ((4, 8), [(0, 4), (8, 12)]),
        ((5, 7), [(0, 5), (7, 12)]),
        ((0, 12), []),
        ((0, 4), [(4, 12)]),
        ((10, 20), [(0, 10)]),
        ((12, 20), [(0, 12)]),
    ],
)
def test_what_was_acknowledged_as_lost_is_in_no_run(lost: tuple[int, int], left: list[tuple[int, int]]) -> None:
    assert spans(runs(entries(0, 4, 8, 12), [gap(*lost)])) == left
    assert spans(runs(entries(0, 4, 8, 12), [gap(*lost, branch="2")])) == [(0, 12)]


@settings(deadline=None)
@given(st.sets(st.integers(0, 30)), st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9))))
def test_runs_hold_exactly_what_the_entries_hold_and_no_gap_does(there: set[int], lost: list[tuple[int, int]]) -> None:
    gaps = [gap(begins, begins + length) for begins, length in lost]
    found = runs([entry(each, each + 1) for each in there], gaps)
    expected = there - {each for begins, length in lost for each in range(begins, begins + length)}
    assert {each for begins, ends in spans(found) for each in range(begins, ends)} == expected
    assert all(one[1] < other[0] or gaps for one, other in zip(spans(found), spans(found)[1:], strict=False))


def test_a_run_is_complete_until_what_its_last_entry_before_a_place_says() -> None:
    (run,) = runs([entry(0, 4), entry(4, 8), entry(8, 12, complete=None, latest=None)])
    assert run.complete_at() == at(8)
    assert run.complete_at(7) == at(4)
    assert run.complete_at(3) is None
    assert run.latest is None
    (cut, _) = runs(entries(0, 4, 8, 12), [gap(6, 7)])
    assert cut.complete_at() == at(4)


def test_a_branch_is_reached_over_its_parents_each_up_to_where_the_next_leaves_it() -> None:
    log = view({"1": [], "2": [], "3": []}, fork("2", 10), fork("3", 20, "2"))
    assert log.path("1") == (Leg("1"),)
    assert log.path("3") == (Leg("1", place(10)), Leg("2", place(20, "2")), Leg("3"))
    assert leg_of(log.path("3"), place(10)) == 0
    assert leg_of(log.path("3"), place(11)) is None
    assert leg_of(log.path("3"), place(99, "3")) == 2


def test_a_branch_that_was_left_before_it_began_has_its_parent_only_up_to_there() -> None:
    log = view({}, fork("2", 10), fork("3", 6, "2"))
    assert log.names == ("2", "3", "1")
    assert log.path("3") == (Leg("1", place(6)), Leg("2", place(6, "2")), Leg("3"))


def test_a_record_that_leads_back_to_itself_leads_nowhere() -> None:
    endless = view({}, fork("2", 10, "3"), fork("3", 6, "2"))
    assert [leg.branch for leg in endless.path("3")] == ["2", "3"]


def test_what_can_be_followed_goes_from_branch_to_branch_up_to_the_first_hole() -> None:
    log = view(
        {"1": entries(0, 4, 8, 12, 16), "2": [*entries(8, 12, 16, branch="2"), *entries(20, 24, branch="2")]},
        fork("2", 10),
    )
    assert steps(log.follow(log.path("2"), place(2))) == [("1", 2, 10), ("2", 10, 16)]
    assert steps(log.follow(log.path("1"), place(2))) == [("1", 2, 16)]
    assert steps(log.follow(log.path("2"), place(13, "2"))) == [("2", 13, 16)]
    assert log.follow(log.path("2"), place(12)) == []
    assert log.follow(log.path("2"), place(17, "2")) == []


def test_a_parent_whose_log_ends_early_is_continued_by_the_childs_copy_of_its_bytes() -> None:
    log = view({"1": entries(0, 4, 9), "2": entries(8, 12, branch="2")}, fork("2", 10))
    assert steps(log.follow(log.path("2"), place(2))) == [("1", 2, 9), ("2", 9, 12)]
    assert log.hole(log.path("2"), place(12, "2")) is None


def test_a_branch_that_was_left_in_its_first_segment_may_have_no_entries_of_its_own() -> None:
    log = view({"1": entries(0, 8), "2": [], "3": entries(4, 12, branch="3")}, fork("2", 6), fork("3", 7, "2"))
    assert steps(log.follow(log.path("3"), place(1))) == [("1", 1, 6), ("3", 6, 12)]


def test_a_log_that_has_been_written_just_so_far_is_followed_by_an_empty_step() -> None:
    log = view({"1": entries(0, 4, 8)})
    (step,) = log.follow(log.path("1"), place(8))
    assert (step.stretch.size, step.complete_at) == (0, at(8))


def test_a_hole_says_what_is_missing_when_it_was_written_and_why() -> None:
    log = view({"1": [*entries(0, 4, 8), *entries(12, 16)]}, gaps=[gap(8, 12)])
    hole = log.hole(log.path("1"), place(8))
    assert hole is not None
    assert (hole.begins.offset, hole.ends.offset, hole.after, hole.before) == (8, 12, at(8), at(16))
    assert str(hole) == (
        "0/8 to 0/C on 1 (4 B, written after 2026-11-21 12:08:00 UTC and before 2026-11-21 12:16:00 UTC; "
        "acknowledged as lost: the slot was lost)"
    )
    assert log.hole(log.path("1"), place(16)) is None


def test_a_hole_before_a_fork_ends_where_the_childs_copy_begins() -> None:
    log = view({"1": entries(0, 4), "2": entries(8, 12, branch="2")}, fork("2", 10))
    hole = log.hole(log.path("2"), place(4))
    assert hole is not None
    assert (hole.begins, hole.ends) == (place(4), place(8, "2"))
    assert log.hole(log.path("1"), place(4)) is None


def test_only_the_heads_of_ends_and_of_what_precedes_a_fork_are_read() -> None:
    log = view({"1": entries(*range(0, 100, 4)), "2": entries(40, 44, 48, branch="2")}, fork("2", 42))
    wanted = heads_wanted(log)
    assert [(each.branch, each.begins.offset) for each in wanted] == [
        ("1", 0), ("1", 92), ("1", 36), ("2", 40), ("2", 44),
    ]  # fmt: skip


def test_what_a_head_says_takes_the_place_of_what_the_name_said() -> None:
    unknown = [evolve(each, latest=None, complete_at=None) for each in entries(0, 4, 8)]
    log = view({"1": unknown})
    said = evolve(unknown[1], complete_at=at(8), latest=at(7), ends=evolve(place(8), text="0/00000008"))
    (run,) = with_heads(log, {unknown[1]: said}).of("1")
    assert (run.complete_at(), run.latest, run.ends.text) == (at(8), at(7), "0/00000008")
    assert log.of("1")[0].complete_at() is None


def test_of_an_idle_server_the_watermark_knows_that_the_log_is_still_complete() -> None:
    log = view({"1": entries(0, 4, 8)})
    for ends, complete, expected in [(8, 60, 60), (8, 5, 8), (4, 60, 8), (8, None, 8)]:
        mark = Watermark(begins=place(0), ends=place(ends), complete_at=None if complete is None else at(complete))
        marked = with_heads(evolve(log, facts=evolve(log.facts, watermarks=(mark,))), {})
        assert marked.of("1")[0].complete_at() == at(expected)
        assert marked.of("1")[0].latest == at(8)


def test_a_clock_that_goes_back_is_noticed() -> None:
    assert not clock_jumps(entries(0, 4, 8))
    assert clock_jumps([entry(0, 4, latest=9), entry(4, 8, latest=None), entry(8, 12, latest=5)])


def test_a_branch_that_nobody_recorded_has_no_parent() -> None:
    assert view({}).branch("7") is None
    assert view({}).path("7") == (Leg("7"),)
    assert Branch(name="7") == view({"7": []}).branch("7")
