"""A canary on a real server misses nothing, counts nothing twice, and cleans up."""

# ruff: noqa: ARG002  # a suite hands on what it is about

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from attrs import evolve

from resilience.model.drills import CanaryFacts, LostWrite, Served
from resilience.model.errors import ResilienceError
from resilience.postgres.canary import PostgresCanary
from resilience.postgres.processes import postmaster
from resilience.testing.drills import CanarySuite
from resilience.testing.postgres import TestServer, running_server

from ..conftest import FAST

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def shared(session_folder: Path, postgres_bin: Callable[[int], Path]) -> Iterator[TestServer]:
    """A server that every test may stop."""
    with running_server(session_folder / "canary", postgres_bin(17), settings=FAST) as server:
        yield server


@pytest.fixture
def primary(shared: TestServer) -> TestServer:
    """A server that runs and holds nothing."""
    if postmaster(shared.data) is None:
        shared.kill()
        shared.start()
    shared.psql("drop table if exists resilience_canary")
    return shared


def counted(server: TestServer) -> int:
    """Count what canaries have left on a server, the table too."""
    if not server.psql("select to_regclass('resilience_canary')"):
        return 0
    return 1 + int(server.psql("select count(*) from resilience_canary"))


class TestPostgresCanary(CanarySuite):
    @pytest.fixture
    def canary(self, primary: TestServer) -> PostgresCanary:
        self.server = primary
        return PostgresCanary(dsn=primary.dsn(), writers=2, pause=0.002, patience=0.5)

    async def lose(self, canary: PostgresCanary, count: int) -> None:  # type: ignore[override]
        oldest = f"select id from resilience_canary order by id limit {count}"
        self.server.psql(f"delete from resilience_canary where id in ({oldest})")

    async def left(self, canary: PostgresCanary) -> int:  # type: ignore[override]
        return counted(self.server)

    async def restart(self, canary: PostgresCanary) -> None:  # type: ignore[override]
        await asyncio.to_thread(self.server.stop)
        self.server.start()  # not in a thread: it would end with that thread

    async def stop(self, canary: PostgresCanary) -> None:  # type: ignore[override]
        self.server.stop()


async def test_of_several_hosts_it_writes_to_the_one_that_can_be_written_to(primary: TestServer) -> None:
    canary = PostgresCanary(dsn=f"host=127.0.0.1,127.0.0.1 port=1,{primary.port} user=postgres", writers=1)
    async with canary.writing() as watching:
        pass
    assert (await watching.examine()).missing == ()
    await canary.clean()


async def test_a_commit_that_no_standby_has_is_not_acknowledged(primary: TestServer) -> None:
    """Its wait for a standby was cancelled: the server says so, and that it is committed here only."""
    canary = PostgresCanary(dsn=primary.dsn(application_name="canary"), writers=1, patience=20)
    primary.psql("create table resilience_canary (canary text, run text, id bigint, primary key (run, id))")
    cancel = "select count(pg_cancel_backend(pid)) from pg_stat_activity where wait_event = 'SyncRep'"
    async with canary.writing() as watching:
        primary.psql("alter system set synchronous_standby_names = 'nobody'")
        primary.psql("select pg_reload_conf()")
        while not int(await asyncio.to_thread(primary.psql, cancel)):
            await asyncio.sleep(0.01)
        while not watching.seen.in_doubt:
            await asyncio.sleep(0.01)
        acknowledged = watching.seen.acknowledged
        await asyncio.sleep(0.1)
        assert watching.seen.acknowledged == acknowledged
        primary.psql("alter system reset synchronous_standby_names")
        primary.psql("select pg_reload_conf()")
        await asyncio.to_thread(primary.psql, cancel)
    assert (await watching.examine()).missing == ()
    assert watching.seen.in_doubt >= 1


async def test_a_role_that_may_not_make_tables_needs_one_made_for_it(primary: TestServer) -> None:
    primary.psql("create role app login")
    canary = PostgresCanary(dsn=primary.dsn("app"), writers=1)
    try:
        with pytest.raises(ResilienceError, match="permission denied"):
            async with canary.writing():
                raise AssertionError("it may not")
        primary.psql("create table resilience_canary (canary text, run text, id bigint, primary key (run, id))")
        primary.psql("grant select, insert, delete on resilience_canary to app")
        async with canary.writing() as watching:
            pass
        assert (await watching.examine()).missing == ()
        await canary.clean()
        assert counted(primary) == 1, "somebody else has made the table: it stays"
    finally:
        primary.psql("drop owned by app cascade")
        primary.psql("drop role app")


async def test_one_canary_leaves_alone_what_another_has_written(primary: TestServer) -> None:
    one = PostgresCanary(dsn=primary.dsn(), writers=1)
    other = evolve(one, name="other")
    async with one.writing() as watching, other.writing():
        pass
    await other.clean()
    assert (await watching.examine()).missing == ()
    await one.clean()
    assert counted(primary) == 0


@pytest.mark.parametrize("wrong", [{"table": "a; drop table b"}, {"writers": 0}, {"patience": 0.0}, {"name": "A b"}])
def test_what_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        PostgresCanary(dsn="host=x", **wrong)  # type: ignore[arg-type]


def served(instance: str, first: float, last: float, sent: float | None = None) -> Served:
    """Make one server of a canary's, by seconds after noon."""
    moments = [NOON + timedelta(seconds=each) for each in (first, last, last if sent is None else sent)]
    return Served(instance=instance, first=moments[0], last=moments[1], last_sent=moments[2], writes=2)


def facts(*those: Served, missing: tuple[LostWrite, ...] | None = ()) -> CanaryFacts:
    """Make what a canary saw."""
    return CanaryFacts(canary="canary", began_at=NOON, ended_at=NOON, acknowledged=4, served=those, missing=missing)


def test_two_writers_are_two_that_take_writes_in_turn() -> None:
    assert not facts(served("a", 0, 1), served("b", 2, 3)).two_writers
    assert not facts(served("a", 0, 2.5, sent=1.9), served("b", 2, 3)).two_writers, "it was sent before"
    (found,) = facts(served("a", 0, 3, sent=2.1), served("b", 2, 2.5)).two_writers
    assert found.startswith("a took a write that was sent at 2026-11-22 12:00:02.1 UTC, although b had acknowledged")


def test_what_is_lost_reaches_to_the_last_write_of_the_server_that_lost_it() -> None:
    lost = LostWrite(id=7, at=NOON + timedelta(seconds=4), instance="a")
    seen = facts(served("a", 0, 5), served("b", 6, 9), missing=(lost,))
    assert seen.lost == timedelta(seconds=1)
    assert facts(missing=None).lost is None and "nobody could look" in str(facts(missing=None))
    assert facts().lost == timedelta(0)
