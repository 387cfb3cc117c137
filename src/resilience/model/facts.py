"""What a survey saw: plain values that plans are made from."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

from .findings import Finding
from .json import Json
from .show import Shown


@frozen(kw_only=True)
class TargetFacts(Shown):
    """A backup target as it is now: which history it belongs to, how large it is, what stands in the way.

    `branch` is the branch of that history it is on. `only_full` says why it cannot give an incremental backup; empty
    where it can.
    """

    target: str
    system: str
    kind: str
    lineage: str
    branch: str = ""
    only_full: str = "it knows no incremental backups"
    size: int | None = None
    findings: tuple[Finding, ...] = ()
    details: Mapping[str, Json] = field(factory=dict)


@frozen(kw_only=True)
class DestinationFacts(Shown):
    """A restore destination as it is now.

    `needed` and `free` are bytes on the file system that has least room left; None where that has no meaning.
    """

    destination: str
    system: str
    empty: bool
    needed: int | None = None
    free: int | None = None
    findings: tuple[Finding, ...] = ()
    details: Mapping[str, Json] = field(factory=dict)
