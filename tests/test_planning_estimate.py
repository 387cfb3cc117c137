"""How long a restore takes, by what was measured; and what is restored where there is no log to replay."""

from __future__ import annotations

from datetime import timedelta

import pytest
from attrs import evolve

from resilience.model.errors import NoBackup, NotRecoverable
from resilience.model.manifests import Manifest
from resilience.model.measured import RestoreMeasured
from resilience.model.targets import RecoveryTarget
from resilience.planning.course import Course
from resilience.planning.estimate import estimated
from resilience.planning.restore import alone, lineage_for

from .plans import at, moment, name, taken

MIB = 1 << 20
(PART, _) = taken(1, 4).parts


def sized(size: int, *, seconds: float = 0, number: int = 1) -> Manifest:
    """Make a backup of so many bytes that took so long."""
    manifest = taken(number, 4)
    return evolve(manifest, parts=(evolve(PART, size=size),), ended_at=manifest.started_at + timedelta(seconds=seconds))


def shown(unpack: float, replay: float = 0, *, size: int = 100 * MIB) -> RestoreMeasured:
    """Measure a restore of so many bytes, in so many seconds each."""
    return RestoreMeasured(
        id=name(1),
        target="orders",
        system="memory",
        destination="there",
        ended_at=at(1),
        unpacked=size,
        unpack_seconds=unpack,
        replayed=size if replay else 0,
        replay_seconds=replay,
    )


def test_the_arithmetic_adds_up_line_by_line() -> None:
    estimate = estimated(
        [sized(600 * MIB), sized(400 * MIB)], 500 * MIB, shown=[shown(1, 5), shown(2, 10), shown(9, 1)]
    )
    assert estimate.seconds == pytest.approx(1000 / 50 + 500 / 20)
    assert estimate.arithmetic == (
        "unpack 1000.0 MiB at 50.0 MiB/s (median of 3 restores): 20 s",
        "replay 500.0 MiB at 20.0 MiB/s (median of 3 restores): 25 s",
        "together 45 s",
    )
    assert estimate.findings == ()


def test_without_a_restore_it_is_as_fast_as_the_backup_was_and_the_replay_is_unknown() -> None:
    alone = estimated([sized(100 * MIB, seconds=10)], 0)
    assert alone.seconds == 10
    assert alone.arithmetic == (
        "unpack 100.0 MiB at 10.0 MiB/s (as fast as it was backed up; no restore has been measured): 10 s",
    )
    replaying = estimated([sized(100 * MIB, seconds=10)], 7 * MIB)
    assert replaying.seconds is None
    assert replaying.arithmetic[1:] == ("replay 7.0 MiB: unknown, no restore of this target has shown how fast",)


def test_what_was_measured_on_next_to_nothing_says_nothing() -> None:
    assert estimated([sized(100 * MIB)], 0, shown=[shown(1, size=MIB - 1), shown(0)]).seconds is None
    assert estimated([sized(100 * MIB)], 0, shown=[shown(1, size=MIB)]).seconds == 100
    assert estimated([sized(0)], 0).arithmetic == ()


@pytest.mark.parametrize(
    ("replayed", "rto", "line", "warned"),
    [
        (0, 30, "20 s is within the objective (RTO) of 30 s", False),
        (0, 15, "20 s is over the objective (RTO) of 15 s", True),
        (MIB, 30, "nobody can tell yet whether the objective (RTO) of 30 s is met", True),
        (MIB, 15, "at least 20 s is over the objective (RTO) of 15 s", True),
    ],
)
def test_the_estimate_is_compared_with_the_objective(replayed: int, rto: int, line: str, warned: bool) -> None:
    estimate = estimated([sized(1000 * MIB)], replayed, shown=[shown(2)], rto=timedelta(seconds=rto))
    assert estimate.arithmetic[-1] == line
    assert [each.text for each in estimate.findings] == [line] * warned
    assert all(each.severity == "warning" and each.hint for each in estimate.findings)


def chosen(until: RecoveryTarget, *known: Manifest) -> Course:
    return alone(until, known, target="orders", system="memory", accepts=("base", "incremental"))


def test_without_a_log_the_newest_backup_whose_chain_is_whole_is_the_latest() -> None:
    known = [taken(1, 4), taken(2, 12, parent=1), taken(4, 20, parent=3)]
    course = chosen(RecoveryTarget.latest(), *known)
    assert [each.id for each in course.chain] == [name(1), name(2)]
    assert [each.subject for each in course.findings] == [name(4)]
    assert (course.replay, course.to_the_end) == ((), True)
    with pytest.raises(NotRecoverable, match=f"builds on {name(3)}"):
        chosen(RecoveryTarget.backup(name(4)), *known)
    with pytest.raises(NotRecoverable, match=f"builds on {name(3)}"):
        chosen(RecoveryTarget.latest(), known[-1])
    assert chosen(RecoveryTarget.backup(name(1)), *known).chain == (known[0],)


def test_without_a_log_a_timeline_means_its_newest_backup() -> None:
    known = [taken(1, 4), taken(2, 12, "2")]
    assert chosen(RecoveryTarget.latest(timeline="1"), *known).chain == (known[0],)
    with pytest.raises(NotRecoverable, match="no backup lies on timeline 3"):
        chosen(RecoveryTarget.latest(timeline="3"), *known)


def test_without_a_log_nothing_but_backups_can_be_restored_and_the_nearest_are_named() -> None:
    known = [taken(1, 4), taken(2, 12)]
    for until, named in [(moment(8), (1, 2)), (moment(1), (1,)), (moment(20), (2,)), (RecoveryTarget.name("x"), (2,))]:
        with pytest.raises(NotRecoverable, match="needs a log to be replayed") as refusal:
            chosen(until, *known)
        assert [number for number in (1, 2) if name(number) in refusal.value.hint] == list(named)
    with pytest.raises(NoBackup):
        chosen(moment(8))


def test_the_lineage_is_the_targets_and_the_others_are_named() -> None:
    old, new = taken(1, 4), evolve(taken(2, 12), lineage="2")
    assert lineage_for(RecoveryTarget.latest(), [old], ["1"]) == ("1", [])
    for until, lineage in [
        (RecoveryTarget.latest(), "2"),
        (moment(20), "2"),
        (moment(8), "1"),
        (moment(1), "2"),
        (RecoveryTarget.lsn("0/1", base=old.id), "1"),
    ]:
        chosen, (finding,) = lineage_for(until, [old, new], ["1"])
        assert chosen == lineage
        assert finding.severity == "warning"
        assert f"this is {lineage}, not {'1' if lineage == '2' else '2'}" in finding.text
