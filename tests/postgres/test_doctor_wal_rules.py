"""The doctor's rules about WAL: how it leaves a server, what keeps it, what it piles up. No server needed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from attrs import evolve

from resilience.model.objectives import Objective
from resilience.postgres.health.vitals import Archived, Slot
from resilience.postgres.health.wal import program

from .patients import GIB, HEALTHY, MIB, NOW, OURS, STANDBY, archiving, checkup, found, only, with_settings

SLOTS = [
    ({"active": False}, "warning", "the archiver is not there; it keeps 1.0 MiB of WAL, and more (84.4 GiB a day)"),
    ({"active": False, "safe": 600 * MIB}, "warning", "it is lost in about 10 min at 1.0 MiB/s"),
    ({"active": False, "inactive_since": NOW - timedelta(hours=2)}, "warning", "nobody reads from it for 2 h"),
    ({"active": False, "retained": None}, "note", "keeps no WAL yet"),
    ({"status": "lost", "active": False}, "blocker", "the archive gets a gap"),
    ({"status": "unreserved"}, "blocker", "about to be lost at the next checkpoint"),
    ({"retained": 33 * GIB}, "warning", "its reader is 33.0 GiB of WAL behind"),
]


@pytest.mark.parametrize(("changed", "severity", "text"), SLOTS)
def test_a_slot_that_keeps_wal_for_nobody_is_found(changed: dict[str, Any], severity: str, text: str) -> None:
    other = Slot(name="standby", active=True, retained=0)
    slots = (evolve(OURS, **changed), other)
    finding = checkup(evolve(HEALTHY, slots=slots)).findings[0]
    assert (finding.severity, finding.subject) == (severity, "slot resilience_orders")
    assert text in finding.text and finding.hint


def test_a_slot_of_somebody_else_is_theirs_to_drop() -> None:
    gone = Slot(name="gone", retained=GIB, active=False)
    finding = only(evolve(HEALTHY, slots=(OURS, gone)))
    assert (finding.severity, finding.subject) == ("warning", "slot gone")
    assert finding.hint.endswith("SELECT pg_drop_replication_slot('gone');")
    lost = only(evolve(HEALTHY, slots=(OURS, evolve(gone, status="lost"))))
    assert (lost.severity, lost.hint) == ("warning", "SELECT pg_drop_replication_slot('gone');")


def test_slots_of_running_backups_and_synchronized_ones_are_nobodys_fault() -> None:
    cdc = Slot(name="c", physical=False, active=True, retained=GIB)  # a subscriber decides itself how far it is
    slots = (OURS, Slot(name="a", temporary=True), Slot(name="b", synced=True, retained=GIB), cdc)
    assert found(evolve(HEALTHY, slots=slots)) == []


def test_without_anybody_who_takes_wal_away_the_loss_is_told_with_its_arithmetic() -> None:
    finding = only(evolve(HEALTHY, slots=(), senders=0))
    assert (finding.severity, finding.subject) == ("blocker", "WAL")
    assert finding.text == (
        "none is archived: a disaster loses everything since the last backup, up to 1 h; the objective allows 15 min"
    )
    assert 'WalArchiver("orders"' in finding.hint


def test_a_slot_that_somebody_reads_may_be_an_archivers() -> None:
    standby = Slot(name="east", active=True, active_pid=43, retained=0)
    finding = only(evolve(HEALTHY, slots=(standby,), names=None))
    assert finding.severity == "warning" and "slot east is being read, by whom cannot be told" in finding.text
    assert found(evolve(HEALTHY, slots=(standby,), names={43: "resilience_orders"})) == []


def test_where_backups_alone_keep_to_the_rpo_nobody_has_to_archive() -> None:
    daily = Objective(rpo=timedelta(days=1), rto=timedelta(hours=4), every=timedelta(days=1))
    assert found(evolve(HEALTHY, slots=()), daily) == []
    hourly = Objective(rpo=timedelta(minutes=30), rto=timedelta(hours=4), every=timedelta(hours=1))
    assert only(evolve(HEALTHY, slots=()), hourly).subject == "WAL"


ARCHIVING = [
    ({"archive_library": "basic_archive"}, "blocker", "archive_library", "the server then archives nothing"),
    ({"archive_timeout": 900.0}, "warning", "archive_timeout", "900 s + the upload (1 s at the least) = 901 s > 900 s"),
    ({"archive_timeout": 0.0}, "warning", "archive_timeout", "at 1.0 MiB/s a segment fills in 16 s"),
]


@pytest.mark.parametrize(("changed", "severity", "subject", "text"), ARCHIVING)
def test_an_archive_command_that_cannot_do_its_work_is_found(
    changed: dict[str, Any], severity: str, subject: str, text: str
) -> None:
    finding = only(archiving(**changed))
    assert (finding.severity, finding.subject) == (severity, subject)
    assert text in finding.text and "ALTER SYSTEM SET" in finding.hint


def test_an_archive_command_that_is_empty_keeps_all_wal() -> None:
    empty, unarchived = found(archiving(archive_command=""))
    assert (empty.severity, empty.subject) == ("blocker", "archive_command")
    assert "until the disk is full" in empty.text and "archive_mode = 'off'" in empty.hint
    assert unarchived.subject == "WAL"


def test_a_timeout_is_proposed_that_leaves_time_for_the_upload() -> None:
    assert "ALTER SYSTEM SET archive_timeout = '300s'" in only(archiving(archive_timeout=900.0)).hint


def test_streaming_does_not_wait_for_a_timeout() -> None:
    assert found(evolve(archiving(archive_timeout=900.0), slots=(OURS,), senders=1)) == []


@pytest.mark.parametrize("command", ["true", "/bin/true", "/usr/bin/true %p", " : ", "exit 0", "cd .", "REM", "true;"])
def test_a_command_that_only_claims_to_archive_is_found(command: str) -> None:
    wrong = {finding.subject: finding.severity for finding in found(archiving(archive_command=command))}
    assert wrong["archive_command"] == "warning" and wrong["WAL"] == "blocker"


@pytest.mark.parametrize("command", ["true && push %p", "truth %p", "cp %p /archive/%f", ": ${x:=1}; push %p"])
def test_a_command_that_does_more_is_believed(command: str) -> None:
    assert found(archiving(archive_command=command)) == []


def test_a_command_is_named_but_never_shown() -> None:
    vitals = archiving(archive_command="TOKEN=hunter2 '/opt/bin/push' --key=hunter2 %p")
    assert program(vitals) == "push" and "hunter2" not in str(checkup(vitals))


def test_an_archive_command_that_fails_is_told_with_since_when() -> None:
    failing = Archived(
        archived=3,
        last_archived="000000010000000000000003",
        archived_at=NOW - timedelta(minutes=20),
        failed=7,
        last_failed="000000010000000000000004",
        failed_at=NOW - timedelta(seconds=30),
    )
    finding = only(archiving(failing))
    assert (finding.severity, finding.subject) == ("blocker", "archiving")
    assert "7 times, last with 000000010000000000000004 30 s ago; nothing for 20 min was archived" in finding.text
    again = evolve(failing, archived_at=NOW)
    assert found(archiving(again)) == []


@pytest.mark.parametrize(
    ("waiting", "last", "behind"),
    [
        (4, "000000010000000000000001", "4 segments behind (64.0 MiB)"),
        (None, "00000001000000000000005A", "9 segments behind (144.0 MiB)"),
        (None, "000000010000000000000063", None),
        (None, "00000002.history", None),
        (None, None, None),
        (3, "000000010000000000000001", None),
    ],
)
def test_an_archive_command_that_falls_behind_is_told(
    waiting: int | None, last: str | None, behind: str | None
) -> None:
    archived = Archived(archived=1, last_archived=last, archived_at=NOW)
    findings = found(archiving(archived, waiting=waiting))
    assert [behind in finding.text for finding in findings if behind] == [True] * (behind is not None)
    assert len(findings) == (behind is not None)


def test_a_standby_is_not_asked_to_archive() -> None:
    standby = evolve(STANDBY, slots=(), senders=0)
    finding = only(standby)
    assert (finding.severity, finding.subject) == ("note", "WAL")
    assert checkup(standby).description == "PostgreSQL 17.11, standby, timeline 1"
    on = evolve(archiving(), standby=True, receiving=True)
    assert only(on).subject == "WAL"
    assert found(evolve(archiving(archive_mode="always"), standby=True, receiving=True)) == []


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"receiving": False}, "not connected to its primary"),
        ({"paused": True}, "its replay is paused"),
        ({"position": HEALTHY.position + 2 * GIB}, "2.0 GiB of WAL that it has not replayed"),
    ],
)
def test_a_standby_that_is_not_near_its_primary_is_told(changed: dict[str, Any], text: str) -> None:
    assert found(STANDBY) == []
    finding = only(evolve(STANDBY, **changed))
    assert (finding.severity, finding.subject) == ("warning", "standby") and text in finding.text and finding.hint


def test_a_server_that_writes_nothing_is_no_division_by_zero() -> None:
    idle = evolve(with_settings(max_slot_wal_keep_size=8.0 * MIB, wal_keep_size=0.0), rate_now=0.0)
    assert {finding.subject for finding in found(idle)} == {"max_slot_wal_keep_size", "wal_keep_size"}
    timeless = evolve(archiving(archive_timeout=0.0), rate_now=0.0)
    assert "no WAL is written now" in only(timeless).text


def test_the_higher_of_both_rates_is_reckoned_with() -> None:
    assert evolve(HEALTHY, rate_average=2.0 * MIB).rate == 2 * MIB
    assert evolve(HEALTHY, rate_average=0.5 * MIB).rate == MIB


def test_the_loss_is_as_long_as_the_backups_that_there_can_be_are_apart() -> None:
    before = evolve(HEALTHY, major=16, slots=(), senders=0)
    (told,) = [finding for finding in found(before) if finding.subject == "WAL"]
    assert "everything since the last backup, up to 1 d; the objective allows 15 min" in told.text
