"""The checklists before and after a failover (R37, R38), line by line: each is a `Check` for a FailoverGroup.

What only the caller can know are hooks: who approved, who was told, whether the business works.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import datetime, timedelta
from typing import ClassVar, TypeVar

from attrs import field, frozen

from resilience.model.approvals import Approval
from resilience.model.errors import TimedOut
from resilience.model.failover import FailoverPlan
from resilience.model.findings import Finding, Severity
from resilience.model.moments import aware, utc_now
from resilience.planning import checklist
from resilience.primitives import Archiver, ObjectStore, Promoter, TrafficSwitch

from .checklist import looked
from .coverage import coverage
from .drill_records import DrillRecords
from .group import FailoverGroup

SECONDS = 10.0
"""How long one line may take that asks somebody: a failover waits for the slowest."""
HALF_A_YEAR = timedelta(days=183)
Found = tuple[Finding, ...]
T = TypeVar("T")
Clock = Callable[[], datetime]


async def preflight(group: FailoverGroup, plan: FailoverPlan) -> Found:
    """Look at the group's checklist before a failover as `failover` will; a blocker would stop it. Writes nothing."""
    return await looked(group.before, plan, unable="blocker")


@frozen(kw_only=True)
class PrimaryUnrecoverable:
    """Before: the primary is gone, by all that could be seen of it."""

    name: ClassVar[str] = "primary unrecoverable"
    system: ClassVar[str] = "failover"

    async def look(self, plan: FailoverPlan) -> Found:
        """Look; see `Check.look`."""
        return tuple(checklist.unrecoverable(plan))


@frozen(kw_only=True)
class Approved:
    """Before: those whose roles the policy names have approved this very plan (manager, DBA, CTO).

    `given` returns the approvals that are on record, from wherever they are kept.
    """

    given: Callable[[FailoverPlan], Awaitable[Collection[Approval]]]
    seconds: float = SECONDS
    name: ClassVar[str] = "approvals"
    system: ClassVar[str] = "failover"

    async def look(self, plan: FailoverPlan) -> Found:
        """Look; see `Check.look`."""
        given = await _within(self.seconds, self.given(plan), self.name) if plan.policy.approvals else ()
        return tuple(checklist.approved(plan, given, plan.policy.approvals))


@frozen(kw_only=True)
class Notified:
    """Before or after: people are told (DevOps, SRE, support). `tell` tells them and returns whom it has reached.

    It is called once for each look, so it should not mind being called again.
    """

    who: Collection[str] = ("DevOps", "SRE", "support")
    tell: Callable[[FailoverPlan], Awaitable[Collection[str]]]
    severity: Severity = "warning"
    seconds: float = SECONDS
    name: ClassVar[str] = "notices"
    system: ClassVar[str] = "failover"

    async def look(self, plan: FailoverPlan) -> Found:
        """Look; see `Check.look`."""
        try:
            told = await _within(self.seconds, self.tell(plan), self.name)
        except Exception as error:  # noqa: BLE001  # nobody is kept from a failover because a messenger fails
            text = f"nobody could be told: {error}"
            return (Finding(severity=self.severity, subject=self.name, text=text, hint="tell them by telephone"),)
        return tuple(checklist.reached(self.who, told, self.severity))


@frozen(kw_only=True)
class LagWithin:
    """Before: the candidate lags by less than `limit`, and lacks at most `behind` bytes of what is known."""

    limit: timedelta = timedelta(minutes=15)
    behind: int = 16 << 20
    name: ClassVar[str] = "lag"
    system: ClassVar[str] = "failover"

    async def look(self, plan: FailoverPlan) -> Found:
        """Look; see `Check.look`."""
        return tuple(checklist.lag(plan, limit=self.limit, behind=self.behind))


@frozen(kw_only=True)
class StandbyHealthy:
    """Before: the candidate receives, has applied what it has, and runs what the primary runs."""

    name: ClassVar[str] = "standby health"
    system: ClassVar[str] = "failover"

    async def look(self, plan: FailoverPlan) -> Found:
        """Look; see `Check.look`."""
        return tuple(checklist.healthy(plan))


@frozen(kw_only=True)
class DiskSpace:
    """Before: the candidate's disk has `needed` bytes free."""

    needed: int = 1 << 30
    name: ClassVar[str] = "disk space"
    system: ClassVar[str] = "failover"

    async def look(self, plan: FailoverPlan) -> Found:
        """Look; see `Check.look`."""
        return tuple(checklist.room(plan, needed=self.needed))


@frozen(kw_only=True)
class FreshRecoveryPoint:
    """Before: the archive can restore `target` to a moment not longer ago than the policy says, or else than `within`.

    That it really can be restored, a restore has shown within `shown_within`. The archive's catalogue is read.
    """

    archive: Archiver
    target: str
    within: timedelta = timedelta(hours=1)
    shown_within: timedelta = timedelta(days=8)
    severity: Severity = "blocker"
    seconds: float = SECONDS
    clock: Clock = utc_now
    name: ClassVar[str] = "recovery point"
    system: ClassVar[str] = "failover"

    async def look(self, plan: FailoverPlan) -> Found:
        """Look; see `Check.look`."""
        covered = await _within(self.seconds, coverage(self.archive, self.target), self.name)
        measured = await _within(self.seconds, self.archive.measured(self.target), self.name)
        return tuple(
            checklist.recoverable(
                covered,
                measured,
                now=self.clock(),
                within=plan.policy.recovery_point_age or self.within,
                shown_within=self.shown_within,
                severity=self.severity,
            )
        )


