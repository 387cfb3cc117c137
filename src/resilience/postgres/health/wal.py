"""The doctor's rules about WAL: how it leaves a PostgreSQL server, how fast it grows, what keeps it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta

from resilience.model.findings import Finding, blocker
from resilience.model.objectives import Objective
from resilience.model.show import as_bytes, as_span
from resilience.postgres.wal.names import WalName
from resilience.reference import POSTGRESQL_SETTINGS

from .server import changed, only_full
from .vitals import Slot, Vitals

GIB = 1 << 30
FEW_SEGMENTS = 3
"""So many finished segments may wait for archive_command before that is worth a word."""
FALLEN_BEHIND = 64
UPLOAD = timedelta(seconds=1)
"""What handing a segment to an archive takes at the very least."""

_TRUE = re.compile(
    r"\s*(?:(?:/\w+)*/?true(?:\s+[^;&|]*)?|:(?:\s+[^;&|]*)?|exit\s+0|cd\s+\.|rem\b.*)\s*;?\s*", re.IGNORECASE
)


def wal_findings(vitals: Vitals, objective: Objective, *, target: str) -> Iterator[Finding]:
    """Find out what WAL may pile up, and whether archive_command does what the objective needs."""
    slot = archiver_slot(target)
    yield from _slots(vitals, objective, slot)
    if vitals.slots or objective.needs_log:
        yield from _limit(vitals, objective)
        yield from _idle_limit(vitals, objective)
    if archives(vitals):
        yield from _archiving(vitals)
        if not (streams(vitals, slot) or discards(vitals)):
            yield from _timeout(vitals, objective, target)
    yield from _kept(vitals)
    if vitals.standby:
        yield from _replica(vitals, objective)


def streams(vitals: Vitals, slot: str) -> bool:
    """Whether an archiver is reading WAL: through its own slot, or under its name where names may be seen."""
    return any(each.active and (each.name == slot or is_archiver(vitals, each)) for each in vitals.slots)


def is_archiver(vitals: Vitals, slot: Slot) -> bool:
    """Whether whoever reads from a slot calls itself an archiver of ours."""
    name = (vitals.names or {}).get(slot.active_pid or 0) or ""
    return name.startswith("resilience")


def archives(vitals: Vitals) -> bool:
    """Whether the server itself hands finished segments to somebody: on a standby only with archive_mode = always."""
    return vitals.text("archive_mode") in (("always",) if vitals.standby else ("on", "always"))


def discards(vitals: Vitals) -> bool:
    """Whether archive_command does nothing, be it empty or something like `true`."""
    command = vitals.text("archive_command")
    return not vitals.text("archive_library") and (not command.strip() or _TRUE.fullmatch(command) is not None)


def program(vitals: Vitals) -> str:
    """Name the program of archive_command; never the whole of it, since it may hold a secret."""
    words = [word for word in vitals.text("archive_command").split() if "=" not in word]
    return words[0].strip("'\"").rpartition("/")[2] if words else "a command"


def needed(vitals: Vitals, objective: Objective) -> float:
    """Return the bytes of WAL that an outage as long as the objective allows would pile up, at the measured rate."""
    return vitals.rate * objective.outage.total_seconds() + vitals.number("wal_segment_size")


def unarchived(vitals: Vitals, objective: Objective, *, target: str) -> Finding | None:
    """Does WAL leave this server at all, as the objective needs?"""
    archived = streams(vitals, archiver_slot(target)) or (archives(vitals) and not discards(vitals))
    if archived or not objective.needs_log:
        return None
    if vitals.standby:
        return Finding(
            severity="note",
            subject="WAL",
            text="none is archived from this standby: its primary is the one to look at",
            hint="await doctor(PostgresTarget(…, dsn=…))   # of the primary",
        )
    others = ", ".join(each.name for each in vitals.slots if each.physical and each.active)
    every = (objective.full_every or objective.every) if only_full(vitals) else objective.every
    up_to = f", up to {as_span(every)}" if every is not None else ""
    return Finding(
        severity="warning" if others else "blocker",
        subject="WAL",
        text=f"none is archived: a disaster loses everything since the last backup{up_to}; the objective allows "
        f"{as_span(objective.rpo)}" + (f" (slot {others} is being read, by whom cannot be told)" if others else ""),
        hint=f'async with WalArchiver("{target}", dsn=dsn, archive=archive): …   # loses seconds',
    )


def archiver_slot(target: str) -> str:
    """Return the slot that a WalArchiver uses by default, which is also what it calls itself."""
    return "resilience_" + re.sub("[^a-z0-9_]", "_", target)[:52]


def _archiving(vitals: Vitals) -> Iterator[Finding]:
    """Is archive_command (or archive_library) there, and does it work (26.3.1)?"""
    command, library = vitals.text("archive_command"), vitals.text("archive_library")
    if not command.strip() and not library:
        yield blocker(
            "archive_command",
            "empty while archive_mode is on: the server keeps all WAL until the disk is full",
            "set archive_command, or: " + changed("archive_mode", "off", restart=True).replace("\n", "  "),
        )
    elif command.strip() and library:
        yield Finding(
            severity="blocker" if vitals.major >= 16 else "warning",
            subject="archive_library",
            text=f"{library} is set beside archive_command; "
            + ("the server then archives nothing" if vitals.major >= 16 else "archive_command is not run"),
            hint=changed("archive_library", ""),
        )
    elif discards(vitals):
        yield Finding(
            severity="warning",
            subject="archive_command",
            text=f"{command.split()[0]!r} throws WAL away and calls it archived",
            hint="set a command that archives, or: " + changed("archive_mode", "off", restart=True).replace("\n", "  "),
        )
    yield from _failing(vitals)


def _failing(vitals: Vitals) -> Iterator[Finding]:
    archiver = vitals.archiver
    if archiver.failing:
        since = f"nothing for {_ago(archiver.archived_at, vitals.now)}" if archiver.archived_at else "nothing ever"
        yield blocker(
            "archiving",
            f"it fails: {archiver.failed} times, last with {archiver.last_failed} "
            f"{_ago(archiver.failed_at, vitals.now)} ago; {since} was archived; pg_wal grows until the disk is full",
            "the server's log says why, on the lines that begin with 'archive command failed'",
        )
    elif (behind := _behind(vitals)) is not None and behind > FEW_SEGMENTS:
        size = as_bytes(int(behind * vitals.number("wal_segment_size")))
        yield Finding(
            severity="warning",
            subject="archiving",
            text=f"it is {behind} segments behind ({size}): the last one was archived "
            f"{_ago(archiver.archived_at, vitals.now)} ago",
            hint="is the archive slow, or does archive_command hang?",
        )


def _behind(vitals: Vitals) -> int | None:
    """Return how many finished segments wait to be archived: counted, or by the name of the last one archived."""
    if vitals.waiting is not None:
        return vitals.waiting
    size = int(vitals.number("wal_segment_size"))
    try:
        last = WalName.parse(vitals.archiver.last_archived or "", segment_size=size)
    except ValueError:
        return None
    if last.begins is None or last.timeline != vitals.timeline:
        return None
    return max(0, vitals.position // size - last.begins // size - 1)


def _timeout(vitals: Vitals, objective: Objective, target: str) -> Iterator[Finding]:
    """How long a commit waits until its segment is archived, against the RPO (R4)."""
    timeout, rpo = vitals.number("archive_timeout"), objective.rpo.total_seconds()
    if timeout == 0:
        size = vitals.number("wal_segment_size")
        rate = vitals.rate
        wait = (
            f"at {as_bytes(int(rate))}/s a segment fills in {as_span(size / rate)}" if rate else "no WAL is written now"
        )
        yield Finding(
            severity="warning",
            subject="archive_timeout",
            text=f"0: a commit waits until its segment of {as_bytes(int(size))} is full, however long that takes "
            f"({wait}); the objective allows {as_span(rpo)}",
            hint=changed("archive_timeout", _shorter(rpo)),
        )
    elif timeout + UPLOAD.total_seconds() > rpo:
        yield Finding(
            severity="warning",
            subject="archive_timeout",
            text=f"{timeout:.0f} s + the upload (1 s at the least) = {timeout + 1:.0f} s > {rpo:.0f} s of the RPO; "
            "streaming does not wait",
            hint=changed("archive_timeout", _shorter(rpo))
            + f'\n-- or WalArchiver("{target}", dsn=dsn, archive=archive)',
        )


def _shorter(rpo: float) -> str:
    """Propose a timeout that leaves two thirds of the RPO for the upload and its repetition."""
    return f"{max(1, int(rpo / 3))}s"


def _slots(vitals: Vitals, objective: Objective, archiver: str) -> Iterator[Finding]:
    for slot in vitals.slots:
        if slot.temporary or slot.synced:
            continue
        own = slot.name == archiver
        subject = f"slot {slot.name}"
        drop = f"SELECT pg_drop_replication_slot('{slot.name}');"
        if slot.status == "lost":
            yield Finding(
                severity="blocker" if own else "warning",
                subject=subject,
                text="lost: the WAL that its reader needs next is gone" + (", the archive gets a gap" if own else ""),
                hint=f"{drop}\n-- then let the archiver begin a new chain, and take a full backup" if own else drop,
            )
        elif slot.status == "unreserved":
            yield Finding(
                severity="blocker" if own else "warning",
                subject=subject,
                text=f"about to be lost at the next checkpoint: its reader is {as_bytes(slot.retained)} behind",
                hint=f"let its reader catch up at once, or give it room: {_room(vitals, objective)}",
            )
        elif not slot.active:
            yield _idle(vitals, slot, own=own, drop=drop)
        elif _late(vitals, slot):
            yield Finding(
                severity="warning",
                subject=subject,
                text=f"its reader is {as_bytes(slot.retained)} of WAL behind{_lost_in(vitals, slot)}",
                hint="is the archive, or the way to it, slower than the server writes?",
            )


def _idle(vitals: Vitals, slot: Slot, *, own: bool, drop: str) -> Finding:
    """Nobody reads from a slot."""
    since = f" for {_ago(slot.inactive_since, vitals.now)}" if slot.inactive_since else ""
    retains = f"keeps {as_bytes(slot.retained)} of WAL, and more" if slot.retained is not None else "keeps no WAL yet"
    per_day = f" ({as_bytes(int(vitals.rate * 86400))} a day)" if slot.retained is not None and vitals.rate else ""
    what = "the archiver's, and the archiver is not there; it" if own else "it"
    return Finding(
        severity="warning" if slot.retained is not None else "note",
        subject=f"slot {slot.name}",
        text=f"nobody reads from it{since}: {what} {retains}{per_day}{_lost_in(vitals, slot)}",
        hint="start the archiver again" if own else f"start its reader again, or if it is gone for good: {drop}",
    )


def _lost_in(vitals: Vitals, slot: Slot) -> str:
    if slot.safe is None or not vitals.rate:
        return ""
    return f"; it is lost in about {as_span(max(0.0, slot.safe / vitals.rate))} at {as_bytes(int(vitals.rate))}/s"


def _late(vitals: Vitals, slot: Slot) -> bool:
    """Whether a reader is so far behind that it may not be able to keep up."""
    if slot.retained is None or not slot.physical:
        return False
    limit = vitals.number("max_slot_wal_keep_size")
    segments = slot.retained / max(1.0, vitals.number("wal_segment_size"))
    return segments > FALLEN_BEHIND or (limit > 0 and slot.retained > limit / 2)


def _limit(vitals: Vitals, objective: Objective) -> Iterator[Finding]:
    """What a slot whose reader is gone does to the disk, or the limit to the slot (20.6.1)."""
    limit, rate = vitals.number("max_slot_wal_keep_size"), f"{as_bytes(int(vitals.rate))}/s"
    outage, need = as_span(objective.outage), as_bytes(int(needed(vitals, objective)))
    if limit < 0:
        fills = f"; at {rate} that is {as_bytes(int(vitals.rate * 86400))} a day" if vitals.rate else ""
        yield Finding(
            severity="warning" if any(slot.physical and not slot.temporary for slot in vitals.slots) else "note",
            subject="max_slot_wal_keep_size",
            text=f"-1: a slot whose reader is gone keeps WAL until the disk is full and the server stops{fills}",
            hint=f"{_room(vitals, objective)}\n"
            f"-- and less than is free where pg_wal lies; {outage} of outage needs {need}",
        )
    elif limit < needed(vitals, objective):
        lasts = f"{as_bytes(int(limit))} last {as_span(limit / vitals.rate)}" if vitals.rate else as_bytes(int(limit))
        yield Finding(
            severity="warning",
            subject="max_slot_wal_keep_size",
            text=f"an outage of {outage} needs {rate} x {outage} + a segment = {need}; "
            f"{lasts}, then the slot is lost and the archive has a gap",
            hint=_room(vitals, objective),
        )


def _idle_limit(vitals: Vitals, objective: Objective) -> Iterator[Finding]:
    """What 18 does to a slot whose reader is gone for long (20.6.1)."""
    idle = vitals.number("idle_replication_slot_timeout")
    if 0 < idle < objective.outage.total_seconds():
        yield Finding(
            severity="warning",
            subject="idle_replication_slot_timeout",
            text=f"after {as_span(idle)} without its reader a slot is lost; "
            f"the objective allows outages of {as_span(objective.outage)}",
            hint=changed("idle_replication_slot_timeout", "0"),
        )


def _room(vitals: Vitals, objective: Objective) -> str:
    """Propose a limit: twice what the longest outage needs, and never less than the WAL that is usual anyway."""
    wanted = max(2 * needed(vitals, objective), 4.0 * GIB, vitals.number("max_wal_size"))
    return changed("max_slot_wal_keep_size", f"{-(-int(wanted) // GIB)}GB")


def _kept(vitals: Vitals) -> Iterator[Finding]:
    """How far a reader without a slot may fall behind."""
    kept, reference = vitals.number("wal_keep_size"), POSTGRESQL_SETTINGS["wal_keep_size"]
    if kept < GIB:
        lasts = f", at {as_bytes(int(vitals.rate))}/s for {as_span(kept / vitals.rate)}" if kept and vitals.rate else ""
        yield Finding(
            severity="note",
            subject="wal_keep_size",
            text=f"{vitals.text('wal_keep_size')}{lasts}: {reference.why}; readers with a slot do not need it",
            hint=changed("wal_keep_size", reference.value),
        )


def _replica(vitals: Vitals, objective: Objective) -> Iterator[Finding]:
    """Is a standby near its primary: what it has not replayed, no backup taken from it has either (27.2)."""
    if not vitals.receiving:
        yield Finding(
            severity="warning",
            subject="standby",
            text="it is not connected to its primary: it gets what restore_command brings, or nothing",
            hint="check primary_conninfo and primary_slot_name; the server's log says why it does not connect",
        )
    if vitals.paused:
        yield Finding(
            severity="warning",
            subject="standby",
            text="its replay is paused: backups taken from it grow old",
            hint="SELECT pg_wal_replay_resume();",
        )
    late = max(0, vitals.position - vitals.replayed) if vitals.replayed is not None else 0
    if late > max(vitals.rate * objective.rpo.total_seconds(), vitals.number("wal_segment_size") * FALLEN_BEHIND):
        yield Finding(
            severity="warning",
            subject="standby",
            text=f"it has {as_bytes(late)} of WAL that it has not replayed: backups taken from it are that old",
            hint="is its disk slower than its primary's, or does a long query hold the replay up?",
        )


def _ago(moment: datetime | None, now: datetime) -> str:
    return as_span(max(timedelta(0), now - moment)) if moment is not None else "never"
