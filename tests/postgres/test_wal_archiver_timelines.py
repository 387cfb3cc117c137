"""WAL archived across a failover: the standby that takes over is followed to its timeline, and no slot forgets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from resilience import Archive
from resilience.model.errors import LineageBroken, WouldLeaveGap
from resilience.model.log import Branch
from resilience.postgres.lsn import parse_lsn, position
from resilience.postgres.wal import archiver as wal_archiver
from resilience.postgres.wal.names import history_name
from resilience.stores import MemoryStore
from resilience.testing.postgres import TestServer

from ..conftest import NewServer
from .wal import archiver, archiving, as_the_server_has_it, durable, fill, flushed, log_of, segment_size, until, write

StandbyOf = Callable[[TestServer], TestServer]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots are looked at often."""
    monkeypatch.setattr(wal_archiver, "WATCH_SECONDS", 0.1)


def both(primary: TestServer, standby: TestServer) -> str:
    """Return a connection string that reaches whichever of two servers is the primary."""
    return (
        f"host=127.0.0.1,127.0.0.1 port={primary.port},{standby.port} user=backup dbname=postgres "
        "target_session_attrs=primary"
    )


def replayed(standby: TestServer) -> int:
    """Return up to where a standby has replayed."""
    return parse_lsn(standby.psql("select coalesce(pg_last_wal_replay_lsn(), '0/0')"))


def slot_of(server: TestServer) -> str:
    """Return from where on the archiver's slot keeps WAL on a server, nothing if it has none."""
    return server.psql("select restart_lsn from pg_replication_slots where slot_name = 'resilience_orders'")


async def moved_on(server: TestServer, lsn: int) -> None:
    """Wait until the slot lets go of everything before `lsn`."""
    await until(lambda: parse_lsn(slot_of(server)) >= lsn)


async def promoted(standby: TestServer) -> None:
    """Promote a standby and wait until it is a primary."""
    await asyncio.to_thread(standby.psql, "select pg_promote(true, 60)")
    await until(lambda: standby.psql("select pg_is_in_recovery()") == "f")


async def branches(archive: Archive, server: TestServer) -> dict[str, Branch]:
    async with log_of(archive, server) as log:
        return {branch.name: branch for branch in (await log.survey()).branches}


@pytest.mark.parametrize("major", [15, 18])
async def test_a_standby_that_takes_over_is_followed_without_a_gap(
    new_server: NewServer, standby_of: StandbyOf, major: int
) -> None:
    primary = new_server(major)
    standby, archive = standby_of(primary), Archive(MemoryStore())
    async with archiving(primary, archive, dsn=both(primary, standby), standbys=[standby.dsn("backup")]) as wal:
        fill(primary)
        end = write(primary)
        await durable(wal, end)
        await until(lambda: slot_of(standby) and replayed(standby) >= end)
        await moved_on(standby, end)
        await asyncio.to_thread(primary.stop)
        await promoted(standby)
        await until(lambda: wal.status.timeline == "2")
        fill(standby)
        end = write(standby)
        await durable(wal, end)
    await as_the_server_has_it(archive, standby, branch="2", ends=end)
    known = await branches(archive, standby)
    text = (standby.data / "pg_wal" / history_name(2)).read_text()
    assert known["2"].text == text and known["2"].parent == "1" and known["2"].forked_at is not None
    async with log_of(archive, standby) as log:
        old, new = await log.watermark("1"), await log.watermark("2")
    assert old is not None and new is not None
    assert old.ends.offset >= known["2"].forked_at.offset
    assert new.begins.offset == known["2"].forked_at.offset // segment_size(standby) * segment_size(standby)


async def test_wal_that_only_the_old_primary_had_stays_on_its_timeline(
    new_server: NewServer, standby_of: StandbyOf
) -> None:
    primary = new_server(16)
    standby, archive = standby_of(primary), Archive(MemoryStore())
    async with archiving(primary, archive, dsn=both(primary, standby), standbys=[standby.dsn("backup")]) as wal:
        end = write(primary)
        await until(lambda: slot_of(standby) and replayed(standby) >= end)
        standby.stop()
        lost = write(primary, 300)
        await durable(wal, lost)
        primary.kill()
        standby.start()
        await promoted(standby)
        end = write(standby, 600)
        await until(lambda: wal.status.timeline == "2")
        await durable(wal, end)
    await as_the_server_has_it(archive, standby, branch="2", ends=end)
    async with log_of(archive, standby) as log:
        old = await log.watermark("1")
    fork = (await branches(archive, standby))["2"].forked_at
    assert old is not None and fork is not None and old.ends.offset >= lost > fork.offset


async def test_an_old_primary_that_comes_back_is_noticed(new_server: NewServer) -> None:
    server, archive = new_server(16), Archive(MemoryStore())
    async with log_of(archive, server) as log:
        await log.record(Branch(name="2", parent="1", forked_at=position(1, flushed(server))))
    async with archiving(server, archive) as wal:
        await durable(wal, write(server))
        (found,) = (finding for finding in wal.status.findings if "another server has taken over" in finding.hint)
    assert found.text == "the server is on timeline 1, but the archive has timeline 2 already"


