"""A simulated group on a stage: who dies when, which store fails, and what has to be true afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

from attrs import define, field

from resilience.journal import Journal
from resilience.model.errors import ResilienceError, Unreachable
from resilience.model.failover import FailoverPlan, FailoverPolicy, FailoverReport
from resilience.operations.failover import failover
from resilience.operations.group import FailoverGroup
from resilience.operations.plan_failover import plan_failback, planned
from resilience.operations.samples import Samples
from resilience.planning.failover import PlannedKind
from resilience.planning.transitions import Execution, folded
from resilience.primitives import Check, Chunks, ObjectInfo, ObjectStore
from resilience.stores import MemoryStore
from resilience.testing.groups import SimulatedGroup
from resilience.testing.simulated import SimulatedFencer, SimulatedPromoter, SimulatedSwitch


class Died(BaseException):
    """The process of the operator is gone: whatever comes next in it does not happen."""


@define
class Fate:
    """Dies at the point number `at`, and at every one after it: a dead process does nothing."""

    at: int = -1
    points: list[str] = field(factory=list)
    dead: bool = False

    async def __call__(self, point: str) -> None:
        await asyncio.sleep(0)
        if self.dead or len(self.points) == self.at:
            self.dead = True
            raise Died(point)
        self.points.append(point)


@define
class FatefulStore:
    """A store whose puts are points to die at, before and after; it can also fail, or lose its answers."""

    store: ObjectStore
    watch: Callable[[str], Awaitable[None]]
    gone: bool = False
    gone_at: int = -1
    mute_at: int = -1
    error: ResilienceError = field(
        factory=lambda: Unreachable("no route to host", operation="connect", subject="store")
    )
    puts: int = 0

    async def put(self, key: str, chunks: Chunks) -> ObjectInfo:
        await self.watch("before put")
        self._answer()
        self.puts += 1
        if self.puts == self.gone_at:
            self.gone = True
            self._answer()
        info = await self.store.put(key, chunks)
        await self.watch("after put")
        if self.puts == self.mute_at:
            raise Unreachable("the answer was lost", operation="put", subject=key)
        return info

    @asynccontextmanager
    async def get(self, key: str, *, offset: int = 0) -> AsyncIterator[AsyncIterator[bytes]]:
        self._answer()
        async with self.store.get(key, offset=offset) as chunks:
            yield chunks

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        self._answer()
        async for info in self.store.list(prefix):
            yield info

    async def stat(self, key: str) -> ObjectInfo | None:
        self._answer()
        return await self.store.stat(key)

    async def delete(self, key: str) -> None:
        await self.store.delete(key)

    def _answer(self) -> None:
        if self.gone:
            raise self.error


@define
class Stage:
    """A group, its world, and what the tests look at."""

    world: SimulatedGroup
    switch: SimulatedSwitch
    fencer: SimulatedFencer
    store: FatefulStore
    group: FailoverGroup

    @classmethod
    async def of(
        cls, *names: str, needed: int = 1, before: tuple[Check, ...] = (), after: tuple[Check, ...] = ()
    ) -> Stage:
        """Set a group of these members up, the first of them the primary, with five acknowledged writes."""
        world = SimulatedGroup.of(*(names or ("a", "b", "c")), sync=(names or ("a", "b", "c"))[1:], needed=needed)
        for number in range(5):
            assert world.write(next(iter(world.servers)), f"write {number}")
        switch = SimulatedSwitch(world, next(iter(world.servers)))
        fencer = SimulatedFencer(world, tuple(world.servers))
        store = FatefulStore(MemoryStore(clock=world.clock), world.watch)
        await Samples(store, "orders").keep(world.sample(), writer="recorder")
        store.puts = 0
        group = FailoverGroup(
            "orders",
            promoter=SimulatedPromoter(world),
            fencers=[fencer],
            switches=[switch],
            journal=store,
            before=before,
            after=after,
        )
        return cls(world, switch, fencer, store, group)

    @classmethod
    async def struck(cls) -> tuple[Stage, FailoverPlan]:
        """Set a group of a, b and c up, kill its primary a, and plan a failover."""
        stage = await cls.of("a", "b", "c")
        stage.world.kill("a")
        return stage, await stage.plan()

    def failing(self, at: str, error: Exception) -> None:
        """Have everything fail whose point in the story says `at`."""

        async def fail(point: str) -> None:
            if at in point:
                raise error

        self.world.watch = fail

    def healed(self) -> Stage:
        """Have the journal answer again."""
        self.store.gone, self.store.gone_at = False, -1
        return self

    def fate(self, at: int = -1) -> Fate:
        """Have the operator die at a point; at none without a number."""
        fate = Fate(at)
        self.world.watch = self.store.watch = fate
        return fate

    async def plan(
        self, kind: PlannedKind = "failover", to: str | None = None, *, max_loss: timedelta = timedelta(0)
    ) -> FailoverPlan:
        """Plan as the verbs do."""
        policy = FailoverPolicy(max_loss=max_loss)
        return await planned(self.group, kind=kind, policy=policy, to=to, clock=self.world.clock)

    async def failback_plan(self, to: str | None) -> FailoverPlan:
        """Plan to bring back who fell out."""
        return await plan_failback(self.group, to=to, clock=self.world.clock)

    async def fail_over(
        self, plan: FailoverPlan, *, accept_split_brain: bool = False, accept_data_loss: bool = False
    ) -> FailoverReport:
        """Carry a plan out as somebody who has read it."""
        return await failover(
            self.group,
            plan,
            confirm=plan.confirmation,
            actor="anna",
            reason="a is dead",
            clock=self.world.clock,
            accept_split_brain=accept_split_brain,
            accept_data_loss=accept_data_loss,
        )

    @property
    def journal(self) -> Journal:
        """The group's journal."""
        return Journal(self.group.journal, self.group.name)

    async def execution(self) -> Execution | None:
        """Return how far the last execution has come, by the journal."""
        return folded(await self.journal.last())

    async def story(self) -> str:
        """Return the journal as a person reads it."""
        return "\n".join([str(record) async for record in self.journal.history()])

    def assert_safe(self) -> None:
        """What must be true at any time, whoever died and whatever failed."""
        assert self.world.two_writers == []
        assert len(self.world.promotions) <= 1

    def assert_failed_over(self, to: str) -> None:
        """Exactly one promotion and one switch, clients are served, and nothing acknowledged is missing."""
        self.assert_safe()
        assert self.world.promotions == [to]
        assert self.switch.switches == [to]
        assert self.world.writers() == (to,)
        assert (self.switch.to, self.switch.held) == (to, False)
        assert self.world.lost(to) == []

    def assert_as_before(self) -> None:
        """Nobody was promoted, and clients are where they were."""
        self.assert_safe()
        assert self.world.promotions == []
        assert (self.switch.to, self.switch.held) == ("a", False)
        assert not self.world.servers["a"].fenced
