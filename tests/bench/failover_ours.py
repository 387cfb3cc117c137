"""Trials of our own failover and switchover, by the functions that are called on the day."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

from attrs import define, field, frozen

from failover_rig import HOSTS, POOL, Rig, Seen
from resilience.concurrency import stop_tasks
from resilience.model.errors import StalePlan
from resilience.model.failover import FailoverPlan, FailoverPolicy, FailoverReport, Loss
from resilience.operations.failback import failback
from resilience.operations.failover import failover
from resilience.operations.group import FailoverGroup
from resilience.operations.plan_failover import plan_failback, plan_failover
from resilience.operations.recorder import StateRecorder
from resilience.operations.switchover import switchover
from resilience.pgbouncer import PgBouncerSwitch
from resilience.postgres import LocalFencer, MultiHostRoute, PostgresPromoter
from resilience.stores import LocalStore

NAME = "ours"
SWITCHOVER = "switchover"
ALLOWED = timedelta(seconds=30)
"""What the policy lets be lost where writes are asynchronous: the bound is under test, not the refusal."""
RECORDED_EVERY = timedelta(seconds=0.5)
READY_SECONDS = 30.0
NOTICED_SECONDS = 20.0
SERVED_SECONDS = 30.0
REFUSED_AT_MOST = 4
LOOK_AGAIN = 0.02
ON_SECONDS = 0.3
ME = "tests/bench/failover.py"


@frozen(kw_only=True)
class Trial:
    """One trial. Seconds are from the decision to the first acknowledged write on the new primary, by route.

    `served_s` through PgBouncer and `hosts_s` for clients that know all hosts; `noticed_s` is from the fault to a plan
    without blockers, `gap_s` from the fault to that first write, with nobody who had to think. `steps` are seconds by
    step. `wrong` says what must not have been.
    """

    contender: str
    mode: str
    fault: str
    ending: str = ""
    noticed_s: float | None = None
    served_s: float | None = None
    hosts_s: float | None = None
    gap_s: float | None = None
    report_s: float | None = None
    failback_s: float | None = None
    acknowledged: int = 0
    lost: int = 0
    lost_from_s: float | None = None
    bound_s: float | None = None
    loss: str = ""
    two_writers: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    failed: int = 0
    pause_s: float | None = None
    steps: dict[str, float] = field(factory=dict)
    wrong: tuple[str, ...] = ()
    synchronous: bool = True


@define
class Ours:
    """Fails over a rig again and again."""

    rig: Rig
    group: FailoverGroup
    recorder: StateRecorder
    chance: random.Random

    async def ready(self) -> None:
        """Wait until all members receive, the right ones are waited for, and that is on record. Raises RuntimeError."""
        names, deadline, facts = set(self.rig.group.servers), time.monotonic() + READY_SECONDS, None
        while time.monotonic() < deadline:
            facts = await self.group.promoter.survey()
            receiving = {each.name for each in facts.members if each.receiving}
            last, sync = self.recorder.last, facts.sync
            recorded = last is not None and last.primary == facts.primary
            known = last.sync if last is not None and recorded else None
            waits = sync is not None and bool(sync.needed) == self.rig.mode.synchronous
            same = sync and known and (set(sync.members), sync.needed) == (set(known.members), known.needed)
            if waits and same and receiving == names - {facts.primary}:
                self.rig.primary = facts.primary
                return
            await asyncio.sleep(LOOK_AGAIN)
        raise RuntimeError(f"the group is not whole: {facts}; {self.recorder.last}; {self.recorder.problem}")

    async def fail(self, fault: str) -> Trial:
        """Have the primary fail, fail over, look what clients saw of it, and bring the old one back."""
        await self.ready()
        await asyncio.sleep(self.chance.uniform(0.05, 0.4))
        old, before, refused = self.rig.primary, len(self.rig.clients.acknowledged()), list[str]()
        began = time.time()
        self._strike(old, fault)
        while True:
            plan, noticed = await self._noticed(), time.time()
            disturbing = asyncio.create_task(self._disturb(old, fault, later=0.3 * len(refused)))
            try:
                decided = time.time()
                report = await failover(self.group, plan, confirm=plan.confirmation, actor=ME, reason=fault)
                ended = time.time()
                if report.promoted is not None:
                    promoted = report.promoted
                    break
                refused.append(f"stopped: {report.why} ({'; '.join(report.loss.evidence)})")
            except StalePlan as error:
                refused.append(error.what)
            finally:
                await disturbing
            # It came back before anybody was promoted: it is the primary again, and has to fail again.
            if len(refused) == REFUSED_AT_MOST:
                raise RuntimeError(f"it was refused again and again: {refused}")
            self._heal(old, fault)
            await self.ready()
            began = time.time()
            self._strike(old, fault)
        self.rig.primary = report.primary
        pool = await self._served(POOL, decided, promoted.instance)
        hosts = await self._served(HOSTS, decided, promoted.instance)
        await asyncio.sleep(ON_SECONDS)
        self._heal(old, fault)
        failing_back = time.monotonic()
        lost, wrong = self.rig.missing(), []
        await self._failed_back()
        took = time.monotonic() - failing_back
        wrong += list(_exceeded(lost, report.loss, synchronous=self.rig.mode.synchronous))
        wrong += [] if report.ending == "completed" else [f"it ended as {report.ending}: {report.why}"]
        return Trial(
            contender=NAME,
            mode=self.rig.mode.name,
            fault=fault,
            ending=report.ending,
            noticed_s=noticed - began,
            served_s=pool.answered - decided,
            hosts_s=hosts.answered - decided,
            gap_s=pool.answered - began,
            report_s=ended - decided,
            failback_s=took,
            acknowledged=len(self.rig.clients.acknowledged()) - before,
            lost=len(lost),
            lost_from_s=_seconds(report, min((each.answered for each in lost), default=None)),
            bound_s=_seconds(report, report.loss.since.timestamp() if report.loss.since else None),
            loss=str(report.loss),
            two_writers=tuple(self.rig.clients.two_writers()),
            refused=tuple(refused),
            steps=steps_of(report),
            wrong=tuple(wrong),
            synchronous=self.rig.mode.synchronous,
        )

    async def switch_over(self) -> Trial:
        """Give the role away under load and look what clients saw of it."""
        await self.ready()
        await asyncio.sleep(self.chance.uniform(0.05, 0.4))
        before, began = len(self.rig.clients.acknowledged()), time.time()
        report = await switchover(self.group, actor=ME, reason="under load")
        ended = time.time()
        if report.promoted is None:
            raise RuntimeError(f"nobody was promoted: {report}")
        self.rig.primary = report.primary
        pool = await self._served(POOL, began, report.promoted.instance)
        await asyncio.sleep(ON_SECONDS)
        lost = self.rig.missing()
        seen = [each for each in self.rig.clients.look() if each.route == POOL and each.answered > began]
        writes = [each for each in seen if each.kind == "w"]
        return Trial(
            contender=SWITCHOVER,
            mode=self.rig.mode.name,
            fault="none",
            ending=report.ending,
            served_s=pool.answered - began,
            report_s=ended - began,
            acknowledged=len(self.rig.clients.acknowledged()) - before,
            lost=len(lost),
            loss=str(report.loss),
            two_writers=tuple(self.rig.clients.two_writers()),
            failed=len([each for each in seen if each.kind == "f"]),
            pause_s=max(each.answered - each.sent for each in writes),
            steps=steps_of(report),
            wrong=tuple(f"{each}" for each in seen if each.kind == "f"),
            synchronous=True,
        )

    def _strike(self, name: str, fault: str) -> None:
        if fault.startswith("kill"):
            self.rig.kill(name)
        elif fault.startswith("hang"):
            self.rig.hang(name)
        elif self.rig.network is not None:
            self.rig.network.tell("cut", self.rig.group.servers[name])

    async def _disturb(self, name: str, fault: str, *, later: float) -> None:
        """Have the old primary come back at some moment of the failover, as far as it can."""
        await asyncio.sleep(later + self.chance.uniform(0.0, 0.4 if fault.startswith("kill") else 0.9))
        if fault == "kill and restart":
            server = self.rig.group.servers[name]
            await asyncio.to_thread(
                server.run, "pg_ctl", "-D", str(server.data), "-l", str(server.log), "-W", "start", check=False
            )
        elif fault == "hang and wake":
            self.rig.wake(name)
        elif fault == "cut and mend":
            self._mend(name)

    def _heal(self, name: str, fault: str) -> None:
        if fault.startswith("hang"):
            self.rig.wake(name)
        elif fault.startswith("cut"):
            self._mend(name)

    def _mend(self, name: str) -> None:
        if self.rig.network is not None:
            self.rig.network.tell("mend", self.rig.group.servers[name])

    async def _noticed(self) -> FailoverPlan:
        """Plan until nothing stands in the way; at first nobody knows for sure that the primary is dead."""
        policy = FailoverPolicy(max_loss=timedelta(0) if self.rig.mode.synchronous else ALLOWED)
        deadline = time.monotonic() + NOTICED_SECONDS
        while (plan := await plan_failover(self.group, policy=policy)).blockers:
            if time.monotonic() > deadline:
                raise RuntimeError(f"no failover could be planned: {plan}")
            await asyncio.sleep(LOOK_AGAIN)
        return plan

    async def _served(self, route: str, after: float, by: str) -> Seen:
        deadline = time.monotonic() + SERVED_SECONDS
        while (found := self.rig.clients.first(route, after=after, by=by)) is None:
            if time.monotonic() > deadline:
                raise RuntimeError(f"nothing was acknowledged by {by} on {route}: {self.rig.clients.seen[-5:]}")
            await asyncio.sleep(LOOK_AGAIN)
        return found

    async def _failed_back(self) -> None:
        plan = await plan_failback(self.group)
        if plan.blockers:
            raise RuntimeError(f"it cannot be brought back: {plan}")
        report = await failback(self.group, plan, confirm=plan.confirmation, actor=ME, reason="the next trial")
        if report.ending != "completed":
            raise RuntimeError(f"it was not brought back: {report}")


@asynccontextmanager
async def ours(rig: Rig, chance: random.Random) -> AsyncIterator[Ours]:
    """Have a rig's group recorded, and failed over, until leaving."""
    members = rig.members()
    hosts = ",".join("127.0.0.1" for _ in members)
    ports = ",".join(str(rig.port(member.name)) for member in members)
    known = f"host={hosts} port={ports} user=postgres dbname=postgres"
    switch = PgBouncerSwitch(
        POOL, console=rig.pool.console(), through=rig.pool.dsn("bench"), databases=["bench"], members=rig.places
    )
    route = MultiHostRoute(HOSTS, dsn=f"{known} target_session_attrs=read-write connect_timeout=2", members=rig.places)
    async with PostgresPromoter("bench", members=members) as promoter:
        group = FailoverGroup(
            "bench",
            promoter=promoter,
            fencers=[LocalFencer(members)],
            switches=[switch, route],
            journal=LocalStore(rig.folder / "journal"),
        )
        recorder = StateRecorder(group, every=RECORDED_EVERY)
        recording = asyncio.create_task(recorder.run())
        try:
            yield Ours(rig, group, recorder, chance)
        finally:
            await stop_tasks([recording])


