"""A PostgreSQL server in perfect health, as the doctor sees one, to be made ill; and what is said of it."""

from __future__ import annotations

from datetime import UTC, datetime

from attrs import evolve

from resilience.model.diagnosis import Checkup
from resilience.model.findings import Finding
from resilience.model.objectives import Objective
from resilience.postgres.client import Dsn
from resilience.postgres.health.doctor import examined
from resilience.postgres.health.vitals import Archived, Setting, Slot, Vitals
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
