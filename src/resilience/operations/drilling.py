"""One drill while it is held: everything it does to the real system, and what it finds out on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import TypeAlias

from attrs import define, field

from resilience.concurrency import finish
from resilience.model.drills import CanaryFacts, Criterion, DrillRecord, DrillReport, FaultProof, Served
from resilience.model.errors import Interrupted, Refused, ResilienceError
from resilience.model.events import Notifier
from resilience.model.failover import FailoverPlan, FailoverPolicy, FailoverReport, Phase
from resilience.model.findings import Finding, blocker
from resilience.model.show import as_span
from resilience.planning.drills import elected_instead, judge, ready
from resilience.primitives import Canary, Fault, Watching

from .drill_clean_up import brought_back
from .drill_records import DrillRecords
from .failover import failover
from .group import FailoverGroup
from .plan_failover import plan_failover

LOOK_AGAIN_SECONDS = 0.02
CLEAN_UP_SECONDS = 120.0

Confirm: TypeAlias = Callable[[FailoverPlan], Awaitable[str]]
"""Shows a plan to a person and returns the words that were typed."""


def refuse(findings: Iterable[Finding], subject: str) -> None:
    """Raise Refused if there are any, with all of them."""
    found = list(findings)
    if found:
        text = "; ".join(f"{each.subject}: {each.text}" for each in found)
        raise Refused(text, operation="drill", subject=subject, hint=found[0].hint)


@define(kw_only=True)
class Drilling:
    """One drill, and what it has found out so far."""

    group: FailoverGroup
    fault: Fault
    canary: Canary
    criterion: Criterion
    policy: FailoverPolicy
    confirm: Confirm | None
    notice_seconds: float
    watch_seconds: float
    clock: Callable[[], datetime]
    told: Notifier
    record: DrillRecord
    proof: FaultProof | None = field(default=None, init=False)
    noticed: datetime | None = field(default=None, init=False)
    failed_over: FailoverReport | None = field(default=None, init=False)
    elected: str = field(default="", init=False)
    served: Served | None = field(default=None, init=False)
    seen: CanaryFacts | None = field(default=None, init=False)
    cleaned: list[str] = field(factory=list, init=False)
    left: list[str] = field(factory=list, init=False)
    findings: list[Finding] = field(factory=list, init=False)

    async def run(self) -> DrillReport:
        """Hold it; see `drill`."""
        refuse(ready(await self.group.promoter.survey(), subject=self.fault.subject), self.group.name)
        records = DrillRecords(self.group.journal, self.group.name)
        try:
            await records.began(self.record)
        except asyncio.CancelledError:
            await finish(self._end(records))  # the record may be there
            raise
        try:
            try:
                await self._write_and_fail()
            except ResilienceError as error:
                self._blocked(str(error))
        finally:
            # Whatever has happened, also a cancellation: nothing stays broken without somebody having tried.
            report = await finish(self._end(records))
        return report

    async def _write_and_fail(self) -> None:
        async with self.canary.writing() as watching:
            (first, *_) = watching.seen.served
            self._tell(f"{self.canary.name} writes, and {first.instance} acknowledges")
            try:
                async with self._healing():
                    await self._fail_over(watching, first)
                self.cleaned.append(f"healed: {self.fault.name}")
                await asyncio.sleep(self.watch_seconds)
            finally:
                self.seen = watching.seen
        self.seen = await watching.examine()

    @asynccontextmanager
    async def _healing(self) -> AsyncIterator[None]:
        async with self.fault.inject() as proof:
            self.proof = proof
            self._tell(str(proof))
            yield

    async def _fail_over(self, watching: Watching, first: Served) -> None:
        try:
            plan = await self._noticed()
            if plan is not None:
                await self._carry_out(plan)
        except Interrupted as error:
            self._blocked(str(error), hint="resume(group) finishes the failover")
        except ResilienceError as error:
            self._blocked(str(error))
        over = self.failed_over is not None or self.elected
        waited = (self.clock() - self.proof.at).total_seconds() if self.proof else 0.0
        rest = self.criterion.rto.total_seconds() - waited if over else 0.0
        self.served = await watching.another(than=first.instance, seconds=max(rest, 0.01))

    async def _carry_out(self, plan: FailoverPlan) -> None:
        words = plan.confirmation if self.confirm is None else await self.confirm(plan)
        why = f"drill {self.record.id}: {self.fault.name}"
        failed_at = self.proof.at if self.proof else None
        self.failed_over = await failover(
            self.group,
            plan,
            confirm=words,
            failed_at=failed_at,
            actor=self.record.actor,
            reason=why,
            observer=self.told.observer,
            clock=self.clock,
        )
        self._tell(f"the failover is {self.failed_over.ending}")

    async def _noticed(self) -> FailoverPlan | None:
        """Plan a failover until one can be carried out: what blocks it at first is that the primary may be alive.

        None if the group has elected another by itself before that.
        """
        until = self.clock() + timedelta(seconds=self.notice_seconds)
        while True:
            plan = await plan_failover(self.group, policy=self.policy, clock=self.clock)
            if not plan.blockers:
                self.noticed = plan.made_at
                return plan
            if elected := elected_instead(plan.facts, self.fault.subject):
                self.noticed, self.elected = plan.made_at, elected
                text = f"the group has elected {elected} by itself, before a failover was planned"
                self.findings.append(Finding(severity="note", subject="failover", text=text))
                return None
            if self.clock() > until:
                raise Refused(
                    f"no failover could be planned within {as_span(self.notice_seconds)}: {plan.blockers[0]}",
                    operation="drill",
                    subject=self.group.name,
                )
            await asyncio.sleep(LOOK_AGAIN_SECONDS)

    async def _end(self, records: DrillRecords) -> DrillReport:
        """Clean up, judge, and keep the report."""
        await self._clean(f"heal: {self.fault.name}", self.fault.heal)
        report = self.failed_over
        primary = report.primary if report is not None and report.ending == "completed" else self.elected
        if self.record.comes_back and primary:
            await self._clean(f"{self.fault.subject} is behind {primary} again", self._rejoin)
        await self._clean(f"removed what {self.canary.name} wrote", self.canary.clean)
        drilled = self._report()
        if not self.left:
            await records.ended(drilled)
        return drilled

    async def _rejoin(self) -> None:
        why = f"drill {self.record.id}: clean up"
        member, by = self.fault.subject, self.record.actor
        if left := await brought_back(self.group, member, self.policy, actor=by, reason=why, clock=self.clock):
            raise Refused(left, operation="failback", subject=self.fault.subject)

    async def _clean(self, what: str, effect: Callable[[], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(CLEAN_UP_SECONDS):
                await effect()
            if not what.startswith("heal: "):
                self.cleaned.append(what)
        except Exception as error:  # noqa: BLE001  # whatever it is, the rest is cleaned up all the same
            self.left.append(what)
            self._blocked(f"not cleaned up: {what}: {said(error)}", hint="resume_drill() tries again")

    def _report(self) -> DrillReport:
        now = self.clock()
        seen = self.seen or CanaryFacts(
            canary=self.canary.name, began_at=now, ended_at=now, acknowledged=0, missing=None
        )
        found = judge(
            self.criterion,
            proof=self.proof,
            served=self.served,
            canary=seen,
            failover=self.failed_over,
            elected=bool(self.elected),
        )
        findings = (*self.findings, *found)
        rto = (self.served.first - self.proof.at).total_seconds() if self.served and self.proof else None
        return DrillReport(
            id=self.record.id,
            group=self.group.name,
            system=self.group.promoter.system,
            ending="failed" if any(each.severity == "blocker" for each in findings) else "passed",
            criterion=self.criterion,
            proof=self.proof,
            rto=rto,
            phases=self._phases(),
            rpo=seen.lost,
            canary=self.seen,
            failover=self.failed_over,
            cleaned=tuple(self.cleaned),
            began_at=self.record.began_at,
            ended_at=now,
            actor=self.record.actor,
            reason=self.record.reason,
            findings=findings,
        )

    def _phases(self) -> tuple[tuple[Phase, float], ...]:
        measured = self.failed_over.phases if self.failed_over is not None else ()
        if self.proof is None or self.noticed is None or any(phase == "detection" for phase, _ in measured):
            return measured
        return (("detection", (self.noticed - self.proof.at).total_seconds()), *measured)

    def _blocked(self, text: str, *, hint: str = "") -> None:
        self.findings.append(blocker("drill", text, hint))

    def _tell(self, text: str) -> None:
        self.told.tell("progress", text)


def said(error: Exception) -> str:
    """Say in one line what went wrong."""
    return str(error) if isinstance(error, ResilienceError) else f"{type(error).__name__}: {error}".rstrip(": ")
