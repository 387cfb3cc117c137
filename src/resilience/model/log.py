"""The log of a system: what continues a backup up to seconds ago (PostgreSQL's WAL), and what is known of it."""

from __future__ import annotations

from datetime import datetime

from attrs import field, frozen

from .findings import Finding
from .moments import aware
from .positions import Position
from .show import Shown, as_bytes, when


@frozen(kw_only=True)
class Branch(Shown):
    """One branch of a lineage's history (PostgreSQL: a timeline), and where it left its parent.

    `text` is the system's own record of it, kept as it is (the `.history` file); the first branch has none.
    """

    name: str
    parent: str | None = None
    forked_at: Position | None = None
    text: str = field(default="", repr=False)


@frozen(kw_only=True)
class Stretch(Shown):
    """All of one branch's log from `begins` up to, not including, `ends`."""

    begins: Position
    ends: Position

    @property
    def branch(self) -> str:
        """The branch that it lies on."""
        return self.ends.branch

    @property
    def size(self) -> int:
        """Plain bytes."""
        return self.ends.offset - self.begins.offset

    def __str__(self) -> str:
        return f"{self.begins.text} to {self.ends}"


@frozen(kw_only=True)
class LogEntry(Stretch):
    """One object of the log: a whole segment, or a slice of the segment that begins at `segment`.

    `latest` and `complete_at` are times of the server's clock, None while only the entry's key is known: nothing in it
    was written after `latest`; everything that was acknowledged before `complete_at` lies before `ends`.
    """

    segment: Position | None = None
    latest: datetime | None = field(default=None, validator=aware)
    complete_at: datetime | None = field(default=None, validator=aware)


@frozen(kw_only=True)
class Watermark(Stretch):
    """Up to where the log of a branch is durable without a hole, beginning at `begins`.

    The times mean what they mean in `LogEntry`.
    """

    latest: datetime | None = field(default=None, validator=aware)
    complete_at: datetime | None = field(default=None, validator=aware)


@frozen(kw_only=True)
class Gap(Stretch):
    """A stretch that is lost and was acknowledged as lost: nothing can be recovered to a moment inside or across it."""

    reason: str
    noted_at: datetime = field(validator=aware)


@frozen(kw_only=True)
class Hole(Stretch):
    """A stretch that a log does not have, though it goes on after it. `reason` says why, if the loss was acknowledged.

    Everything that was acknowledged before `after` lies before it; the first that is there again was written by
    `before`. None where that is not known.
    """

    lineage: str = ""
    reason: str = ""
    after: datetime | None = field(default=None, validator=aware)
    before: datetime | None = field(default=None, validator=aware)

    def __str__(self) -> str:
        times = [f"after {when(self.after)}"] if self.after else []
        times += [f"before {when(self.before)}"] if self.before else []
        written = f", written {' and '.join(times)}" if times else ""
        why = f"; acknowledged as lost: {self.reason}" if self.reason else ""
        return f"{self.begins.text} to {self.ends} ({as_bytes(self.size)}{written}{why})"


@frozen(kw_only=True)
class LogFacts(Shown):
    """What a survey of one lineage's log saw; no entry was read. `watermarks` are one a branch that has entries.

    `findings` name the records that were passed over, because nobody can tell who wrote them.
    """

    lineage: str
    branches: tuple[Branch, ...] = ()
    watermarks: tuple[Watermark, ...] = ()
    gaps: tuple[Gap, ...] = ()
    findings: tuple[Finding, ...] = ()
