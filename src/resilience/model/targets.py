"""Recovery targets: what is asked of a restore. What it reached is a `RecoveryPoint`."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Literal

from attrs import field, frozen

from .ids import checked_id
from .json import Offset
from .moments import aware
from .show import Shown, when

TargetKind = Literal["latest", "time", "position", "name", "transaction", "backup"]
_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")


def parse_lsn(text: str) -> int:
    """Read a PostgreSQL LSN, `16/B374D848`, as a number of bytes (8.20, pg_lsn). Raises ValueError."""
    match = _LSN.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no LSN: one looks like 16/B374D848")
    return int(match[1], 16) << 32 | int(match[2], 16)


@frozen(kw_only=True)
class RecoveryTarget(Shown):
    """Where a restore shall stop; made by `latest()`, `time()`, `lsn()`, `name()`, `xid()` and `backup()`.

    `branch` is the timeline it is meant on; without one it is found, or refused where it could be two. `base` names the
    backup to begin from; without one the newest that can reach the target is taken.
    """

    kind: TargetKind
    moment: datetime | None = field(default=None, validator=aware)
    offset: Offset | None = field(default=None)
    value: str = ""
    branch: str | None = None
    base: str | None = None

    @classmethod
    def latest(cls, *, timeline: str | None = None) -> RecoveryTarget:
        """Everything that the archive holds."""
        return cls(kind="latest", branch=timeline)

    @classmethod
    def time(cls, moment: datetime, *, timeline: str | None = None, base: str | None = None) -> RecoveryTarget:
        """Everything committed up to and including `moment`. Raises ValueError if it is naive."""
        return cls(kind="time", moment=moment, branch=timeline, base=base)

    @classmethod
    def lsn(cls, lsn: str, *, timeline: str | None = None, base: str | None = None) -> RecoveryTarget:
        """Everything up to and including the WAL record at `lsn`. Raises ValueError."""
        return cls(kind="position", offset=Offset(parse_lsn(lsn)), value=lsn, branch=timeline, base=base)

    @classmethod
    def name(cls, name: str, *, timeline: str | None = None, base: str | None = None) -> RecoveryTarget:
        """Everything up to a point that was named on the server with `pg_create_restore_point(name)`."""
        if not name:
            raise ValueError("a restore point has a name")
        return cls(kind="name", value=name, branch=timeline, base=base)

    @classmethod
    def xid(cls, xid: int, *, timeline: str | None = None, base: str | None = None) -> RecoveryTarget:
        """Everything up to and including the commit of transaction `xid`, in the order of commits."""
        if xid < 1:
            raise ValueError("a transaction's id is positive")
        return cls(kind="transaction", value=str(xid), branch=timeline, base=base)

    @classmethod
    def backup(cls, id: str) -> RecoveryTarget:
        """What one backup holds by itself, and nothing later. Raises ValueError if `id` is no backup's id."""
        return cls(kind="backup", value=checked_id(id), base=checked_id(id))

    @classmethod
    def of(cls, until: datetime | RecoveryTarget | None) -> RecoveryTarget:
        """Return what a caller may name briefly: a moment, or None for the latest. Raises ValueError, TypeError."""
        if until is None:
            return cls.latest()
        if isinstance(until, datetime):
            return cls.time(until)
        if isinstance(until, RecoveryTarget):
            return until
        raise TypeError(f"until is a datetime or a RecoveryTarget, not {type(until).__name__}")

    def __str__(self) -> str:
        words = {
            "latest": "the latest moment",
            "time": when(self.moment),
            "position": f"LSN {self.value}",
            "name": f"the restore point {self.value!r}",
            "transaction": f"transaction {self.value}",
            "backup": f"backup {self.value}",
        }[self.kind]
        return f"{words} on timeline {self.branch}" if self.branch else words
