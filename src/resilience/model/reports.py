"""What the verbs return: what was done, measured."""

from __future__ import annotations

from datetime import datetime

from attrs import field, frozen

from .findings import Finding
from .log import Branch, Hole
from .manifests import Manifest
from .moments import aware
from .positions import Position, RecoveryPoint
from .show import Shown, as_bytes, when
from .targets import RecoveryTarget

MANY = 12
"""Lines: of a longer list of backups only the first and the last are shown."""


@frozen(kw_only=True)
class BackupReport(Shown):
    """A backup that was published. `seconds` is wall time from the first look to the published manifest."""

    manifest: Manifest
    seconds: float
    findings: tuple[Finding, ...] = ()

    @property
    def ratio(self) -> float:
        """Plain bytes per stored byte."""
        return self.manifest.size / self.manifest.stored if self.manifest.stored else 1.0

    def __str__(self) -> str:
        head = (
            f"backed up {self.manifest.target} as {self.manifest.id}: {as_bytes(self.manifest.size)} in "
            f"{as_bytes(self.manifest.stored)} ({self.ratio:.1f}:1), {self.seconds:.1f} s; "
            f"restores to {self.manifest.recovery_point}"
        )
        return "\n  ".join([head, *map(str, self.findings)])


@frozen(kw_only=True)
class RestoreReport(Shown):
    """A restore that was proven: `until` was asked for, `reached` was read back from the restored system.

    `manifest` is the last backup of the `chain`. `written` and `replayed` are plain bytes, of the backups and of the
    log, and `seconds` is wall time from the first look to the proof; the time in the destination is what it took to
    unpack and to replay. `actor` asked for it, for a `reason`.
    """

    manifest: Manifest
    chain: tuple[str, ...] = ()
    destination: str
    until: RecoveryTarget
    reached: RecoveryPoint
    written: int = 0
    replayed: int = 0
    unpack_seconds: float = 0.0
    replay_seconds: float = 0.0
    seconds: float
    actor: str = ""
    reason: str = ""
    findings: tuple[Finding, ...] = ()

    def __str__(self) -> str:
        log = f" and {as_bytes(self.replayed)} of log" if self.replayed else ""
        chain = f" ({len(self.chain)} backups)" if len(self.chain) > 1 else ""
        head = (
            f"restored {self.manifest.target} {self.manifest.id}{chain} into {self.destination}: "
            f"{as_bytes(self.written)}{log}, {self.seconds:.1f} s; asked for {self.until}; reached {self.reached}"
        )
        return "\n  ".join([head, *map(str, self.findings)])


@frozen(kw_only=True)
class RestorableMoment(Shown):
    """One moment that can be restored to, and the backup that does it."""

    backup: str
    kind: str
    lineage: str
    point: RecoveryPoint
    taken_at: datetime = field(validator=aware)

    def __str__(self) -> str:
        return f"{self.point} ({self.kind} {self.backup})"


@frozen(kw_only=True)
class RestorableRange(Shown):
    """A range of one branch in which every moment can be restored, from the end of a backup on.

    `begins.time` is when that backup had ended, None where the branch was entered from its parent, which it `left`
    there. Everything that was acknowledged before `ends.time` lies in it (None: the log does not say).
    """

    lineage: str
    begins: RecoveryPoint
    ends: RecoveryPoint
    left: Position | None = None

    @property
    def branch(self) -> str:
        """The branch that it lies on."""
        return self.ends.position.branch

    def __str__(self) -> str:
        start = f"{when(self.begins.time)} ({self.begins.position.text})"
        if self.left is not None:
            start = f"{self.begins.position.text}, where it left timeline {self.left.branch},"
        elif self.begins.time is None:
            start = self.begins.position.text
        end = f"{when(self.ends.time)} ({self.ends.position.text})" if self.ends.time else self.ends.position.text
        size = as_bytes(self.ends.position.offset - self.begins.position.offset)
        return f"timeline {self.branch}: any moment from {start} to {end}, {size} of log"


@frozen(kw_only=True)
class Coverage(Shown):
    """From when to when one can come back: single moments of backups, and ranges where a log goes on from them.

    `holes` are stretches of the log that are missing; no moment in them can be restored, nor any after them that no
    later backup leads to.
    """

    target: str
    moments: tuple[RestorableMoment, ...] = field(default=())
    ranges: tuple[RestorableRange, ...] = ()
    holes: tuple[Hole, ...] = ()
    branches: tuple[Branch, ...] = ()
    findings: tuple[Finding, ...] = ()

    def __str__(self) -> str:
        several = len({each.lineage for each in self.moments} | {each.lineage for each in self.ranges}) > 1
        lines = [f"{self.target}: {self._head()}"]
        lines += [f"{_of(each, several)}{each}" for each in self.ranges]
        lines += [f"{_of(each, several)}HOLE: {each}" for each in self.holes]
        lines += _some([f"{_of(each, several)}{each}" for each in self.moments])
        return "\n  ".join([*lines, *map(str, self.findings)])

    def _head(self) -> str:
        if not self.moments:
            return "nothing can be restored, the archive holds no backup of it"
        count = "1 restorable moment" if len(self.moments) == 1 else f"{len(self.moments)} restorable moments"
        if not self.ranges:
            return count
        begins = [each.begins.time for each in self.ranges if each.begins.time is not None]
        ends = [each.ends.time for each in self.ranges if each.ends.time is not None]
        count = "1 backup" if len(self.moments) == 1 else f"{len(self.moments)} backups"
        holes = f", with {len(self.holes)} hole{'s' if len(self.holes) > 1 else ''}" if self.holes else ""
        return f"from {when(min(begins, default=None))} to {when(max(ends, default=None))}{holes}, {count}"


def _of(each: RestorableMoment | RestorableRange | Hole, several: bool) -> str:
    return f"history {each.lineage}: " if several else ""


def _some(lines: list[str]) -> list[str]:
    """Leave out the middle of a long list."""
    if len(lines) <= MANY:
        return lines
    half = MANY // 2
    return [*lines[:half], f"… {len(lines) - 2 * half} more …", *lines[-half:]]
