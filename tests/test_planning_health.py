"""Whether what an archive holds keeps to an objective, with the arithmetic."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from attrs import evolve

from resilience.model.diagnosis import Checkup, Reading
from resilience.model.findings import Finding
from resilience.model.json import Offset
from resilience.model.log import Branch, Gap, LogEntry, LogFacts, Watermark
from resilience.model.manifests import Manifest, StoredPart
from resilience.model.measured import RestoreMeasured
from resilience.model.objectives import Objective
from resilience.model.positions import Position, RecoveryPoint
from resilience.planning.health import Kept, examine_archive
from resilience.planning.log import LogView, runs
from resilience.reference import POSTGRESQL

NOW = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)
LINEAGE, OTHER = "7400000000000000001", "7400000000000000002"
MIB, GIB = 1 << 20, 1 << 30
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def at(offset: int, branch: str = "1") -> Position:
    return Position(branch=branch, offset=Offset(offset), text=f"0/{offset:X}")


def manifest(
    number: int = 0,
    *,
    age: timedelta = 30 * MINUTE,
    begins: int = 100,
    parent: int | None = None,
    lineage: str = LINEAGE,
    size: int = GIB,
) -> Manifest:
    ended = NOW - age
    return Manifest(
        id=f"id{number}",
        target="orders",
        system="memory",
        kind="base" if parent is None else "incremental",
        lineage=lineage,
        parent=None if parent is None else f"id{parent}",
        started_at=ended - MINUTE,
        ended_at=ended,
        begins=at(begins),
        recovery_point=RecoveryPoint(position=at(begins + 10), time=ended),
        parts=(StoredPart(name="base.tar", size=size, frame_size=MIB, objects=()),),
    )


CHECKUP = Checkup(
    target="orders",
    system="memory",
    where="memory",
    description="Memory 1.0",
    lineage=LINEAGE,
    now=NOW,
    position=at(1000),
    log_rate=0.0,
    only_full="",
    replays=("base", "incremental"),
)
SHOWN = RestoreMeasured(
    id="r", target="orders", system="memory", destination="d", ended_at=NOW,
    unpacked=GIB, unpack_seconds=10.0, replayed=GIB, replay_seconds=20.0,
)  # fmt: skip


def log(
    *stretches: tuple[int, int],
    lost: timedelta = timedelta(seconds=4),
    gaps: tuple[Gap, ...] = (),
    branches: tuple[Branch, ...] = (Branch(name="1"),),
) -> LogView:
    """A log whose last entry on branch 1 is complete until so long ago."""
    known = [LogEntry(begins=at(begins), ends=at(ends), complete_at=NOW - lost) for begins, ends in stretches]
    marks = tuple(Watermark(begins=known[0].begins, ends=known[0].ends) for _ in known[:1])
    facts = LogFacts(lineage=LINEAGE, branches=branches, watermarks=marks, gaps=gaps)
    return LogView(facts=facts, runs={"1": runs(known, gaps)})


def kept(*manifests: Manifest, view: LogView | None = None, shown: tuple[RestoreMeasured, ...] = (SHOWN,)) -> Kept:
    logs = (view.facts,) if view is not None else ()
    return Kept(looked_at=NOW, manifests=manifests, logs=logs, view=view, shown=shown)


LOG = log((0, 900))
KEPT = kept(manifest(), view=LOG)


def found(kept: Kept, checkup: Checkup = CHECKUP, objective: Objective = POSTGRESQL) -> list[Finding]:
    return list(examine_archive(checkup, kept, objective)[1])


def only(kept: Kept, checkup: Checkup = CHECKUP, objective: Objective = POSTGRESQL) -> Finding:
    (finding,) = found(kept, checkup, objective)
    return finding


def reading(name: str, kept: Kept, checkup: Checkup = CHECKUP) -> Reading:
    (found,) = [each for each in examine_archive(checkup, kept, POSTGRESQL)[0] if each.name == name]
    return found


def test_an_archive_as_it_should_be_has_no_findings() -> None:
    readings, findings = examine_archive(CHECKUP, KEPT, POSTGRESQL)
    assert findings == ()
    assert [(each.name, each.value, each.reference, each.standing) for each in readings] == [
        ("backups", "1, newest 30 min old", "every 1 h", "good"),
        ("log", "restores to 0/384 on 1", "the server is at 0/3E8 on 1", "good"),
        ("achieved RPO", "4 s", "at most 15 min", "good"),
        ("to restore", "1.0 GiB + 800 B of log to replay", "within 1 h 15 min", "good"),
    ]


def test_an_empty_archive_brings_nothing_back() -> None:
    empty = kept()
    assert (only(empty).severity, only(empty).subject) == ("blocker", "backups")
    lost = reading("achieved RPO", empty)
    assert (lost.value, lost.standing) == ("nothing comes back", "blocker")
    assert reading("log", empty).standing == "blocker"


def test_a_log_without_a_backup_brings_nothing_back() -> None:
    alone = kept(view=LOG)
    assert (only(alone).severity, only(alone).subject) == ("blocker", "backups")
    assert reading("log", alone).value == "restores to nowhere"


def test_a_backup_is_late_when_it_is_half_as_old_again_as_its_interval() -> None:
    assert found(kept(manifest(age=90 * MINUTE), view=LOG)) == []
    late = kept(manifest(age=91 * MINUTE), view=LOG)
    assert only(late).text == "the newest backup is 1 h 31 min old, one is due every 1 h"
    assert only(late).hint == "await backup(target, archive, incremental=True)"
    assert (only(late).severity, reading("backups", late).standing) == ("warning", "warning")


def test_incremental_backups_do_not_hide_that_the_full_one_is_late() -> None:
    chain = kept(manifest(1, age=40 * HOUR), manifest(2, age=10 * MINUTE, parent=1, begins=200), view=LOG)
    assert only(chain).text == "the newest full backup is 1 d 16 h old, one is due every 1 d"
    assert reading("to restore", chain).value == "2.0 GiB + 700 B of log to replay"


def test_where_there_are_no_incremental_backups_the_full_ones_interval_counts() -> None:
    daily = kept(manifest(age=30 * HOUR), view=LOG)
    assert found(daily, evolve(CHECKUP, only_full="too old")) == []
    assert only(daily).text == "the newest backup is 1 d 6 h old, one is due every 1 h"
    late = only(kept(manifest(age=40 * HOUR), view=LOG), evolve(CHECKUP, only_full="too old"))
    assert late.hint == "await backup(target, archive)"


def test_a_chain_that_is_broken_is_found_and_what_is_older_counts() -> None:
    orphan = manifest(2, parent=7)
    told = only(kept(manifest(1), orphan, view=LOG))
    assert (told.severity, told.subject) == ("warning", "to restore")
    assert "id2 builds on id7, which the archive does not hold" in told.text
    (alone,) = [each for each in found(kept(orphan, view=LOG)) if each.severity == "blocker"]
    assert (alone.subject, alone.hint) == ("to restore", "take a full backup now")


def test_without_a_log_all_since_the_newest_backup_is_lost() -> None:
    told = Finding(severity="blocker", subject="WAL", text="none", hint="archive it")
    one = kept(manifest(age=MINUTE))
    missing = only(one, evolve(CHECKUP, unarchived=told))
    assert (missing.severity, missing.subject, missing.hint) == ("blocker", "log", "archive it")
    assert "since the newest backup, 1 min ago, would be lost" in missing.text
    assert found(one, objective=Objective(rpo=DAY, rto=DAY, every=DAY)) == []


@pytest.mark.parametrize(("lost", "severity"), [(7, None), (8, "warning"), (15, "warning"), (16, "blocker")])
def test_the_achieved_rpo_is_reckoned_from_what_is_durable(lost: int, severity: str | None) -> None:
    findings = found(kept(manifest(), view=log((0, 900), lost=lost * MINUTE)))
    assert [finding.severity for finding in findings] == ([severity] if severity else [])
    if lost == 16:
        assert findings[0].text == "03:00:00 now - 02:44:00 durable = 16 min > 15 min, 100 B behind"


def test_a_watermark_that_only_says_that_time_has_passed_counts() -> None:
    old = log((0, 900), lost=DAY)
    mark = Watermark(begins=at(0), ends=at(900), complete_at=NOW - MINUTE)
    fresh = evolve(old, facts=evolve(old.facts, watermarks=(mark,)))
    assert reading("achieved RPO", kept(manifest(), view=fresh)).value == "1 min"


def test_who_has_written_nothing_since_loses_nothing() -> None:
    idle = kept(manifest(), view=log((0, 1000), lost=DAY))
    assert found(idle) == [] and reading("achieved RPO", idle).value == "0 s"
    replica = evolve(CHECKUP, writes=False)  # it cannot know what the primary has written since
    assert only(idle, replica).subject == "achieved RPO"


def test_a_backup_reaches_further_than_a_log_that_stopped_before_it() -> None:
    stopped = kept(manifest(age=5 * MINUTE), view=log((0, 50), lost=DAY))
    assert reading("achieved RPO", stopped).value == "5 min"
    assert reading("log", stopped).value == "restores to 0/6E on 1"


def test_a_log_that_goes_on_after_a_hole_that_no_backup_bridges_is_found() -> None:
    for view in (log((0, 900), (950, 980)), log((500, 900))):
        (hole,) = [each for each in found(kept(manifest(), view=view)) if each.severity == "blocker"]
        assert (hole.subject, hole.hint) == ("to restore", "take a full backup now")
        assert "goes on after a hole that no backup bridges" in hole.text
    assert found(kept(manifest(1), manifest(2, begins=600), view=log((0, 400), (500, 900)))) == []


def test_a_gap_that_was_acknowledged_stays_told() -> None:
    gap = Gap(begins=at(300), ends=at(400), reason="slot lost", noted_at=NOW)
    view = log((0, 300), (400, 900), gaps=(gap,))
    told = only(kept(manifest(1), manifest(2, begins=450), view=view))
    assert told.severity == "note" and "(slot lost): no moment in it can be restored" in told.text
    assert {each.severity for each in found(kept(manifest(1), view=view))} == {"note", "blocker"}


def test_a_branch_that_nobody_archives_is_found() -> None:
    told = found(KEPT, evolve(CHECKUP, position=at(1000, "2")))[0]
    assert told.severity == "blocker"
    assert told.text == "the server is on timeline 2, the log has 1: nobody archives it any more"


def test_two_histories_under_one_name_are_told() -> None:
    other = manifest(1, lineage=OTHER)
    older = only(kept(other, manifest(2), view=LOG))
    assert (older.severity, older.subject) == ("note", "lineage")
    newer = only(kept(manifest(2), other, view=LOG))
    assert newer.severity == "warning" and "another server writes under this name" in newer.text
    foreign = evolve(kept(other), logs=(LogFacts(lineage=OTHER),))
    assert [(each.severity, each.subject) for each in found(foreign)] == [
        ("blocker", "lineage"),
        ("blocker", "backups"),
    ]


def test_the_rto_is_reckoned_from_what_restores_have_shown() -> None:
    big = only(kept(manifest(size=600 * GIB), view=LOG))
    assert (big.severity, big.subject) == ("warning", "to restore")
    assert "unpack 600.0 GiB at 102.4 MiB/s" in big.text
    assert "1 h 40 min is over the objective (RTO) of 1 h 15 min" in big.text


def test_just_before_the_next_backup_there_is_most_to_replay() -> None:
    busy = only(KEPT, evolve(CHECKUP, log_rate=100.0 * MIB))
    assert busy.severity == "warning" and "replay 351.6 GiB at 51.2 MiB/s" in busy.text
    assert found(KEPT, evolve(CHECKUP, log_rate=10.0 * MIB)) == []


def test_what_no_restore_has_shown_is_good_to_know() -> None:
    unshown = only(kept(manifest(), view=LOG, shown=()))
    assert unshown.severity == "note" and "nobody can tell yet whether the objective (RTO)" in unshown.text
    assert unshown.hint == "a restore into a scratch server measures it"
