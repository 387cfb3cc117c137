"""A promotion is undone only if it was certainly never asked for; afterwards "standby" does not mean "not done"."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from resilience import FailoverGroup, switchover
from resilience.model.events import Event
from resilience.postgres import LocalFencer, PostgresPromoter
from resilience.postgres.processes import processes, send
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