def steps_of(report: FailoverReport) -> dict[str, float]:
    """Return the seconds of each kind of step; of several at once the longest."""
    found: dict[str, float] = {}
    for each in report.steps:
        name = f"{each.step.kind} {each.step.subject}" if each.step.kind == "switch" else each.step.kind
        found[name] = max(found.get(name, 0.0), each.seconds)
    return found


def _exceeded(lost: list[Seen], loss: Loss, *, synchronous: bool) -> list[str]:
    """Say where more is lost than the report says, or anything at all where nothing may be."""
    if not lost:
        return []
    # An answer that was on its way when the primary was fenced arrives later: so it counts when the last was sent.
    first, last = min(each.answered for each in lost), max(each.sent for each in lost)
    truth = f"{len(lost)} writes are lost, acknowledged from {moment(first)} on, the last sent at {moment(last)}"
    if synchronous:
        return [truth]
    if loss.kind == "unknown":
        return []
    since = loss.since.timestamp() if loss.since else first + 1
    until = loss.until.timestamp() if loss.until else last + 1
    return [] if since <= first and last <= until else [f"{truth}, and the report says: {loss}"]


def _seconds(report: FailoverReport, since: float | None) -> float | None:
    """Return how long before the fence something was."""
    return None if since is None or report.loss.until is None else report.loss.until.timestamp() - since


def moment(at: float) -> str:
    """Write a time of the clients' clock."""
    return datetime.fromtimestamp(at).strftime("%H:%M:%S.%f")  # noqa: DTZ006
