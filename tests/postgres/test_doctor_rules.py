"""The doctor's rules about a PostgreSQL server, its role and the way to it: what is said, what to change. No server."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from attrs import evolve

from resilience.postgres.health.vitals import Setting
from resilience.reference import POSTGRESQL

from .patients import HEALTHY, MIB, NOW, archiving, checkup, found, only, settings, with_settings


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