@frozen(kw_only=True)
class DrillOnRecord:
    """Before: a drill of this group has passed `within` so long a time; `store` is where its drills are recorded."""

    store: ObjectStore
    within: timedelta = HALF_A_YEAR
    seconds: float = SECONDS
    clock: Clock = utc_now
    name: ClassVar[str] = "drill"
    system: ClassVar[str] = "failover"

    async def look(self, plan: FailoverPlan) -> Found:
        """Look; see `Check.look`."""
        reports = await _within(self.seconds, DrillRecords(self.store, plan.group).reports(), self.name)
        return tuple(checklist.drilled(reports, now=self.clock(), within=self.within))


@frozen(kw_only=True)
class RollbackReady:
    """Before: there is a way back. `fenceable` are the members that somebody can fence (`FailoverGroup.fenceable`)."""

    fenceable: Collection[str]
    name: ClassVar[str] = "rollback"
    system: ClassVar[str] = "failover"

    async def look(self, plan: FailoverPlan) -> Found:
        """Look; see `Check.look`."""
        return tuple(checklist.reversible(plan, self.fenceable))


@frozen(kw_only=True)
class RunbookCurrent:
    """Before: somebody has `reviewed` the runbook `within` so long a time."""

    reviewed: datetime = field(validator=aware)
    within: timedelta = HALF_A_YEAR
    clock: Clock = utc_now
    name: ClassVar[str] = "runbook"
    system: ClassVar[str] = "failover"

    async def look(self, plan: FailoverPlan) -> Found:  # noqa: ARG002  # the same for every plan
        """Look; see `Check.look`."""
        return tuple(checklist.current(self.reviewed, now=self.clock(), within=self.within))


@frozen(kw_only=True)
class DatabaseWritable:
    """After: exactly one member takes writes, and it is another than before."""

    promoter: Promoter
    seconds: float = SECONDS
    name: ClassVar[str] = "database writable"
    system: ClassVar[str] = "failover"

    async def look(self, plan: FailoverPlan) -> Found:
        """Look; see `Check.look`."""
        return tuple(checklist.writable(plan, await _within(self.seconds, self.promoter.survey(), self.name)))


@frozen(kw_only=True)
class ApplicationsConnected:
    """After: a connection through every route reaches the new primary and may write."""

    promoter: Promoter
    switches: Sequence[TrafficSwitch]
    seconds: float = SECONDS
    name: ClassVar[str] = "applications connected"
    system: ClassVar[str] = "failover"

    async def look(self, plan: FailoverPlan) -> Found:  # noqa: ARG002  # what is there now counts
        """Look; see `Check.look`."""
        facts = await _within(self.seconds, self.promoter.survey(), self.name)
        routes = [await _within(self.seconds, switch.survey(), self.name) for switch in self.switches]
        return tuple(checklist.connected(facts, routes))


@frozen(kw_only=True)
class LogConsistent:
    """After: the new history goes on from the old one, standbys are on it, and so is the archive, if one is given."""

    promoter: Promoter
    archive: Archiver | None = None
    target: str = ""
    seconds: float = SECONDS
    name: ClassVar[str] = "log consistent"
    system: ClassVar[str] = "failover"

    async def look(self, plan: FailoverPlan) -> Found:
        """Look; see `Check.look`."""
        facts = await _within(self.seconds, self.promoter.survey(), self.name)
        archive, target = self.archive, self.target or plan.group
        covered = None if archive is None else await _within(self.seconds, coverage(archive, target), self.name)
        return tuple(checklist.consistent(plan, facts, covered))


@frozen
class Asserted:
    """Before or after: what only the caller can check (key data, business functions, whether alerts are quiet).

    `ask` returns what is wrong, in a sentence; an empty string says that nothing is.
    """

    name: str
    ask: Callable[[FailoverPlan], Awaitable[str]]
    severity: Severity = field(default="blocker", kw_only=True)
    hint: str = field(default="", kw_only=True)
    seconds: float = field(default=SECONDS, kw_only=True)
    system: ClassVar[str] = "failover"

    async def look(self, plan: FailoverPlan) -> Found:
        """Look; see `Check.look`."""
        wrong = await _within(self.seconds, self.ask(plan), self.name)
        hint = self.hint or "whoever wrote this check knows what to do"
        return (Finding(severity=self.severity, subject=self.name, text=wrong, hint=hint),) if wrong else ()


async def _within(seconds: float, answer: Awaitable[T], name: str) -> T:
    """Await an answer for so long. Raises TimedOut."""
    try:
        async with asyncio.timeout(seconds):
            return await answer
    except TimeoutError as error:
        raise TimedOut(f"no answer within {seconds:g} s", operation="check", subject=name) from error