async def test_a_standby_that_is_archived_itself_is_followed_when_it_is_promoted(
    new_server: NewServer, standby_of: StandbyOf
) -> None:
    primary = new_server(17)
    standby, archive = standby_of(primary), Archive(MemoryStore())
    async with archiving(standby, archive) as wal:
        end = write(primary)
        await durable(wal, end)
        assert wal.status.achieved_rpo is None
        await promoted(standby)
        end = write(standby)
        await until(lambda: wal.status.timeline == "2")
        await durable(wal, end)
        await until(lambda: wal.status.achieved_rpo is not None)
    await as_the_server_has_it(archive, standby, branch="2", ends=end)
    await as_the_server_has_it(archive, primary, branch="1")


async def test_a_whole_line_of_timelines_is_recorded_before_the_first_entry(
    new_server: NewServer, standby_of: StandbyOf
) -> None:
    primary = new_server(16)
    first = standby_of(primary)
    await promoted(first)
    second = standby_of(first)
    await promoted(second)
    archive = Archive(MemoryStore())
    async with archiving(second, archive) as wal:
        end = write(second)
        await durable(wal, end)
        assert wal.status.timeline == "3"
    known = await branches(archive, second)
    assert sorted(known) == ["1", "2", "3"]
    for name in "23":
        assert known[name].text == (second.data / "pg_wal" / history_name(name)).read_text()
    await as_the_server_has_it(archive, second, branch="3", ends=end)


async def test_timelines_that_passed_while_nobody_archived_are_caught_up(
    new_server: NewServer, standby_of: StandbyOf
) -> None:
    primary = new_server(16)
    standby, archive = standby_of(primary), Archive(MemoryStore())
    async with archiving(primary, archive, standbys=[standby.dsn("backup")]) as wal:
        await durable(wal, write(primary))
        await until(lambda: slot_of(standby))
    missed = write(primary, 300)
    fill(primary)
    await until(lambda: replayed(standby) >= missed)
    primary.stop()
    await promoted(standby)
    async with archiving(standby, archive) as wal:
        end = write(standby)
        await until(lambda: wal.status.timeline == "2")
        await durable(wal, end)
    await as_the_server_has_it(archive, standby, branch="1", ends=missed)
    await as_the_server_has_it(archive, standby, branch="2", ends=end)


async def test_another_timeline_of_the_same_name_is_another_lineage(
    new_server: NewServer, standby_of: StandbyOf
) -> None:
    primary = new_server(16)
    first, second = standby_of(primary), standby_of(primary)
    await promoted(first)
    archive = Archive(MemoryStore())
    async with archiving(first, archive) as wal:
        await durable(wal, write(first))
    end = write(primary)
    await until(lambda: replayed(second) >= end)
    await promoted(second)
    with pytest.raises(LineageBroken, match="the archive's timeline 2 forked at"):
        async with archiver(second, archive):
            raise AssertionError("it was entered")


async def test_a_server_of_timelines_that_the_archive_does_not_know_begins_a_new_chain_when_told(
    new_server: NewServer, standby_of: StandbyOf
) -> None:
    primary = new_server(16)
    standby, archive = standby_of(primary), Archive(MemoryStore())
    await promoted(standby)
    async with archiving(standby, archive) as wal:
        await durable(wal, write(standby))
    with pytest.raises(WouldLeaveGap, match="a timeline that the server never was on; it is at .* on 1"):
        async with archiving(primary, archive):
            raise AssertionError("it was entered")
    async with archiving(primary, archive, new_chain=True) as wal:
        end = write(primary)
        await durable(wal, end)
    await as_the_server_has_it(archive, primary, branch="1", ends=end)
    await as_the_server_has_it(archive, standby, branch="2")


async def test_the_slot_of_a_standby_is_kept_and_moved_on(new_server: NewServer, standby_of: StandbyOf) -> None:
    primary = new_server(16)
    standby = standby_of(primary)
    async with archiving(primary, standbys=[standby.dsn("backup"), primary.dsn("backup")]) as wal:
        await until(lambda: slot_of(standby))
        for _ in range(2):
            end = fill(primary)
            await durable(wal, end)
            await moved_on(standby, end)
            assert parse_lsn(slot_of(standby)) <= min(flushed(primary), replayed(standby))
        standby.psql("select pg_drop_replication_slot('resilience_orders')")
        await until(lambda: slot_of(standby))
        assert wal.status.findings == ()


async def test_a_standby_that_is_away_is_a_finding_and_no_error(new_server: NewServer, standby_of: StandbyOf) -> None:
    primary = new_server(16)
    standby = standby_of(primary)
    async with archiving(primary, standbys=[standby.dsn("backup")]) as wal:
        await until(lambda: slot_of(standby))
        standby.stop()
        await until(lambda: wal.status.findings)
        (finding,) = wal.status.findings
        assert finding.severity == "warning" and "is not kept on this standby" in finding.text
        await durable(wal, write(primary))
        standby.start()
        await until(lambda: not wal.status.findings)


async def test_a_standby_of_another_server_gets_no_slot(new_server: NewServer, standby_of: StandbyOf) -> None:
    primary, other = new_server(16), new_server(16)
    standby = standby_of(other)
    async with archiving(primary, standbys=[standby.dsn("backup")]) as wal:
        await until(lambda: wal.status.findings)
        assert "of lineage" in wal.status.findings[0].text
    assert slot_of(standby) == ""
