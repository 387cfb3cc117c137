"""What has been decided: plain values, made by planning/ from facts, carried out by operations/."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from attrs import field, frozen

from .findings import Finding
from .json import Json
from .moments import aware
from .show import Shown


@frozen(kw_only=True)
class BackupPlan(Shown):
    """One backup to take: its id, of what, and how much is expected to be read."""

    id: str
    target: str
    system: str
    kind: str
    lineage: str
    made_at: datetime = field(validator=aware)
    size: int | None = None
    findings: tuple[Finding, ...] = ()
    details: Mapping[str, Json] = field(factory=dict)


@frozen(kw_only=True)
class RestorePlan(Shown):
    """One restore to carry out: `chain` are the ids of the backups it reads, oldest first; sizes are bytes."""

    target: str
    destination: str
    chain: tuple[str, ...]
    read: int
    written: int
    findings: tuple[Finding, ...] = ()
