"""A group of servers of which one is written to: what a survey saw of its members, and of the ways that lead there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal

from attrs import field, frozen

from .findings import Finding
from .json import Json
from .log import Branch
from .moments import aware
from .positions import Position
from .show import Shown, when

Role = Literal["primary", "standby", "unknown"]
FenceKind = Literal["proven", "delegated", "waived"]


@frozen(kw_only=True)
class MemberFacts(Shown):
    """One member of a group as it was seen; `problem` says why nobody could look, and then the rest is empty.

    `instance` tells this run of this server from every other: a connection that reaches it finds the same. `branches`
    are the history it is on, oldest first. `durable` is up to where it has that on disk, `applied` up to where it shows
    it (a primary may be ahead of its disk with that, and have acknowledged it); all that was acknowledged before
    `complete_at`, by the primary's clock, it has applied (of a primary that is what its clock said). `upstream` is the
    member that it receives from (empty: nobody, or somebody that is no member), `receiving` whether it does now.
    `writable` says whether it takes writes. `free` are bytes on the disk that holds the data.
    """

    name: str
    role: Role = "unknown"
    instance: str = ""
    lineage: str = ""
    version: str = ""
    branches: tuple[Branch, ...] = ()
    durable: Position | None = None
    applied: Position | None = None
    complete_at: datetime | None = field(default=None, validator=aware)
    writable: bool | None = None
    upstream: str = ""
    receiving: bool = False
    free: int | None = None
    problem: str = ""
    findings: tuple[Finding, ...] = ()
    details: Mapping[str, Json] = field(factory=dict)

    @property
    def reachable(self) -> bool:
        """Whether somebody could look."""
        return not self.problem

    @property
    def reached(self) -> Position | None:
        """Up to where it has anything, on disk or not yet: nothing that it has acknowledged lies after that."""
        known = [each for each in (self.durable, self.applied) if each is not None]
        return max(known, key=lambda each: each.offset, default=None)

    def __str__(self) -> str:
        if self.problem:
            return f"{self.name}: not reachable: {self.problem}"
        receives = f", receives from {self.upstream or 'somebody else'}" if self.receiving else ""
        return f"{self.name}: {self.role} at {self.durable}{receives}"


def some_of(members: Sequence[str], needed: int) -> str:
    """Write for a person who has to have a write: `b`, `b and c`, `1 of b, c`, `no other member`."""
    if not needed:
        return "no other member"
    return " and ".join(members) if needed >= len(members) else f"{needed} of {', '.join(members)}"


@frozen(kw_only=True)
class SyncSet(Shown):
    """Who must have a write before it is acknowledged: `needed` of `members`, any of them or the first that are there.

    With `needed` 0 nobody has to. It was so at the moment `at`, on the primary itself or by a record of it, and it had
    been so since the primary was at `since`: who has less may lack what was acknowledged under another set. The primary
    last read its settings at `loaded_at`, by the clock of `at` where it says so itself; None where nobody can tell.
    """

    members: tuple[str, ...]
    needed: int
    at: datetime = field(validator=aware)
    since: Position | None = None
    recorded: bool = False
    loaded_at: datetime | None = field(default=None, validator=aware)

    def __str__(self) -> str:
        source = "as recorded at" if self.recorded else "as of"
        if not self.needed:
            return f"no synchronous standby, {source} {when(self.at)}"
        return f"{some_of(self.members, self.needed)}, {source} {when(self.at)}"


@frozen(kw_only=True)
class Sighting(Shown):
    """What somebody saw of the primary from where he stands: `alive`, or None where he cannot tell."""

    vantage: str
    alive: bool | None
    text: str

    def __str__(self) -> str:
        word = {True: "alive", False: "dead", None: "cannot tell"}[self.alive]
        return f"{self.vantage}: {word}: {self.text}"


@frozen(kw_only=True)
class Sample(Shown):
    """What a state recorder saw of a group at a moment, kept where it outlives the primary.

    `position` is how far the primary had come. All that was acknowledged by `at`, by the recorder's clock, is not after
    it.
    """

    group: str
    at: datetime = field(validator=aware)
    primary: str
    position: Position | None = None
    sync: SyncSet | None = None
    members: tuple[MemberFacts, ...] = ()


@frozen(kw_only=True)
class GroupFacts(Shown):
    """A group as it is now.

    `primary` is who takes writes, or did last by what the members say; empty where nobody can tell. `owner` is a
    manager that fails the group over by itself, such as Patroni. With `elects` the group chooses its primary itself.
    """

    group: str
    system: str
    at: datetime = field(validator=aware)
    members: tuple[MemberFacts, ...]
    primary: str = ""
    sync: SyncSet | None = None
    sightings: tuple[Sighting, ...] = ()
    owner: str = ""
    elects: bool = False
    findings: tuple[Finding, ...] = ()
    details: Mapping[str, Json] = field(factory=dict)

    def member(self, name: str) -> MemberFacts | None:
        """Return what was seen of one member; None if there is none of that name."""
        return next((each for each in self.members if each.name == name), None)

    def __str__(self) -> str:
        head = f"{self.group} ({self.system}), primary: {self.primary or 'unknown'}"
        lines = [head, *map(str, self.members), *map(str, self.sightings)]
        if self.sync is not None:
            lines.append(f"acknowledged by {self.sync}")
        if self.owner:
            lines.append(f"owned by {self.owner}")
        return "\n  ".join([*lines, *map(str, self.findings)])


@frozen(kw_only=True)
class RouteFacts(Shown):
    """One way that clients take, as it is now.

    `to` is the member it leads to, None where it leads nowhere or elsewhere; `held`: clients wait. `version` is what a
    switch compares, empty if nobody could look. `instance` is what a real connection through it has reached
    (`MemberFacts.instance`; empty: none), and `writable` whether that took a write. With `follows` the clients find the
    primary themselves: it holds nobody.
    """

    route: str
    to: str | None
    version: str
    held: bool = False
    follows: bool = False
    instance: str = ""
    writable: bool | None = None
    findings: tuple[Finding, ...] = ()
    details: Mapping[str, Json] = field(factory=dict)

    @property
    def reachable(self) -> bool:
        """Whether somebody could look."""
        return bool(self.version)

    def __str__(self) -> str:
        words = "clients wait" if self.held else f"clients go to {self.to or 'nobody known'}"
        return f"{self.route}: {words}"


@frozen(kw_only=True)
class Fence(Shown):
    """That a member cannot write, since `at`: `proven`, left to somebody else (`delegated`), or `waived` by name.

    Nothing was acknowledged by that member after `at`. `end`, where the fence can tell, is a place in its history that
    nothing acknowledged lies after: it stopped in order there. `evidence` says what proves it.
    """

    member: str
    kind: FenceKind
    epoch: int
    at: datetime = field(validator=aware)
    end: Position | None = None
    evidence: str

    def __str__(self) -> str:
        return f"{self.member} fenced ({self.kind}): {self.evidence}"
