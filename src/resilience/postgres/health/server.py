"""The doctor's rules about a PostgreSQL server, its role and the way to it. Pure: vitals in, findings out."""

from __future__ import annotations

from collections.abc import Iterator

from resilience.model.findings import Finding, blocker
from resilience.model.objectives import Objective
from resilience.model.show import as_span
from resilience.postgres.wal.start import names_standby
from resilience.reference import POSTGRESQL_SETTINGS

from .vitals import Vitals

BACKUP_SENDERS = 2
"""A running base backup needs two: one for the files, one for the WAL they need."""
SKEW_SECONDS = 5.0
OLDEST_TLS = ("TLSv1.2", "TLSv1.3")
_VERIFIES = ("verify-full", "verify-ca")


def server_findings(vitals: Vitals, objective: Objective, *, archiver: str) -> Iterator[Finding]:
    """Find out what of the server's configuration stands in the way; `archiver` is an archiver's application_name."""
    yield from _connections(vitals)
    yield from _safety(vitals)
    yield from _synchronous(vitals, archiver)
    yield from _summaries(vitals, objective)
    yield from _role(vitals)
    yield from _access(vitals)
    yield from _clock(vitals)
    for name, setting in sorted(vitals.settings.items()):
        if setting.pending:
            yield Finding(
                severity="warning",
                subject=name,
                text=f"it is {setting.text or 'empty'}, but the configuration file says otherwise since the last start",
                hint="restart the server, or take the line back",
            )


def only_full(vitals: Vitals) -> str:
    """Say why the server gives no incremental backup; empty: it does."""
    if vitals.major < 17:
        return f"PostgreSQL {vitals.major} knows no incremental backups, 17 does"
    return "" if vitals.text("summarize_wal") == "on" else "summarize_wal is off"


def changed(name: str, value: str, *, restart: bool = False) -> str:
    """Return the SQL that changes a setting."""
    then = "-- then restart the server" if restart else "SELECT pg_reload_conf();"
    return f"ALTER SYSTEM SET {name} = '{value}';\n{then}"


def _connections(vitals: Vitals) -> Iterator[Finding]:
    """Whether there is room for an archiver and a backup (20.6.1)."""
    if vitals.text("wal_level") == "minimal":
        yield blocker(
            "wal_level",
            "minimal: neither a physical backup nor WAL archiving is possible",
            changed("wal_level", "replica", restart=True),
        )
    reference = int(POSTGRESQL_SETTINGS["max_wal_senders"].value)
    senders = int(vitals.number("max_wal_senders"))
    slots = int(vitals.number("max_replication_slots"))
    for name, total, used in (
        ("max_wal_senders", senders, vitals.senders),
        ("max_replication_slots", slots, len(vitals.slots)),
    ):
        if total - used < BACKUP_SENDERS:
            yield Finding(
                severity="warning" if total > used else "blocker",
                subject=name,
                text=f"{total}, of which {used} are taken: a base backup needs {BACKUP_SENDERS}, and an archiver one",
                hint=changed(name, str(max(reference, used + reference)), restart=True),
            )
    if senders - vitals.senders >= BACKUP_SENDERS and senders < reference:
        yield Finding(
            severity="note",
            subject="max_wal_senders",
            text=f"{senders} is less than the reference's {reference}: {POSTGRESQL_SETTINGS['max_wal_senders'].why}",
            hint=changed("max_wal_senders", str(reference), restart=True),
        )
    if vitals.number("wal_sender_timeout") == 0:
        yield Finding(
            severity="note",
            subject="wal_sender_timeout",
            text="0: the server never notices that a reader of WAL is gone, and keeps its slot taken",
            hint=changed("wal_sender_timeout", "60s"),
        )


def _safety(vitals: Vitals) -> Iterator[Finding]:
    """Whether what is written survives a crash and damage is noticed (20.5.1)."""
    if vitals.text("fsync") == "off":
        yield blocker("fsync", "off: a crash of the machine destroys the whole cluster", changed("fsync", "on"))
    if vitals.text("full_page_writes") == "off":
        yield Finding(
            severity="warning",
            subject="full_page_writes",
            text="off: a crash may leave torn pages that WAL cannot repair, and no standby can be backed up",
            hint=changed("full_page_writes", "on"),
        )
    if vitals.text("data_checksums") == "off":
        yield Finding(
            severity="warning",
            subject="data_checksums",
            text="off: damaged pages are backed up without anybody noticing",
            hint='pg_checksums --enable -D "$PGDATA"   # while the server is stopped',
        )
    if vitals.text("synchronous_commit") == "off":
        yield Finding(
            severity="note",
            subject="synchronous_commit",
            text="off: a crash loses the last transactions (up to three times wal_writer_delay) though acknowledged",
            hint=changed("synchronous_commit", "on"),
        )


def _synchronous(vitals: Vitals, archiver: str) -> Iterator[Finding]:
    """Whether an archiver would be taken for a synchronous standby (20.6.2)."""
    names = vitals.text("synchronous_standby_names")
    if names_standby(names, archiver):
        yield blocker(
            "synchronous_standby_names",
            f"{names} takes an archiver for a standby, so commits would wait for the archive: WalArchiver refuses "
            "to start",
            "ALTER SYSTEM SET synchronous_standby_names = '…';  -- the standbys that are meant, by their names\n"
            "SELECT pg_reload_conf();",
        )
    elif names and vitals.senders == 0 and not vitals.standby:
        yield Finding(
            severity="warning",
            subject="synchronous_standby_names",
            text=f"{names}: no standby is connected, so every commit that waits for one hangs",
            hint="start a standby, or, knowing what it means: "
            + changed("synchronous_standby_names", "").split("\n")[0],
        )


