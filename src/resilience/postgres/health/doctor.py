"""What the doctor says of a PostgreSQL server: the rules' findings, and a table of what was read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

from resilience.model.diagnosis import Checkup, Reading, Standing, judged, worst_first
from resilience.model.objectives import Objective
from resilience.model.show import as_bytes, as_span
from resilience.postgres.client import Dsn
from resilience.postgres.lsn import position
from resilience.postgres.survey import unsupported
from resilience.reference import POSTGRESQL_SETTINGS

from .server import only_full, server_findings
from .vitals import Vitals, look
from .wal import archiver_slot, archives, discards, needed, program, streams, unarchived, wal_findings


async def diagnose(dsn: Dsn, objective: Objective, *, target: str, clock: Callable[[], datetime]) -> Checkup:
    """Examine a server against the reference and an objective. It takes a second, a minute at most; writes nothing.

    Raises Unreachable, TimedOut, or Refused if the server lets nobody in.
    """
    vitals = await look(dsn, clock=clock)
    return examined(vitals, objective, target=target, dsn=dsn)


def examined(vitals: Vitals, objective: Objective, *, target: str, dsn: Dsn) -> Checkup:
    """Judge what was seen; pure."""
    findings = worst_first(
        (
            *unsupported(vitals.major * 10000, vitals.version, dsn),
            *server_findings(vitals, objective, archiver=archiver_slot(target)),
            *wal_findings(vitals, objective, target=target),
        )
    )
    role = "standby" if vitals.standby else "primary"
    return Checkup(
        target=target,
        system="postgresql",
        where=dsn.where,
        description=f"PostgreSQL {vitals.version}, {role}, timeline {vitals.timeline}",
        lineage=vitals.lineage,
        now=vitals.now,
        position=position(vitals.timeline, vitals.position),
        log_rate=vitals.rate,
        writes=not vitals.standby,
        unarchived=unarchived(vitals, objective, target=target),
        only_full=only_full(vitals),
        replays=("base", "incremental"),
        readings=judged(_readings(vitals, objective, target), findings),
        findings=findings,
    )


def _readings(vitals: Vitals, objective: Objective, target: str) -> Iterator[Reading]:
    yield from _settings(vitals, objective)
    yield from _log(vitals, objective, target)
    yield from _way(vitals)


def _settings(vitals: Vitals, objective: Objective) -> Iterator[Reading]:
    """The settings, and what the reference or the objective wants of them."""
    senders = int(POSTGRESQL_SETTINGS["max_wal_senders"].value)
    rpo = int(objective.rpo.total_seconds())
    wanted = {
        "wal_level": "replica or logical",
        "max_wal_senders": f"{senders} or more",
        "max_replication_slots": f"{senders} or more",
        "wal_keep_size": f"{POSTGRESQL_SETTINGS['wal_keep_size'].value} (without a slot)",
        "max_slot_wal_keep_size": f"{as_bytes(int(needed(vitals, objective)))} or more, less than the disk",
        "idle_replication_slot_timeout": f"0, or more than {as_span(objective.outage)}",
        "wal_sender_timeout": "not 0",
        "synchronous_standby_names": "no * where archivers connect",
        "fsync": "on",
        "full_page_writes": "on",
        "data_checksums": "on",
        "synchronous_commit": "on",
        "summarize_wal": "on" if objective.incremental else "",
        "wal_summary_keep_time": as_span(2 * objective.full_every) if objective.full_every else "",
        "wal_segment_size": "",
        "password_encryption": "scram-sha-256",
        "archive_mode": "",
    }
    if archives(vitals):
        wanted["archive_timeout"] = f"with the upload less than {rpo} s"
    used = {"max_wal_senders": vitals.senders, "max_replication_slots": len(vitals.slots)}
    for name, reference in wanted.items():
        if name in vitals.settings:
            value = vitals.text(name) or "(empty)"
            value += f" ({used[name]} taken)" if name in used else ""
            yield Reading(name=name, value=value, reference=reference)


def _log(vitals: Vitals, objective: Objective, target: str) -> Iterator[Reading]:
    """How WAL is written, kept and taken away."""
    if archives(vitals):
        by = vitals.text("archive_library") or ("nothing" if discards(vitals) else program(vitals))
        yield Reading(name="archive_command", value=by)
        last = vitals.archiver.archived_at
        yield Reading(name="archiving", value=f"last {as_span(vitals.now - last)} ago" if last else "never yet")
    streaming = streams(vitals, archiver_slot(target))
    leaves = "streamed" if streaming else ("archived" if archives(vitals) and not discards(vitals) else "not archived")
    missing = unarchived(vitals, objective, target=target)
    worst: Standing = missing.severity if missing is not None else "good"
    yield Reading(name="WAL", value=leaves, reference="streamed to an archive", standing=worst)
    average = "" if vitals.rate_average is None else f", {as_bytes(int(vitals.rate_average))}/s on average"
    yield Reading(name="WAL rate", value=f"{as_bytes(int(vitals.rate_now))}/s now{average}")
    unseen = vitals.folder is None
    yield Reading(name="pg_wal", value=as_bytes(vitals.folder), standing="unseen" if unseen else "good")
    if vitals.standby:
        late = max(0, vitals.position - vitals.replayed) if vitals.replayed is not None else None
        value = f"{'receiving' if vitals.receiving else 'not connected'}, {as_bytes(late)} to replay"
        yield Reading(name="standby", value=value, reference="receiving, nearly nothing")
    for each in vitals.slots:
        kind = "temporary" if each.temporary else ("active" if each.active else "idle")
        status = "" if each.status in (None, "reserved") else f", {each.status}"
        value = f"{kind}{status}, keeps {as_bytes(each.retained or 0)}"
        yield Reading(name=f"slot {each.name}", value=value)


def _way(vitals: Vitals) -> Iterator[Reading]:
    """The role and its connection."""
    may = [word for word, held in (("superuser", vitals.superuser), ("replication", vitals.replication)) if held]
    may += ["pg_monitor"] if vitals.monitor else []
    yield Reading(
        name="role", value=f"{vitals.role}: {', '.join(may) or 'nothing'}", reference="replication, pg_monitor"
    )
    yield Reading(name="replication", value="refused" if vitals.refused else "let in", reference="let in")
    if vitals.authenticated is not None:
        yield Reading(name="authentication", value=vitals.authenticated or "trust", reference="scram-sha-256 or better")
    where = "local" if vitals.local else f"sslmode={vitals.sslmode}"
    yield Reading(name="tls", value=f"{vitals.tls or 'none'}, {where}", reference="1.2 or 1.3, verify-full")
    yield Reading(name="clock", value=f"{vitals.skew:+.1f} s from ours", reference="within 5 s")
