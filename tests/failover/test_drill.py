"""A drill ends with the group whole, whatever happens in it, and never says more than it has seen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from attrs import define, evolve, field

from resilience.concurrency import stop_tasks
from resilience.model.drills import CanaryFacts, Criterion, DrillReport, FaultProof, LostWrite, Served
from resilience.model.errors import Refused, Unreachable
from resilience.model.failover import FailoverPlan
from resilience.model.json import from_json
from resilience.operations.drill import drill, drills
from resilience.operations.drill_clean_up import ABANDONED_AFTER, resume_drill
from resilience.operations.drill_clean_up import POLICY as DRILL
from resilience.operations.group import FailoverGroup
from resilience.operations.recorder import StateRecorder
from resilience.primitives import Watching
from resilience.reference import DRILLS
from resilience.stores import MemoryStore
from resilience.testing.cancellation import cancellations, nothing_left_running
from resilience.testing.faults import WatchedStore
from resilience.testing.groups import SimulatedGroup, nobody_watches
from resilience.testing.simulated import SimulatedFencer, SimulatedPromoter, SimulatedSwitch

CRITERION = Criterion(rto=timedelta(minutes=5))


class Died(BaseException):
    """The process of the drill is gone: nothing of it happens any more."""


@define
class Life:
    """The life of a process, which ends at point number `ends`: from then on nothing that it does has an effect."""

    ends: int = 0
    points: list[str] = field(factory=list)

    async def at(self, *point: str) -> None:
        self.points.append(" ".join(point))
        if self.ends and len(self.points) >= self.ends:
            raise Died


@define
class SimulatedFault:
    """Kills the primary of a simulated group; healed, it is started again, unless somebody has fenced it."""

    world: SimulatedGroup
    life: Life
    subject: str = "a"
    system: str = "simulated"
    proves: bool = True
    healed: int = 0

    @property
    def name(self) -> str:
        return f"kill of {self.subject}"

    @asynccontextmanager
    async def inject(self) -> AsyncIterator[FaultProof]:
        if not self.proves:
            raise Refused("nothing runs there", operation="inject", subject=self.subject)
        await self.life.at("before the fault")
        self.world.kill(self.subject)
        try:
            await self.life.at("after the fault")
            yield FaultProof(
                fault="kill", subject=self.subject, at=self.world.clock(), evidence="simulated: it is dead"
            )
        finally:
            await self.heal()

    async def heal(self) -> None:
        await self.life.at("heal")
        self.healed += 1
        self.world.revive(self.subject)


@define
class SimulatedCanary:
    """Writes to whoever a simulated switch leads to; `forgets` so many writes on the way."""

    world: SimulatedGroup
    switch: SimulatedSwitch
    life: Life
    name: str = "canary"
    system: str = "simulated"
    forgets: int = 0
    cleaned: int = 0
    stuck: bool = False

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Watching]:
        watching = SimulatedWatching(self, self.world.clock())
        watching.write()
        task = asyncio.create_task(watching.run())
        try:
            yield watching
        finally:
            await stop_tasks([task])

    async def clean(self) -> None:
        await self.life.at("clean")
        if self.stuck:
            raise Unreachable("nobody answers", operation="clean", subject=self.name)
        self.cleaned += 1


@define
class SimulatedWatching:
    """What a simulated canary has seen."""

    canary: SimulatedCanary
    began: datetime
    known: dict[str, tuple[datetime, str]] = field(factory=dict)
    servers: dict[str, Served] = field(factory=dict)
    missing: tuple[LostWrite, ...] | None = None

    @property
    def seen(self) -> CanaryFacts:
        return CanaryFacts(
            canary=self.canary.name,
            began_at=self.began,
            ended_at=self.canary.world.now,
            acknowledged=len(self.known),
            missing=self.missing,
            served=tuple(self.servers.values()),
        )

    async def run(self) -> None:
        while True:
            await asyncio.sleep(0)
            self.write()

    def write(self) -> None:
        world, switch = self.canary.world, self.canary.switch
        what, sent = f"canary {len(self.known)}", world.clock()
        if switch.to is None or switch.held or not world.write(switch.to, what):
            return
        instance, now = world.servers[switch.to].instance, world.clock()
        self.known[what] = now, instance
        before = self.servers.get(instance)
        self.servers[instance] = Served(
            instance=instance,
            first=before.first if before else now,
            last=now,
            last_sent=sent,
            writes=before.writes + 1 if before else 1,
        )

    async def another(self, *, than: str, seconds: float) -> Served | None:  # noqa: ARG002  # time is simulated
        for _ in range(100):
            for name, each in self.servers.items():
                if name != than:
                    return each
            await asyncio.sleep(0)
        return None

    async def examine(self) -> CanaryFacts:
        to = self.canary.switch.to or ""
        gone = list(self.known)[: self.canary.forgets] + self.canary.world.lost(to)
        self.missing = tuple(
            LostWrite(id=number, at=self.known[what][0], instance=self.known[what][1])
            for number, what in enumerate(gone)
            if what in self.known
        )
        return self.seen


@define
class Set:
    """A group to drill, and all that it takes."""

    world: SimulatedGroup
    group: FailoverGroup
    fault: SimulatedFault
    canary: SimulatedCanary
    store: WatchedStore
    life: Life

    async def drill(self, **more: object) -> DrillReport:
        self.world.watch = nobody_watches
        recorder = StateRecorder(self.group, clock=self.world.clock)  # another process
        await recorder.once()
        await recorder.once()
        self.world.watch = self.life.at
        wanted: dict[str, object] = {
            "criterion": CRITERION,
            "clock": self.world.clock,
            "watch_seconds": 0.0,
            "notice_seconds": 0.05,
            **more,
        }
        return await drill(self.group, fault=self.fault, canary=self.canary, **wanted)  # type: ignore[arg-type]

    async def keys(self) -> list[str]:
        return [info.key async for info in self.store.list("failover/orders/drills/")]


@pytest.fixture
def made() -> Callable[[], Set]:
    """Make a group of three, of which two have every write."""

    def make() -> Set:
        world = SimulatedGroup.of("a", "b", "c", sync=("b", "c"), needed=1)
        switch = SimulatedSwitch(world, "a")
        life = Life()
        store = WatchedStore(MemoryStore(), life.at)
        group = FailoverGroup(
            "orders",
            promoter=SimulatedPromoter(world),
            fencers=[SimulatedFencer(world, ("a", "b", "c"))],
            switches=[switch],
            journal=store,
            record=MemoryStore(),
        )
        return Set(world, group, SimulatedFault(world, life), SimulatedCanary(world, switch, life), store, life)

    return make


async def test_it_passes_where_nothing_is_lost_and_leaves_the_group_whole(made: Callable[[], Set]) -> None:
    held = made()
    async with nothing_left_running():
        report = await held.drill(actor="Ada", reason="half-yearly")
    assert report.passed, report
    assert report.proof is not None and report.proof.subject == "a"
    assert report.failover is not None and report.failover.ending == "completed"
    assert report.rto is not None and report.rpo == timedelta(0)
    assert dict(report.phases)["detection"] > 0
    assert report.cleaned == ("healed: kill of a", "a is behind b again", "removed what canary wrote")
    assert held.world.promotions == ["b"] and not held.world.two_writers
    facts = await held.group.promoter.survey()
    assert facts.primary == "b" and {each.role for each in facts.members} == {"primary", "standby"}
    assert from_json(report.to_json().encode(), DrillReport) == report
    assert await drills(held.group) == (report,)
    assert "PASSED" in str(report) and report.actor == "Ada"


async def test_what_is_to_be_cleaned_up_is_written_down_before_anything_fails(made: Callable[[], Set]) -> None:
    held = made()
    await held.drill()
    points = held.life.points
    kept = next(at for at, point in enumerate(points) if point.startswith("put") and point.endswith("began.json"))
    assert kept < points.index("before the fault")


async def test_where_it_cannot_be_written_down_nothing_fails(made: Callable[[], Set]) -> None:
    held = made()

    async def away(operation: str, key: str) -> None:
        if operation == "put":
            raise Unreachable("the store is away", operation=operation, subject=key)

    held.store.before = away
    with pytest.raises(Unreachable):
        await held.drill()
    assert held.world.servers["a"].alive and not held.world.effects


async def test_wherever_it_dies_the_next_finds_what_to_put_right(made: Callable[[], Set]) -> None:
    """Killed -9 at every point at which it does anything; afterwards another process cleans up."""
    ended = 0
    while True:
        ended += 1
        held = made()
        held.life.ends = ended
        try:
            await held.drill()
        except Died:
            pass
        else:
            break
        where = held.life.points[-1]
        held.life.ends = 0
        began = len([key for key in await held.keys() if key.endswith("began.json")])
        finished = len([key for key in await held.keys() if key.endswith("ended.json")])
        reports = await resume_drill(held.group, fault=held.fault, canary=held.canary, clock=held.world.clock)
        assert len(reports) == began - finished, where
        assert not held.world.two_writers, where
        assert len(held.world.writers()) == 1, (where, reports)
        assert len(held.world.promotions) <= 1, where
        if reports:
            assert reports[0].ending == "abandoned" and held.canary.cleaned, where
            facts = await held.group.promoter.survey()
            assert all(each.reachable for each in facts.members), (where, reports)
        assert await resume_drill(held.group, fault=held.fault, canary=held.canary) == ()
        held.fault.subject = (await held.group.promoter.survey()).primary
        assert (await held.drill()).passed, f"the next one, after {where}"
    assert ended > 30


async def test_a_cancelled_one_heals_and_cleans_up(made: Callable[[], Set]) -> None:
    async with nothing_left_running():
        for attempt in cancellations(step=9):
            held = made()
            await attempt(held.drill())
            assert not held.world.two_writers
            assert len(held.world.writers()) <= 1
            if any(key.endswith("began.json") for key in await held.keys()):
                assert held.fault.healed and held.canary.cleaned


async def test_an_earlier_one_that_may_still_run_stops_the_next(made: Callable[[], Set]) -> None:
    held = made()
    held.life.ends = 12
    with pytest.raises(Died):
        await held.drill()
    held.life.ends = 0
    assert any(key.endswith("began.json") for key in await held.keys())
    with pytest.raises(Refused, match="has not ended"):
        await held.drill()
    held.world.now += ABANDONED_AFTER
    await held.drill()
    abandoned, *_ = await drills(held.group)
    assert abandoned.ending == "abandoned"


async def test_only_what_was_begun_with_is_cleaned_up(made: Callable[[], Set]) -> None:
    held = made()
    held.life.ends = 12
    with pytest.raises(Died):
        await held.drill()
    held.life.ends = 0
    held.canary.name = "other"
    with pytest.raises(Refused, match="kill of a, watched by canary"):
        await resume_drill(held.group, fault=held.fault, canary=held.canary)


async def test_what_could_not_be_cleaned_up_fails_it_and_stays_on_record(made: Callable[[], Set]) -> None:
    held = made()
    held.canary.stuck = True
    report = await held.drill()
    assert not report.passed
    assert any("not cleaned up: removed what canary wrote" in each.text for each in report.findings)
    assert await drills(held.group) == ()
    held.canary.stuck = False
    (cleaned,) = await resume_drill(held.group, fault=held.fault, canary=held.canary, clock=held.world.clock)
    assert cleaned.ending == "abandoned" and held.canary.cleaned


async def test_a_group_that_is_not_whole_is_refused(made: Callable[[], Set]) -> None:
    held = made()
    held.world.kill("b")
    held.world.kill("c")
    with pytest.raises(Refused, match="no standby receives from the primary"):
        await held.drill()
    held = made()
    held.fault.subject = "b"
    with pytest.raises(Refused, match="the primary is a, and what would fail is b"):
        await held.drill()
    assert not held.world.effects and held.world.servers["b"].alive


async def test_outside_of_its_window_it_is_refused(made: Callable[[], Set]) -> None:
    held = made()
    schedule = DRILLS["database"]
    held.world.now = datetime(2026, 11, 21, 12, tzinfo=UTC)  # a Saturday
    with pytest.raises(Refused, match="outside of its window"):
        await held.drill(criterion=None, schedule=schedule)
    held.world.now = datetime(2026, 11, 24, 12, tzinfo=UTC)
    report = await held.drill(criterion=None, schedule=schedule)
    assert report.criterion == schedule.criterion
    with pytest.raises(TypeError, match="needs a criterion"):
        await held.drill(criterion=None)


async def test_without_a_proof_nothing_is_failed_over(made: Callable[[], Set]) -> None:
    held = made()
    held.fault.proves = False
    report = await held.drill()
    assert not report.passed and report.proof is None
    assert "nothing was made to fail" in str(report)
    assert not held.world.promotions


async def test_a_person_may_type_the_words_and_wrong_ones_fail_it(made: Callable[[], Set]) -> None:
    held = made()
    shown: list[FailoverPlan] = []

    async def mistyped(plan: FailoverPlan) -> str:
        shown.append(plan)
        return "DRILL 0"

    report = await held.drill(confirm=mistyped)
    assert not report.passed and shown
    assert any("do not confirm this plan" in each.text for each in report.findings)
    assert not held.world.promotions and held.world.writers() == ("a",)

    async def typed(plan: FailoverPlan) -> str:
        return plan.confirmation

    assert (await held.drill(confirm=typed)).passed


async def test_lost_writes_fail_it_also_where_the_failover_said_that_nothing_is_lost(made: Callable[[], Set]) -> None:
    held = made()
    held.canary.forgets = 1
    report = await held.drill()
    assert not report.passed
    texts = [each.text for each in report.findings]
    assert any("acknowledged writes" in text and "are lost, and none may be" in text for text in texts)
    assert any("more is lost than the failover said" in text for text in texts)


async def test_what_nobody_notices_fails_it(made: Callable[[], Set]) -> None:
    held = made()
    held.world.servers["a"].log.append("not replicated")
    report = await held.drill(policy=evolve(DRILL, witnesses=9), notice_seconds=0.01)
    assert not report.passed
    assert any("no failover could be planned within" in each.text for each in report.findings)
    assert held.world.writers() == ("a",)
