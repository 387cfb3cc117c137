"""What a prune would remove and why, and what one has removed: plain values that show themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from typing import Literal

from attrs import field, frozen

from .findings import Finding
from .log import Stretch
from .moments import aware
from .positions import Position
from .retention import RetentionPolicy
from .show import Shown, as_bytes, when

MANY = 60
"""Lines: of a longer list only the first and the last are shown."""

Trimmed = Literal["expired", "superseded", "gaps", "watermarks", "files"]
"""Parts of a log that can go: entries that nothing kept needs, slices that a whole segment has, and old records."""


@frozen(kw_only=True)
class Decision(Shown):
    """What becomes of one backup, or of what a failed attempt left behind, and why. `bytes` are stored ones."""

    backup: str
    kind: str
    stays: bool
    reason: str
    objects: int = 0
    bytes: int = 0
    parent: str | None = None

    def __str__(self) -> str:
        word = "stays" if self.stays else "GOES "
        return f"{word} {self.kind or 'backup'} {self.backup} ({as_bytes(self.bytes)}): {self.reason}"


@frozen(kw_only=True)
class LogKept(Shown):
    """From where on a branch of a log is kept, and why; `begins` is None where all of it stays."""

    lineage: str
    branch: str
    begins: Position | None
    bytes: int
    reason: str

    def __str__(self) -> str:
        start = "" if self.begins is None else f" from {self.begins.text} on"
        return f"stays log of timeline {self.branch}{start} ({as_bytes(self.bytes)}): {self.reason}"


@frozen(kw_only=True)
class LogTrim(Shown):
    """What goes of one branch of a log, and why: what lies within `stretches`, of records what is older than `before`.

    Files beside a log belong to no branch.
    """

    what: Trimmed
    lineage: str
    branch: str = ""
    stretches: tuple[Stretch, ...] = ()
    before: datetime | None = field(default=None, validator=aware)
    objects: int = 0
    bytes: int = 0
    reason: str = ""

    def __str__(self) -> str:
        names = {"expired": "log", "superseded": "slices", "gaps": "records of gaps"}
        where = f" of timeline {self.branch}" if self.branch else ""
        span = f" {self.stretches[0].begins.text} to {self.stretches[-1].ends.text}" if self.stretches else ""
        size = f"{self.objects} objects, {as_bytes(self.bytes)}"
        return f"GOES  {names.get(self.what, self.what)}{where}{span} ({size}): {self.reason}"


@frozen(kw_only=True)
class PrunePlan(Shown):
    """What a prune would remove from an archive of one target, what stays, and why each.

    `backups` are the newest first; `leftovers` are objects that no manifest names. Carrying it out removes nothing that
    is not in `removed`, `leftovers` or `log`.
    """

    target: str
    system: str
    policy: RetentionPolicy
    made_at: datetime = field(validator=aware)
    backups: tuple[Decision, ...] = ()
    leftovers: tuple[Decision, ...] = ()
    log: tuple[LogTrim, ...] = ()
    log_kept: tuple[LogKept, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def removed(self) -> tuple[str, ...]:
        """The ids of the backups that go."""
        return tuple(each.backup for each in self.backups if not each.stays)

    @property
    def kept(self) -> tuple[str, ...]:
        """The ids of the backups that stay."""
        return tuple(each.backup for each in self.backups if each.stays)

    @property
    def freed(self) -> int:
        """Stored bytes that are freed."""
        going: list[Decision] = [each for each in (*self.backups, *self.leftovers) if not each.stays]
        return sum(each.bytes for each in going) + sum(each.bytes for each in self.log)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to remove."""
        return all(each.stays for each in (*self.backups, *self.leftovers)) and not self.log

    def __str__(self) -> str:
        leftovers = [f"{each}, left by an attempt or a removal" for each in self.leftovers]
        kept, log = map(str, self.log_kept), map(str, self.log)
        lines = [*_some([str(each) for each in self.backups]), *_some(leftovers), *_some([*log, *kept])]
        return "\n  ".join([self._head(), *lines, *map(str, self.findings)])

    def _head(self) -> str:
        if self.empty:
            stays = f"{_count(len(self.kept))} {'stays' if len(self.kept) == 1 else 'stay'}"
            return f"prune {self.target}, as of {when(self.made_at)}: nothing goes, {stays}"
        return (
            f"prune {self.target}, as of {when(self.made_at)}: {len(self.removed)} of {_count(len(self.backups))} go, "
            f"{as_bytes(self.freed)} are freed"
        )

    def _repr_html_(self) -> str:
        shown: Iterable[Decision | LogTrim | LogKept] = (*self.backups, *self.leftovers, *self.log, *self.log_kept)
        rows = "".join(f"<tr><td style='text-align:left'>{escape(str(each))}</td></tr>" for each in shown)
        notes = "".join(f"<li>{escape(str(each))}</li>" for each in self.findings)
        return f"<table><caption>{escape(self._head())}</caption>{rows}</table><ul>{notes}</ul>"


@frozen(kw_only=True)
class Held(Shown):
    """An object that the store does not let go, and what it says: a legal hold, immutability, a missing right."""

    key: str
    why: str

    def __str__(self) -> str:
        return f"HELD  {self.key}: {self.why}"


@frozen(kw_only=True)
class Removed(Shown):
    """What was removed at one stroke: objects and stored bytes; `held` stay. `gone`: no manifest names it any more."""

    objects: int = 0
    bytes: int = 0
    held: tuple[Held, ...] = ()
    gone: bool = True

    def __add__(self, other: Removed) -> Removed:
        return Removed(
            objects=self.objects + other.objects,
            bytes=self.bytes + other.bytes,
            held=self.held + other.held,
            gone=self.gone and other.gone,
        )


@frozen(kw_only=True)
class PruneReport(Shown):
    """What a prune has removed. `spared` were to go and stay all the same, with the reason; `held` is not let go.

    `objects` and `freed` (stored bytes) count what is gone, of the log too; `seconds` is wall time.
    """

    plan: PrunePlan
    removed: tuple[str, ...] = ()
    spared: tuple[Decision, ...] = ()
    held: tuple[Held, ...] = ()
    objects: int = 0
    freed: int = 0
    seconds: float = 0.0
    actor: str = ""
    reason: str = ""
    findings: tuple[Finding, ...] = ()

    def __str__(self) -> str:
        by = f" by {self.actor}" if self.actor else ""
        why = f", {self.reason}" if self.reason else ""
        head = (
            f"pruned {self.plan.target}{by}{why}: {_count(len(self.removed))} and {self.objects} objects gone, "
            f"{as_bytes(self.freed)} freed, {self.seconds:.1f} s"
        )
        lines = [*_some(list(map(str, self.spared))), *_some(list(map(str, self.held)))]
        return "\n  ".join([head, *lines, *map(str, self.findings)])


def _count(backups: int) -> str:
    return "1 backup" if backups == 1 else f"{backups} backups"


def _some(lines: Sequence[str]) -> list[str]:
    """Leave out the middle of a long list."""
    if len(lines) <= MANY:
        return list(lines)
    half = MANY // 2
    return [*lines[:half], f"… {len(lines) - 2 * half} more …", *lines[-half:]]
