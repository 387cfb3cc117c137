"""What a survey could be fooled by: a standby that hides what it has, and one name for two standbys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from resilience.postgres import PostgresPromoter
from resilience.testing.postgres import TestServer
from resilience.testing.replication import TestGroup, running_group


@pytest.fixture
def group(tmp_owned: Path, postgres_bin: Callable[[int], Path]) -> Iterator[TestGroup]:
    with running_group(tmp_owned / "group", postgres_bin(16), 2, sync="ANY 1 (b, c)") as made:
        yield made


def change(server: TestServer, **settings: str) -> None:
    for name, value in settings.items():
        server.psql(f"alter system set {name} = '{value}'")
    server.psql("select pg_reload_conf()")
    while any(server.psql(f"show {name}") != value for name, value in settings.items()):
        pass


async def test_a_standby_that_was_restarted_is_not_taken_for_shorter_than_it_is(group: TestGroup) -> None:
    """It has acknowledged what it has not applied, and says after its restart only what it has applied."""
    b = group.servers["b"]
    group.primary.psql("create table t (i int)")
    group.caught_up()
    change(b, recovery_min_apply_delay="1h")
    group.primary.psql("insert into t values (1)")
    acknowledged = int(group.primary.psql("select (pg_current_wal_flush_lsn() - '0/0')::bigint"))
    while int(b.psql("select (pg_last_wal_receive_lsn() - '0/0')::bigint")) < acknowledged:
        pass
    b.stop()
    b.start()
    async with PostgresPromoter("orders", members=group.members(), patience=0.5) as promoter:
        facts = await promoter.survey()
        assert any("more than it shows" in each.text for each in facts.member("b").findings)  # type: ignore[union-attr]
        group.kill("a")
        hiding = (await promoter.settle(epoch=1)).member("b")
        assert hiding is not None
        assert not hiding.reachable, f"somebody would rely on {hiding}"
        change(b, recovery_min_apply_delay="0")
        shown = (await promoter.settle(epoch=1)).member("b")
    assert shown is not None and shown.durable is not None
    assert shown.durable.offset >= acknowledged


async def test_everybody_who_is_called_so_may_have_acknowledged(group: TestGroup) -> None:
    for name in ("b", "c"):
        server = group.servers[name]
        change(server, primary_conninfo=f"host=127.0.0.1 port={group.primary.port} user=postgres application_name=Twin")
    change(group.primary, synchronous_standby_names='ANY 1 ("Twin")')
    senders = "select count(*) from pg_stat_replication where application_name = 'Twin' and state = 'streaming'"
    while group.primary.psql(senders) != "2":
        pass
    a, b, c = group.members()
    async with PostgresPromoter("orders", members=[a, b, c]) as promoter:
        facts = await promoter.survey()
        assert facts.sync is not None
        assert facts.sync.members == ("b", "c")
        change(group.primary, synchronous_standby_names="*")
        facts = await promoter.survey()
        assert facts.sync is not None
        assert facts.sync.members == ("b", "c")
        assert any("whoever streams" in each.text for each in facts.findings)
    async with PostgresPromoter("orders", members=[a, b]) as promoter:
        facts = await promoter.survey()
        assert facts.sync is not None
        assert len(facts.sync.members) == 2, "c is no member, and acknowledges all the same"
        change(group.primary, synchronous_standby_names="twin")
        facts = await promoter.survey()
        assert facts.sync is not None
        assert facts.sync.members == ("b", "twin (2)")


async def test_who_does_not_wait_for_standbys_is_named_also_when_the_primary_is_gone(group: TestGroup) -> None:
    group.primary.psql("create role metrics; create role other")
    group.primary.psql("create database events")
    group.primary.psql("alter role metrics set synchronous_commit = off")
    group.primary.psql("alter role other in database events set synchronous_commit = 'local'")
    group.primary.psql("alter role other set synchronous_commit = 'remote_write'")
    group.caught_up()
    async with PostgresPromoter("orders", members=group.members()) as promoter:
        for _ in ("there", "gone"):
            facts = await promoter.survey()
            (said,) = [each.text for each in facts.findings if "waits for no standby" in each.text]
            assert "role metrics" in said
            assert "role other in database events" in said
            assert said.count("role") == 2
            group.kill("a")
