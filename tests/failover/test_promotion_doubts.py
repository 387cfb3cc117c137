"""A promotion is undone only if it was certainly never asked for; afterwards "standby" does not mean "not done"."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from resilience import FailoverGroup, plan_switchover, switchover
from resilience.model.errors import Refused
from resilience.model.events import Event
from resilience.model.failover import PromotionOrder
from resilience.postgres import LocalFencer, PostgresPromoter
from resilience.postgres.failover import members
from resilience.postgres.processes import postmaster, processes, send
from resilience.stores import MemoryStore
from resilience.testing.replication import TestGroup, running_group

CANCEL = """
select count(pg_cancel_backend(pid)) from pg_stat_activity
where application_name = 'resilience failover' and state = 'active' and query like '%pg_is_in_recovery%'
"""


@pytest.fixture
def group(tmp_owned: Path, postgres_bin: Callable[[int], Path]) -> Iterator[TestGroup]:
    with running_group(tmp_owned / "group", postgres_bin(17), 1, sync="FIRST 1 (b)") as made:
        yield made


def failing_over(group: TestGroup, promoter: PostgresPromoter) -> FailoverGroup:
    fencers = [LocalFencer(group.members())]
    return FailoverGroup("orders", promoter=promoter, fencers=fencers, journal=MemoryStore())


async def test_a_question_that_is_cancelled_does_not_undo_a_promotion_that_was_asked_for(group: TestGroup) -> None:
    b = group.servers["b"]
    recovering = [each for each in processes(b.data) if "startup" in Path(f"/proc/{each.pid}/cmdline").read_text()]

    def stall(event: Event) -> None:
        if event.stage == "progress" and event.text.startswith("promote"):
            send(recovering, signal.SIGSTOP)  # its disk is slow: ending the recovery takes a while

    async def cancel() -> None:
        connection = await asyncpg.connect(b.uri(), timeout=10)
        try:
            async with asyncio.timeout(20):
                while not (b.data / "promote").exists():
                    await asyncio.sleep(0.001)
                cancelled = 0
                while cancelled < 3:
                    cancelled += await connection.fetchval(CANCEL)
        finally:
            send(recovering, signal.SIGCONT)
            await connection.close()

    async with PostgresPromoter("orders", members=group.members(), patience=10) as promoter:
        cancelling = asyncio.create_task(cancel())
        report = await switchover(failing_over(group, promoter), to="b", observer=stall)
        await cancelling
    assert report.ending == "completed", report.why
    took = {name: server.psql("select pg_is_in_recovery()") for name, server in group.servers.items()}
    assert took == {"a": "t", "b": "f"}, "two take writes"


async def test_what_a_command_line_sets_stands_in_the_way_beforehand_and_is_no_doubt_afterwards(
    group: TestGroup,
) -> None:
    b = group.servers["b"]
    b.stop()
    given = "-c synchronous_standby_names='ANY 1 (x)'"
    b.run("pg_ctl", "start", "-D", str(b.data), "-l", str(b.data / "log"), "-w", "-o", given)
    async with PostgresPromoter("orders", members=group.members()) as promoter:
        plan = await plan_switchover(failing_over(group, promoter), to="b")
        assert any("its command line sets synchronous_standby_names" in each.text for each in plan.blockers), plan
        # Whoever starts it so between the plan and the promotion: nobody was told anything, so all can be undone.
        with pytest.raises(Refused, match="its command line sets it"):
            await promoter.promote(PromotionOrder(candidate="b", epoch=1))
    assert b.psql("select pg_is_in_recovery()") == "t"


async def test_whatever_fails_before_the_candidate_is_told_is_refused(
    group: TestGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "CONFIGURE_SECONDS", 0.3)
    b = group.servers["b"]
    async with PostgresPromoter("orders", members=group.members()) as promoter:
        await promoter.survey()
        deaf = [each for each in [postmaster(b.data)] if each is not None]
        send(deaf, signal.SIGSTOP)  # it does not read its settings again
        try:
            with pytest.raises(Refused, match="was not told to become the primary: .* did not change on b"):
                await promoter.promote(PromotionOrder(candidate="b", epoch=1))
        finally:
            send(deaf, signal.SIGCONT)
        assert b.psql("select pg_is_in_recovery()") == "t"


async def test_settings_that_nobody_may_alter_stand_in_the_way(group: TestGroup) -> None:
    with (group.servers["b"].data / "postgresql.conf").open("a") as file:
        file.write("allow_alter_system = off\n")
    group.servers["b"].psql("select pg_reload_conf()")
    async with PostgresPromoter("orders", members=group.members()) as promoter:
        async with asyncio.timeout(10):
            while not (plan := await plan_switchover(failing_over(group, promoter), to="b")).blockers:
                pass
    assert any("allow_alter_system is off" in each.text for each in plan.blockers), plan
