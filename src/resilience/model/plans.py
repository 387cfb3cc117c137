"""What has been decided: plain values, made by planning/ from facts, carried out by operations/."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from attrs import field, frozen

from .findings import Finding
from .json import Json
from .log import Stretch
from .moments import aware
from .show import Shown
from .targets import RecoveryTarget


@frozen(kw_only=True)
class BackupPlan(Shown):
    """One backup to take: its id, of what, and how much is expected to be read.

    `parent` is the backup that it holds the differences to; None: it is complete in itself.
    """

    id: str
    target: str
    system: str
    kind: str
    lineage: str
    parent: str | None = None
    made_at: datetime = field(validator=aware)
    size: int | None = None
    findings: tuple[Finding, ...] = ()
    details: Mapping[str, Json] = field(factory=dict)


@frozen(kw_only=True)
class RestorePlan(Shown):
    """One restore to carry out: `chain` are the ids of the backups it reads, oldest first; sizes are bytes.

    `replay` are the stretches of the log that follow the chain, in order; the last one's branch is the one to end on.
    With `to_the_end` all of them is what was asked for, so the system is given no target to look for. `seconds` is an
    estimate and `arithmetic` how it was made; None where nothing is known to estimate from.
    """

    target: str
    destination: str
    chain: tuple[str, ...]
    until: RecoveryTarget = field(factory=RecoveryTarget.latest)
    replay: tuple[Stretch, ...] = ()
    to_the_end: bool = True
    read: int
    written: int
    seconds: float | None = None
    arithmetic: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