def _summaries(vitals: Vitals, objective: Objective) -> Iterator[Finding]:
    """Whether incremental backups are possible as often as they are wanted (20.5.7)."""
    if not objective.incremental:
        return
    every, full = as_span(objective.every), as_span(objective.full_every)
    if vitals.major < 17:
        yield Finding(
            severity="note",
            subject="summarize_wal",
            text=f"{only_full(vitals)}: an incremental every {every} cannot be had; with continuous WAL the full one "
            f"every {full} keeps to the RPO, and the recovery has to replay up to {full} of WAL",
        )
    elif vitals.text("summarize_wal") == "off":
        yield Finding(
            severity="warning",
            subject="summarize_wal",
            text=f"off: an incremental backup every {every} is wanted, and none is possible",
            hint=changed("summarize_wal", "on"),
        )
    elif (kept := vitals.number("wal_summary_keep_time")) > 0 and objective.full_every is not None:
        needed = 2 * objective.full_every.total_seconds()
        if kept < needed:
            yield Finding(
                severity="warning",
                subject="wal_summary_keep_time",
                text=f"{as_span(kept)}: after a pause longer than that every backup is a full one; two rounds of "
                f"{full} are {as_span(needed)}",
                hint=changed("wal_summary_keep_time", f"{int(needed // 60)}min"),
            )


def _role(vitals: Vitals) -> Iterator[Finding]:
    """Whether the role may what it must, and no more."""
    role = '"' + vitals.role.replace('"', '""') + '"'
    if not (vitals.replication or vitals.superuser):
        yield blocker(
            "role",
            f"{vitals.role} may not replicate: it can take no backup and read no WAL",
            f"ALTER ROLE {role} REPLICATION;",
        )
    if vitals.superuser:
        yield Finding(
            severity="warning",
            subject="role",
            text=f"{vitals.role} is a superuser: whoever steals its password can destroy what is to be protected",
            hint="CREATE ROLE backup LOGIN REPLICATION PASSWORD '…';\nGRANT pg_monitor TO backup;",
        )
    if not vitals.monitor:
        yield Finding(
            severity="note",
            subject="role",
            text=f"{vitals.role} may not see how large pg_wal is, how many segments wait for archive_command, "
            "nor who reads WAL",
            hint=f"GRANT pg_monitor TO {role};",
        )
    if vitals.text("password_encryption") == "md5":
        yield Finding(
            severity="warning",
            subject="password_encryption",
            text="md5 is broken, and future versions of PostgreSQL drop it",
            hint=changed("password_encryption", "scram-sha-256") + f"\nALTER ROLE {role} PASSWORD '…';",
        )


def _access(vitals: Vitals) -> Iterator[Finding]:
    """Whether the connection is let in, and safe (21.1, 34.19)."""
    if vitals.refused and (vitals.replication or vitals.superuser) and vitals.number("max_wal_senders"):
        address = f"{vitals.client}/{128 if ':' in vitals.client else 32}  " if vitals.client else ""
        kind = "local  " if vitals.client is None else ("hostssl" if vitals.tls else "host   ")
        yield blocker(
            "replication",
            f"the server refuses a replication connection: {' '.join(vitals.refused.split())}",
            f"in pg_hba.conf: {kind}  replication  {vitals.role}  {address}scram-sha-256\nSELECT pg_reload_conf();",
        )
    if vitals.authenticated == "":
        yield Finding(
            severity="note" if vitals.local else "blocker",
            subject="authentication",
            text=f"the server lets {vitals.role} in without asking who it is (trust)",
            hint="in pg_hba.conf: scram-sha-256 in place of trust\nSELECT pg_reload_conf();",
        )
    if vitals.local:
        return
    if vitals.tls is None:
        yield Finding(
            severity="warning",
            subject="tls",
            text="the connection is not encrypted: passwords, data and WAL can be read on the way",
            hint="on the server: ssl = on; in the dsn: sslmode=verify-full sslrootcert=…",
        )
    elif vitals.tls not in OLDEST_TLS:
        yield Finding(
            severity="warning",
            subject="tls",
            text=f"{vitals.tls} is outdated, 1.2 is the least",
            hint=changed("ssl_min_protocol_version", "TLSv1.2"),
        )
    elif vitals.sslmode not in _VERIFIES:
        yield Finding(
            severity="warning",
            subject="tls",
            text=f"sslmode={vitals.sslmode} encrypts, but does not check who answers: "
            "somebody in between can read along",
            hint="in the dsn: sslmode=verify-full sslrootcert=…",
        )


def _clock(vitals: Vitals) -> Iterator[Finding]:
    if abs(vitals.skew) > SKEW_SECONDS + vitals.uncertain:
        way = "ahead of" if vitals.skew > 0 else "behind"
        yield Finding(
            severity="warning",
            subject="clock",
            text=f"the server's clock is {as_span(abs(vitals.skew))} {way} ours: a moment to restore to is a moment of "
            "the server's clock",
            hint="keep both in time (chrony, or systemd-timesyncd)",
        )
