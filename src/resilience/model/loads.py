"""What is written and read: how much, how often. With a policy and prices that is what a cost is computed from."""

from __future__ import annotations

from datetime import timedelta

from attrs import field, frozen
from attrs.validators import ge, gt

from .show import Shown

DAY = timedelta(days=1)


@frozen(kw_only=True)
class BackupLoad(Shown):
    """Backups of one kind: each has `size` stored bytes, one is taken `every` so often.

    `builds_on` is the kind of the full backups between which these are increments.
    """

    system: str
    kind: str
    size: int = field(validator=ge(0))
    every: timedelta = field(validator=gt(timedelta(0)))
    builds_on: str | None = None

    @property
    def daily(self) -> float:
        """Stored bytes a day."""
        return self.size * (DAY / self.every)

    @property
    def name(self) -> str:
        """What it is called in an estimate."""
        return f"{self.system} {self.kind}"


@frozen(kw_only=True)
class LogLoad(Shown):
    """The log of a system: `size` plain bytes a day, stored `ratio` times smaller, in entries of `segment`.

    While it is written to, which is for the share `active` of the time, a slice is put every `interval` (None: there
    are none) and lies there for `until_pruned`, and a watermark every `mark`. The log continues backups of `kinds`, and
    is kept as long as the oldest of them.
    """

    system: str
    size: int = field(validator=ge(0))
    ratio: float = field(default=1.0, validator=gt(0))
    segment: int = field(default=16 << 20, validator=gt(0))
    interval: timedelta | None = timedelta(seconds=5)
    active: float = field(default=1.0, validator=ge(0))
    mark: timedelta = timedelta(minutes=1)
    until_pruned: timedelta = timedelta(days=2)
    kinds: tuple[str, ...] = ("base", "incremental")

    @property
    def name(self) -> str:
        """What it is called in an estimate."""
        return f"{self.system} log"


@frozen(kw_only=True)
class RestoreLoad(Shown):
    """So many restores `a_month` of backups of one kind that are `age` old, each with what it builds on and its log.

    With `urgent` what lies in the Archive tier is rehydrated with high priority. The copy is kept `copied` long.
    """

    system: str
    kind: str
    a_month: float = field(validator=ge(0))
    age: timedelta = timedelta(0)
    urgent: bool = False
    copied: timedelta = timedelta(days=7)


@frozen(kw_only=True)
class Load(Shown):
    """All that is written to and read from one archive.

    Objects of backups have `object_size` bytes and are put in blocks of `block`. It is listed from end to end
    `listed` times a month, and its manifests are read for every backup that builds on another. What is deleted is paid
    for `undeletable` longer: soft delete, previous versions, immutability.
    """

    backups: tuple[BackupLoad, ...] = ()
    logs: tuple[LogLoad, ...] = ()
    restores: tuple[RestoreLoad, ...] = ()
    object_size: int = field(default=64 << 20, validator=gt(0))
    block: int = field(default=8 << 20, validator=gt(0))
    listed: float = field(default=30.0, validator=ge(0))
    undeletable: timedelta = timedelta(0)

    def backup(self, system: str, kind: str) -> BackupLoad | None:
        """Return the backups of one kind; None if there are none."""
        return next((each for each in self.backups if (each.system, each.kind) == (system, kind)), None)
