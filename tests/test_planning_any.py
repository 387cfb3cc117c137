"""What is true of a course through any archive: a tree of up to three branches, some of whose segments are missing."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from resilience.model.errors import NotRecoverable
from resilience.model.log import LogEntry
from resilience.model.manifests import Manifest
from resilience.planning.course import Course
from resilience.planning.log import LogView

from .plans import at, entry, fork, held, lsn, moment, taken, view


@st.composite
def archives(draw: st.DrawFn) -> tuple[LogView, list[Manifest]]:
    first = draw(st.integers(1, 9))
    second = draw(st.integers(1, 12))
    forks = [fork("2", first * 2), fork("3", second * 2, draw(st.sampled_from(["1", "2"])))]
    forks = forks[: draw(st.integers(0, 2))]
    logs: dict[str, list[LogEntry]] = {}
    for branch, begins in (
        ("1", 0),
        *((each.name, int(each.forked_at.offset) // 4 * 4) for each in forks if each.forked_at),
    ):
        count = draw(st.integers(0, 6))
        there = draw(st.lists(st.integers(0, 9).map(bool), min_size=count, max_size=count))
        bounds = [(begins + 4 * n, begins + 4 * n + 4) for n in range(count)]
        later = 40 * (int(branch) - 1)
        logs[branch] = [
            entry(low, high, branch, complete=high + later, latest=high + later)
            for (low, high), here in zip(bounds, there, strict=True)
            if here
        ]
    known = []
    for number in range(draw(st.integers(1, 4))):
        where = draw(st.sampled_from(list(logs)))
        begun = next((int(each.forked_at.offset) for each in forks if each.name == where and each.forked_at), 0)
        offset = draw(st.integers(begun, 30))
        known.append(taken(number, offset, where, ended=offset + 40 * (int(where) - 1)))
    return view(logs, *forks), known


def has(log: LogView, branch: str, begins: int, ends: int) -> bool:
    """Tell, byte by byte, whether the log of a path has a stretch; each branch up to where the next leaves it."""
    return all(
        any(
            run.begins.offset <= byte < run.ends.offset and (leg.until is None or byte < leg.until.offset)
            for leg in log.path(branch)
            for run in log.of(leg.branch)
        )
        for byte in range(begins, ends)
    )


def reachable(log: LogView, known: Iterable[Manifest], branch: str, offset: int) -> list[Manifest]:
    """Return the backups from which a position of a branch can be reached, by looking at every byte."""
    legs = {leg.branch: leg.until for leg in log.path(branch)}
    order = {leg.branch: number for number, leg in enumerate(log.path(branch))}
    found = []
    for base in known:
        here = base.recovery_point.position
        until = legs.get(here.branch)
        if here.branch in legs and here.offset <= offset and (until is None or here.offset <= until.offset):
            found.append(base)
    return sorted(
        found,
        key=lambda each: (
            order[each.recovery_point.position.branch],
            each.recovery_point.position.offset,
            each.ended_at,
            each.id,
        ),
    )


@settings(max_examples=300, deadline=None)
@given(archives(), st.integers(0, 50), st.sampled_from([None, "1", "2", "3"]))
def test_a_position_is_reached_from_the_newest_backup_without_a_hole_or_refused(
    archive: tuple[LogView, list[Manifest]], offset: int, timeline: str | None
) -> None:
    log, known = archive
    of = held(log, *known)
    try:
        course: Course | None = of.decide(lsn(offset, timeline=timeline))
    except NotRecoverable:
        course = None
    if course is None:
        bases = reachable(log, known, timeline, offset) if timeline is not None and timeline in log.names else []
        assert not any(has(log, str(timeline), int(each.recovery_point.position.offset), offset) for each in bases[-1:])
        return
    start, branch = course.chain[-1].recovery_point.position, course.branch
    bases = reachable(log, known, branch, offset)
    if timeline is not None:
        bases = [each for each in bases if each in reachable(log, known, timeline, offset)]
    assert course.chain[-1] == bases[-1]
    assert has(log, branch, int(start.offset), offset)
    covers(log, course, offset)


@settings(max_examples=300, deadline=None)
@given(archives(), st.integers(0, 130), st.sampled_from([None, "1", "2", "3"]))
def test_for_a_moment_all_that_was_acknowledged_before_it_is_replayed(
    archive: tuple[LogView, list[Manifest]], minutes: int, timeline: str | None
) -> None:
    log, known = archive
    try:
        course = held(log, *known).decide(moment(minutes, timeline=timeline))
    except NotRecoverable:
        return
    base = course.chain[-1]
    assert base.ended_at <= at(minutes)
    (end,) = [step.complete_at for step in course.steps[-1:]]
    assert end is not None and end >= at(minutes)
    later = [each for each in reachable(log, known, course.branch, 10**6) if each.ended_at <= at(minutes)]
    assert base == later[-1]
    assert course.to_the_end == (
        not course.replay or all(step.run.latest <= at(minutes) for step in course.steps if step.run.latest)
    )
    covers(log, course, int(course.steps[-1].ends.offset))


def covers(log: LogView, course: Course, offset: int) -> None:
    """Check that what is replayed goes from the backup to the target without a hole, and is all there."""
    reached = int(course.chain[-1].recovery_point.position.offset)
    for number, stretch in enumerate(course.replay):
        if number:
            assert stretch.begins.offset == reached
        assert stretch.begins.offset <= reached <= stretch.ends.offset
        assert stretch.begins.branch == stretch.ends.branch
        assert has(log, stretch.branch, int(stretch.begins.offset), int(stretch.ends.offset))
        reached = int(stretch.ends.offset)
    assert reached >= offset
    assert 0 <= course.replayed <= sum(each.size for each in course.replay)
