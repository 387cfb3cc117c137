"""What lies in an archive for one target, as a survey of it sees: names, sizes and times, not one byte of content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from attrs import field, frozen

from .log import Branch, Gap, Watermark
from .moments import aware
from .show import Shown


@frozen(kw_only=True)
class BackupObjects(Shown):
    """What lies under the id of one backup, or of an attempt to take one.

    `bytes` are stored ones, of `objects` and of the manifest, if there is a `manifest`. `newest` is when the last
    of all that was written, by the store's clock. `retired`: a record says that it was removed on purpose.
    `published`: its manifest is not there, and a record says that it once was. `running`: its run record was begun and
    not ended, so it runs, or was killed; then `parent` is what it builds on. `held` says why something of it cannot be
    removed, empty if nobody knows a reason.
    """

    id: str
    kind: str = ""
    objects: int = 0
    bytes: int = 0
    newest: datetime = field(validator=aware)
    manifest: bool = False
    retired: bool = False
    published: bool = False
    running: bool = False
    parent: str | None = None
    held: str = ""


class StoredEntry(NamedTuple):
    """One object of a log: a whole segment, or a slice of the segment that begins at `segment`. Offsets and bytes."""

    begins: int
    ends: int
    size: int
    modified: datetime
    segment: int | None = None


class StoredRecord(NamedTuple):
    """One small object beside a log."""

    name: str
    size: int
    modified: datetime


@frozen(kw_only=True)
class LogObjects(Shown):
    """What lies in an archive of one lineage's log; `entries` and `outdated` by branch.

    `outdated` are records of watermarks that a newer one, which can be read, has made superfluous.
    """

    lineage: str
    branches: tuple[Branch, ...] = ()
    gaps: tuple[Gap, ...] = ()
    watermarks: tuple[Watermark, ...] = ()
    entries: Mapping[str, Sequence[StoredEntry]] = field(factory=dict, repr=False)
    outdated: Mapping[str, Sequence[StoredRecord]] = field(factory=dict, repr=False)
    files: Sequence[StoredRecord] = field(default=(), repr=False)


@frozen(kw_only=True)
class ArchiveFacts(Shown):
    """What a survey of an archive saw of one target; `system` is empty if the archive does not know it."""

    target: str
    system: str
    backups: tuple[BackupObjects, ...] = ()
    logs: tuple[LogObjects, ...] = ()
