"""The doctor's rules about a PostgreSQL server: what is seen, what is said of it, what to change. No server needed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from attrs import evolve

from resilience.model.diagnosis import Checkup
from resilience.model.findings import Finding
from resilience.model.objectives import Objective
from resilience.postgres.client import Dsn
from resilience.postgres.doctor import examined
from resilience.postgres.doctor_wal import program
from resilience.postgres.vitals import Archived, Setting, Slot, Vitals
from resilience.reference import POSTGRESQL

NOW = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)
MIB, GIB = 1 << 20, 1 << 30
SEGMENT = 16 * MIB
DSN = Dsn.parse("host=db.example port=5433 user=backup")

TEXTS = {
    "archive_command": "(disabled)",
    "archive_library": "",
    "archive_mode": "off",
    "data_checksums": "on",
    "fsync": "on",
    "full_page_writes": "on",
    "password_encryption": "scram-sha-256",
    "summarize_wal": "on",
    "synchronous_commit": "on",
    "synchronous_standby_names": "",
    "wal_level": "replica",
}
NUMBERS = {
    "archive_timeout": 0.0,
    "idle_replication_slot_timeout": 0.0,
    "max_replication_slots": 10.0,
    "max_slot_wal_keep_size": 64.0 * GIB,
    "max_wal_senders": 10.0,
    "max_wal_size": 1.0 * GIB,
    "wal_keep_size": 1.0 * GIB,
    "wal_segment_size": float(SEGMENT),
    "wal_sender_timeout": 60.0,
    "wal_summary_keep_time": 864000.0,
}
OURS = Slot(name="resilience_orders", active=True, active_pid=42, retained=MIB)


def settings(**changed: str | float) -> dict[str, Setting]:
    known: dict[str, str | float] = {**TEXTS, **NUMBERS, **changed}
    return {
        name: Setting(text=f"{value:.0f}", number=value) if isinstance(value, float) else Setting(text=value)
        for name, value in known.items()
    }


HEALTHY = Vitals(
    version="17.11",
    major=17,
    lineage="7400000000000000001",
    timeline=1,
    now=NOW,
    position=100 * SEGMENT + 5,
    settings=settings(),
    role="backup",
    monitor=True,
    client="10.0.0.7",
    tls="TLSv1.3",
    sslmode="verify-full",
    authenticated="scram-sha-256",
    senders=1,
    names={42: "resilience_orders"},
    slots=(OURS,),
    rate_now=1.0 * MIB,
    folder=5 * SEGMENT,
    waiting=0,
)

STANDBY = evolve(HEALTHY, standby=True, receiving=True, replayed=HEALTHY.position)


def checkup(vitals: Vitals, objective: Objective = POSTGRESQL) -> Checkup:
    return examined(vitals, objective, target="orders", dsn=DSN)


def found(vitals: Vitals, objective: Objective = POSTGRESQL) -> list[Finding]:
    seen = checkup(vitals, objective)
    return [*seen.findings, *([seen.unarchived] if seen.unarchived else [])]


def only(vitals: Vitals, objective: Objective = POSTGRESQL) -> Finding:
    (finding,) = found(vitals, objective)
    return finding


def with_settings(**changed: str | float) -> Vitals:
    return evolve(HEALTHY, settings=settings(**changed))


def archiving(archiver: Archived | None = None, *, waiting: int | None = 0, **changed: str | float) -> Vitals:
    """A server that archives by archive_command alone."""
    known: dict[str, str | float] = {"archive_mode": "on", "archive_command": "push %p", "archive_timeout": 60.0}
    archiver = archiver or Archived(archived=3, last_archived=f"{1:08X}{0:08X}{99:08X}", archived_at=NOW)
    return evolve(
        HEALTHY, settings=settings(**{**known, **changed}), archiver=archiver, waiting=waiting, slots=(), senders=0
    )


def test_a_server_as_it_should_be_has_no_findings() -> None:
    seen = checkup(HEALTHY)
    assert seen.findings == () and seen.unarchived is None
    assert {reading.standing for reading in seen.readings} == {"good"}
    assert seen.description == "PostgreSQL 17.11, primary, timeline 1"
    assert (seen.where, seen.lineage, seen.now, seen.log_rate) == ("db.example:5433", HEALTHY.lineage, NOW, 1.0 * MIB)
    assert seen.position is not None and (seen.position.branch, seen.position.offset) == ("1", HEALTHY.position)
    assert seen.only_full == "" and seen.writes


def test_so_is_one_whose_archive_command_does_its_work() -> None:
    assert found(archiving()) == []


SETTINGS = [
    (
        {"wal_level": "minimal"},
        "blocker",
        "wal_level",
        "no",
        "ALTER SYSTEM SET wal_level = 'replica';\n-- then restart",
    ),
    ({"max_wal_senders": 2.0}, "warning", "max_wal_senders", "1 are taken", "SET max_wal_senders = '6';"),
    ({"max_wal_senders": 1.0}, "blocker", "max_wal_senders", "1, of which 1", "-- then restart the server"),
    ({"max_wal_senders": 4.0}, "note", "max_wal_senders", "less than the reference's 5", "max_wal_senders = '5'"),
    ({"max_replication_slots": 1.0}, "blocker", "max_replication_slots", "1, of which 1", "-- then restart"),
    ({"max_replication_slots": 2.0}, "warning", "max_replication_slots", "2, of which 1", "-- then restart"),
    ({"wal_sender_timeout": 0.0}, "note", "wal_sender_timeout", "never notices", "SELECT pg_reload_conf();"),
    ({"fsync": "off"}, "blocker", "fsync", "destroys", "ALTER SYSTEM SET fsync = 'on';\nSELECT pg_reload_conf();"),
    ({"full_page_writes": "off"}, "warning", "full_page_writes", "torn", "SET full_page_writes = 'on'"),
    ({"data_checksums": "off"}, "warning", "data_checksums", "damaged", "pg_checksums --enable"),
    ({"synchronous_commit": "off"}, "note", "synchronous_commit", "acknowledged", "SET synchronous_commit = 'on'"),
    ({"summarize_wal": "off"}, "warning", "summarize_wal", "incremental backup every 1 h", "SET summarize_wal = 'on'"),
    (
        {"wal_summary_keep_time": 86400.0},
        "warning",
        "wal_summary_keep_time",
        "two rounds of 1 d are 2 d",
        "SET wal_summary_keep_time = '2880min'",
    ),
    ({"password_encryption": "md5"}, "warning", "password_encryption", "md5", 'ALTER ROLE "backup" PASSWORD'),
    ({"wal_keep_size": 60.0 * MIB}, "note", "wal_keep_size", "at 1.0 MiB/s for 1 min", "SET wal_keep_size = '1GB'"),
    ({"wal_keep_size": 0.0}, "note", "wal_keep_size", "0: how far a reader", "SET wal_keep_size = '1GB'"),
    (
        {"max_slot_wal_keep_size": -1.0},
        "warning",
        "max_slot_wal_keep_size",
        "at 1.0 MiB/s that is 84.4 GiB a day",
        "SET max_slot_wal_keep_size = '8GB'",
    ),
    (
        {"max_slot_wal_keep_size": 600.0 * MIB},
        "warning",
        "max_slot_wal_keep_size",
        "needs 1.0 MiB/s x 1 h + a segment = 3.5 GiB; 600.0 MiB last 10 min, then the slot is lost",
        "SET max_slot_wal_keep_size = '8GB';\nSELECT pg_reload_conf();",
    ),
    (
        {"idle_replication_slot_timeout": 600.0},
        "warning",
        "idle_replication_slot_timeout",
        "after 10 min without its reader a slot is lost; the objective allows outages of 1 h",
        "SET idle_replication_slot_timeout = '0'",
    ),
]


@pytest.mark.parametrize(("changed", "severity", "subject", "text", "hint"), SETTINGS)
def test_a_setting_that_is_wrong_is_found_with_the_line_that_mends_it(
    changed: dict[str, str | float], severity: str, subject: str, text: str, hint: str
) -> None:
    vitals = with_settings(**changed)
    finding = only(vitals)
    assert (finding.severity, finding.subject) == (severity, subject)
    assert text in finding.text and hint in finding.hint
    (reading,) = [each for each in checkup(vitals).readings if each.name == subject]
    assert reading.standing == severity


@pytest.mark.parametrize(
    ("names", "caught"),
    [
        ("*", True),
        ("FIRST 1 (*)", True),
        ("any 2 (east, resilience_orders, west)", True),
        ('1 ("Resilience_Orders")', True),
        ("ANY 1 (east, west)", False),
        ("resilience", False),
    ],
)
def test_an_archiver_is_not_to_be_taken_for_a_synchronous_standby(names: str, *, caught: bool) -> None:
    findings = found(with_settings(synchronous_standby_names=names))
    assert [finding.subject for finding in findings] == ["synchronous_standby_names"] * caught


def test_synchronous_standbys_that_are_not_there_are_told() -> None:
    vitals = evolve(with_settings(synchronous_standby_names="east"), senders=0)
    assert "every commit that waits for one hangs" in only(vitals).text


def test_a_setting_that_waits_for_a_restart_is_told() -> None:
    known = settings()
    known["wal_level"] = Setting(text="replica", pending=True)
    finding = only(evolve(HEALTHY, settings=known))
    assert (finding.subject, finding.hint) == ("wal_level", "restart the server, or take the line back")


def test_before_17_the_full_backup_and_wal_are_what_there_is() -> None:
    finding = only(evolve(HEALTHY, major=16, version="16.15"))
    assert (finding.severity, finding.subject) == ("note", "summarize_wal")
    assert "PostgreSQL 16 knows no incremental backups, 17 does" in finding.text and "up to 1 d of WAL" in finding.text
    assert found(evolve(HEALTHY, major=16), evolve(POSTGRESQL, every=timedelta(days=1))) == []


def test_a_version_nobody_knows_is_told() -> None:
    assert "PostgreSQL 19.0 is not supported" in only(evolve(HEALTHY, major=19, version="19.0")).text


ACCESS = [
    ({"replication": False}, "blocker", "role", "may not replicate", 'ALTER ROLE "backup" REPLICATION;'),
    ({"superuser": True}, "warning", "role", "is a superuser", "CREATE ROLE backup LOGIN REPLICATION"),
    ({"monitor": False, "folder": None}, "note", "role", "may not see", 'GRANT pg_monitor TO "backup";'),
    (
        {"refused": "no pg_hba.conf entry for\n replication"},
        "blocker",
        "replication",
        "refuses a replication connection: no pg_hba.conf entry for replication",
        "in pg_hba.conf: hostssl  replication  backup  10.0.0.7/32  scram-sha-256\nSELECT pg_reload_conf();",
    ),
    ({"refused": "no", "client": "fd00::7"}, "blocker", "replication", "no", "backup  fd00::7/128  scram"),
    ({"authenticated": ""}, "blocker", "authentication", "without asking who it is", "scram-sha-256 in place of trust"),
    ({"tls": None}, "warning", "tls", "not encrypted", "sslmode=verify-full"),
    ({"tls": "TLSv1.1"}, "warning", "tls", "TLSv1.1 is outdated", "ssl_min_protocol_version = 'TLSv1.2'"),
    ({"sslmode": "require"}, "warning", "tls", "does not check who answers", "sslmode=verify-full"),
    ({"skew": -72.0}, "warning", "clock", "1 min 12 s behind ours", "chrony"),
    ({"skew": 6.0}, "warning", "clock", "6 s ahead of ours", "chrony"),
]


@pytest.mark.parametrize(("changed", "severity", "subject", "text", "hint"), ACCESS)
def test_a_role_or_a_way_in_that_is_wrong_is_found(
    changed: dict[str, Any], severity: str, subject: str, text: str, hint: str
) -> None:
    vitals = evolve(HEALTHY, **changed)
    finding = only(vitals)
    assert (finding.severity, finding.subject) == (severity, subject)
    assert text in finding.text and hint in finding.hint


def test_on_the_same_machine_nothing_is_asked_of_tls() -> None:
    assert found(evolve(HEALTHY, client=None, tls=None, sslmode="prefer")) == []
    assert found(evolve(HEALTHY, client="127.0.0.1", tls=None)) == []
    assert only(evolve(HEALTHY, client=None, authenticated="")).severity == "note"
    assert "local    replication  backup  scram" in only(evolve(HEALTHY, client=None, refused="no")).hint


def test_a_slow_answer_is_no_wrong_clock() -> None:
    assert found(evolve(HEALTHY, skew=9.0, uncertain=5.0)) == []


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
