"""Recovery targets in PostgreSQL's words (19.5.6, recovery_target*), and whether one was reached. Pure."""

from __future__ import annotations

from datetime import UTC

from resilience.model.errors import Interrupted, NotRecoverable, Refused
from resilience.model.positions import RecoveryPoint
from resilience.model.targets import RecoveryTarget

LONGEST_NAME = 63
UNSET = {
    "recovery_target": "",
    "recovery_target_name": "",
    "recovery_target_time": "",
    "recovery_target_xid": "",
    "recovery_target_lsn": "",
}
"""No target at all; of these five settings only one may be set."""

NOT_REACHED = "before configured recovery target was reached"
TOO_EARLY = "before consistent recovery point"
_INCLUSIVE = {"recovery_target_inclusive": "on"}


def settings_for(until: RecoveryTarget) -> dict[str, str]:
    """Return what makes recovery stop at a target; nothing where the end of the WAL is the target.

    Raises Refused if PostgreSQL could have no such restore point.
    """
    if until.moment is not None:
        moment = until.moment.astimezone(UTC).replace(tzinfo=None)
        return {"recovery_target_time": f"{moment.isoformat(' ', 'microseconds')}+00", **_INCLUSIVE}
    if until.kind == "position":
        return {"recovery_target_lsn": until.value, **_INCLUSIVE}
    if until.kind == "transaction":
        return {"recovery_target_xid": until.value, **_INCLUSIVE}
    if until.kind == "name":
        if len(until.value.encode()) > LONGEST_NAME or "\0" in until.value:
            text = f"no restore point has such a name: {until.value!r}"
            raise Refused(text, operation="restore", hint=f"PostgreSQL takes up to {LONGEST_NAME} bytes")
        return {"recovery_target_name": until.value}
    return {}


def ends_before(until: RecoveryTarget, ends: int) -> bool:
    """Tell whether a log that is complete up to `ends` and has nothing behind the target answers it all the same."""
    if until.kind == "position":
        return until.offset is not None and until.offset <= ends
    return until.kind == "time"


def check(until: RecoveryTarget, reached: RecoveryPoint, *, met: bool, subject: str) -> None:
    """Compare what was read back with what was asked for, and `met` or answered by all there is. Raises Interrupted."""
    beyond = until.moment is not None and reached.time is not None and reached.time > until.moment
    short = met and until.offset is not None and reached.position.offset < until.offset
    if beyond or short:
        what = f"recovery went {'past' if beyond else 'less far than'} {until}: it reached {reached}"
        raise Interrupted(what, operation="restore", subject=subject, hint="discard it and restore again")


def missed(until: RecoveryTarget, *, subject: str) -> NotRecoverable:
    """Say that the log ended before recovery met its target."""
    what, hint = {
        "name": (
            f"no restore point {until.value!r} lies between the base backup and where the log ends",
            "if it is older than the backup, name an older one with base=; if it is on another timeline, name that",
        ),
        "transaction": (
            f"transaction {until.value} neither commits nor aborts between the base backup and where the log ends",
            "if it is older than the backup, name an older one with base=; if it is on another timeline, name that",
        ),
    }.get(until.kind, (f"the log ends before {until}", "wait until the archive has more, or choose an earlier target"))
    return NotRecoverable(what, operation="restore", subject=subject, hint=hint)


def too_early(until: RecoveryTarget, *, subject: str) -> NotRecoverable:
    """Say that the target lies before the backup was consistent."""
    return NotRecoverable(
        f"{until} lies before the end of the base backup",
        operation="restore",
        subject=subject,
        hint="name an older backup with base=",
    )
