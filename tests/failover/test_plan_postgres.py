"""Plans and recordings of real PostgreSQL groups: what is recorded while the primary lives is evidence later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from resilience.model.failover import FailoverPolicy
from resilience.operations.group import FailoverGroup
from resilience.operations.plan_failover import plan_failover, plan_switchover
from resilience.operations.recorder import StateRecorder
from resilience.operations.samples import Samples
from resilience.postgres.promoter import PostgresPromoter
from resilience.primitives import Beating
from resilience.stores import MemoryStore
from resilience.testing.replication import TestGroup, running_group


@pytest.fixture
def servers(session_folder: Path, postgres_bin: Callable[[int], Path]) -> Iterator[Callable[..., TestGroup]]:
    with ExitStack() as stack:

        def started(standbys: int = 1, *, sync: str = "") -> TestGroup:
            folder = session_folder / f"planned-{standbys}-{len(sync)}"
            return stack.enter_context(running_group(folder, postgres_bin(17), standbys, sync=sync))

        yield started


@asynccontextmanager
async def group_of(servers: TestGroup) -> AsyncIterator[FailoverGroup]:
    async with PostgresPromoter("orders", members=servers.members()) as promoter:
        yield FailoverGroup("orders", promoter=promoter, journal=MemoryStore())


async def test_a_recorder_proves_that_nothing_is_lost_once_the_primary_was_killed(
    servers: Callable[..., TestGroup],
) -> None:
    running = servers(2, sync="ANY 1 (b, c)")
    async with group_of(running) as group:
        assert isinstance(group.promoter, Beating)
        recorder = StateRecorder(group, every=timedelta(seconds=0.2))
        first = await recorder.once()
        assert first.sync is None and first.position is not None  # seen once: it may have changed just now
        second = await recorder.once()
        assert second.sync is not None and second.sync.recorded and second.sync.needed == 1
        assert set(second.sync.members) == {"b", "c"} and second.sync.since == second.position
        running.primary.psql("create table t as select 1 as n")
        running.caught_up()
        third = await recorder.once()
        assert third.sync is not None and third.sync.since == second.sync.since
        assert await Samples(group.samples, "orders").last(now=datetime.now(UTC)) == third

        running.kill("a")
        plan = await plan_failover(group)
        assert plan.sample == third and plan.primary == "a" and plan.candidate in {"b", "c"}, str(plan)
        assert plan.loss.kind == "nothing", str(plan)
        assert plan.fences == ("a",) and plan.sync_needed == 1
        assert [each.subject for each in plan.blockers] == ["split brain"], str(plan)  # this group has no fencer


async def test_an_asynchronous_standby_bounds_the_loss_by_the_last_heartbeat_that_reached_it(
    servers: Callable[..., TestGroup],
) -> None:
    running = servers(1)
    async with group_of(running) as group:
        recorder = StateRecorder(group, every=timedelta(seconds=0.2))
        task = asyncio.create_task(recorder.run())
        before = datetime.now(UTC)
        try:
            async with asyncio.timeout(20):
                while recorder.last is None or recorder.last.at < before + timedelta(seconds=1):
                    await asyncio.sleep(0.05)
        finally:
            task.cancel()
        running.caught_up()
        plan = await plan_failover(group, policy=FailoverPolicy(max_loss=timedelta(minutes=5)))
        assert any("alive" in each.text for each in plan.blockers), str(plan)

        running.kill("a")
        plan = await plan_failover(group, policy=FailoverPolicy(max_loss=timedelta(minutes=5)))
        assert plan.loss.kind == "bounded" and plan.loss.since is not None, str(plan)
        assert before < plan.loss.since < datetime.now(UTC)
        assert [each.subject for each in plan.blockers] == ["split brain"], str(plan)
        strict = await plan_failover(group)
        assert {each.subject for each in strict.blockers} == {"split brain", "data loss"}


async def test_a_switchover_of_a_group_that_works_is_planned_without_loss(servers: Callable[..., TestGroup]) -> None:
    running = servers(1, sync="b")
    async with group_of(running) as group:
        plan = await plan_switchover(group)
    assert plan.candidate == "b" and plan.loss.kind == "nothing"
    assert plan.required == ("a",) and plan.required_needed == 1 and not plan.sync
    assert {each.text for each in plan.blockers} == {
        "nobody can fence a: if it is alive, or comes back, there are two primaries"
    }, str(plan)
