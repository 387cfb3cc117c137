"""A primary with synchronous_commit = off acknowledges what it has not on disk yet: that bounds what may be lost."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from resilience import FailoverGroup, switchover
from resilience.planning.samples import Watch
from resilience.postgres import LocalFencer, PostgresPromoter
from resilience.postgres.processes import processes, send
from resilience.stores import MemoryStore
from resilience.testing.replication import TestGroup, running_group


@pytest.fixture
def group(tmp_owned: Path, postgres_bin: Callable[[int], Path]) -> Iterator[TestGroup]:
    settings = {"synchronous_commit": "off", "wal_writer_delay": "10s"}
    with running_group(tmp_owned / "group", postgres_bin(18), 1, settings=settings) as made:
        yield made


def stop(group: TestGroup, title: str) -> None:
    """Stop a process of the primary's."""
    found = [each for each in processes(group.primary.data) if title in Path(f"/proc/{each.pid}/cmdline").read_text()]
    assert found
    send(found, signal.SIGSTOP)


async def test_what_is_recorded_of_a_primary_has_all_that_it_had_acknowledged(group: TestGroup) -> None:
    group.primary.psql("create table t (i int)")
    group.primary.psql("checkpoint")
    group.caught_up()
    stop(group, "walwriter")
    group.primary.psql("insert into t values (1)")
    acknowledged = int(group.primary.psql("select (pg_current_wal_insert_lsn() - '0/0')::bigint"))
    async with PostgresPromoter("orders", members=group.members()) as promoter:
        facts = await promoter.survey()
        b = facts.member("b")
        assert b is not None and b.durable is not None
        assert b.durable.offset < acknowledged, "it was to have no chance to receive it"
        _, sample = Watch().seen(facts, at=facts.at)
        assert sample.position is not None
        assert sample.position.offset >= acknowledged, "b would be taken for one that has everything"
        assert any("synchronous_commit is off" in each.text for each in facts.findings)


async def test_a_switchover_of_servers_that_do_not_wait_for_their_disks_is_completed(group: TestGroup) -> None:
    async with PostgresPromoter("orders", members=group.members()) as promoter:
        fencers = [LocalFencer(group.members())]
        held = FailoverGroup("orders", promoter=promoter, fencers=fencers, journal=MemoryStore())
        report = await switchover(held, to="b")
    assert report.ending == "completed", report.why


async def test_the_header_of_a_page_is_nothing_that_a_standby_lacks(group: TestGroup) -> None:
    stop(group, "background writer")  # it writes by itself now and then
    group.primary.psql("select pg_switch_wal()")
    group.caught_up()
    async with PostgresPromoter("orders", members=group.members()) as promoter:
        a = (await promoter.survey()).member("a")
    assert a is not None and a.durable is not None and a.reached is not None
    assert int(group.primary.psql("select (pg_current_wal_insert_lsn() - '0/0')::bigint")) % (16 << 20) == 40
    assert a.reached == a.durable
