"""Where in a system's history something stands."""

from __future__ import annotations

from datetime import datetime

from attrs import field, frozen

from .json import Offset
from .moments import aware
from .show import Shown


@frozen(kw_only=True)
class Position(Shown):
    """A place in a system's history: an LSN on a timeline, a replication offset, an oplog time, a revision.

    `branch` names the history (PostgreSQL's timeline), `offset` orders positions on one branch, `text` is how the
    system itself writes it. Offsets on different branches cannot be compared.
    """

    branch: str
    offset: Offset = field(converter=Offset)
    text: str

    def __str__(self) -> str:
        return f"{self.text} on {self.branch}"


@frozen(kw_only=True)
class RecoveryPoint(Shown):
    """What a restore reaches, or reached: everything up to `position`, as of `time` where the system can tell."""

    position: Position
    time: datetime | None = field(default=None, validator=aware)

    def __str__(self) -> str:
        return f"{self.position}, {self.time:%Y-%m-%d %H:%M:%S %Z}" if self.time else str(self.position)
