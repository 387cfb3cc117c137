"""What flows from a target to the archive during a backup, and what a restore brought back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from attrs import field, frozen

from .findings import Finding
from .json import Json
from .positions import Position, RecoveryPoint
from .show import Shown


@frozen(kw_only=True)
class Part:
    """One named stream of a backup: chunks of at least 1 MiB each (the last may be shorter), read once, in order."""

    name: str
    chunks: AsyncIterator[bytes] = field(repr=False)


@frozen(kw_only=True)
class Captured(Shown):
    """What a finished capture knows: see the fields of the same names in `Manifest`."""

    begins: Position
    recovery_point: RecoveryPoint
    details: Mapping[str, Json] = field(factory=dict)
    findings: tuple[Finding, ...] = ()


@frozen(kw_only=True)
class Restored(Shown):
    """What a restore brought back: the recovery point read from the restored system, and what was noticed there."""

    reached: RecoveryPoint
    findings: tuple[Finding, ...] = ()
