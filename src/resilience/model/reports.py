"""What the verbs return: what was done, measured."""

from __future__ import annotations

from datetime import datetime

from attrs import field, frozen

from .findings import Finding
from .manifests import Manifest
from .moments import aware
from .positions import RecoveryPoint
from .show import Shown, as_bytes
from .targets import RecoveryTarget


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
    unpack and to replay.
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
class Coverage(Shown):
    """From when to when one can come back. So far backups alone: single moments, with nothing between them."""

    target: str
    moments: tuple[RestorableMoment, ...] = field(default=())

    def __str__(self) -> str:
        if not self.moments:
            return f"{self.target}: nothing can be restored, the archive holds no backup of it"
        count = "1 restorable moment" if len(self.moments) == 1 else f"{len(self.moments)} restorable moments"
        return "\n  ".join([f"{self.target}: {count}", *map(str, self.moments)])
