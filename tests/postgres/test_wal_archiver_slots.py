"""The slot that keeps WAL for the archive, and those who must not wait for it."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from resilience import Archive
from resilience.model.errors import (
    Conflict,
    Refused,
    WouldLeaveGap,
)
from resilience.postgres.lsn import parse_lsn
from resilience.postgres.wal.names import segment_name
from resilience.stores import MemoryStore
from resilience.testing.faults import WatchedStore
from resilience.testing.postgres import TestServer
from resilience.testing.stores import listed

from ..conftest import NewServer
from .wal import (
    NEVER,
    archiver,
    archiving,
    as_the_server_has_it,
    drop_slot,
    durable,
    fill,
    log_of,
    segment_size,
    until,
    write,
)

CHECKOUT = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("quick")


def remove_wal(server: TestServer) -> None:
    """Have a server remove all WAL that no slot keeps."""
    for _ in range(2):
        fill(server, 2)
        server.psql("checkpoint")


async def test_a_slot_that_was_dropped_is_made_again_if_nothing_is_lost(primary: TestServer) -> None:
    archive = Archive(MemoryStore())
    async with archiving(primary, archive) as wal:
        await durable(wal, write(primary))
        drop_slot(primary)
        end = write(primary)
        await durable(wal, end)
        assert any("was gone and has been made again" in finding.text for finding in wal.status.findings)
    await as_the_server_has_it(archive, primary, ends=end)


async def test_a_hole_is_refused_and_nothing_is_touched(new_server: NewServer) -> None:
    server, archive = new_server(16), Archive(MemoryStore())
    async with archiving(server, archive) as wal:
        await durable(wal, write(server))
    drop_slot(server)
    remove_wal(server)
    objects = await listed(archive.store, "")
    with pytest.raises(WouldLeaveGap) as caught:
        async with archiving(server, archive):
            raise AssertionError("it was entered")
    assert wal.status.durable_lsn is not None
    named = re.search(
        f"the archive ends at {wal.status.durable_lsn}, but the server has WAL from (.*) on 1 on only",
        str(caught.value),
    )
    assert named is not None and parse_lsn(named[1]) > wal.status.durable_lsn.offset
    assert (server.data / "pg_wal" / segment_name(1, parse_lsn(named[1]), segment_size(server))).exists()
    assert await listed(archive.store, "") == objects
    assert server.psql("select count(*) from pg_replication_slots") == "0"


async def test_a_new_chain_records_the_gap_and_goes_on(new_server: NewServer) -> None:
    server, archive = new_server(16), Archive(MemoryStore())
    async with archiving(server, archive) as wal:
        await durable(wal, write(server))
    left = wal.status.durable_lsn
    drop_slot(server)
    remove_wal(server)
    async with archiving(server, archive, new_chain=True) as wal:
        end = write(server)
        await durable(wal, end)
    async with archiving(server, archive) as wal:
        end = write(server)
        await durable(wal, end)
    async with log_of(archive, server) as log:
        facts = await log.survey()
    (gap,), (watermark,) = facts.gaps, facts.watermarks
    assert gap.begins == left and gap.ends == watermark.begins and gap.ends.offset % segment_size(server) == 0
    assert watermark.ends.offset >= end
    async with log_of(archive, server) as log:
        entries = [entry async for entry in log.entries("1", begins=gap.ends.offset)]
    assert entries[0].begins.offset == gap.ends.offset


async def test_an_invalidated_slot_ends_the_archiving_loudly(new_server: NewServer) -> None:
    settings = {"max_slot_wal_keep_size": "16MB", "max_wal_size": "32MB", "min_wal_size": "32MB"}
    server, go_on = new_server(16, settings=settings), asyncio.Event()

    async def before(operation: str, key: str) -> None:
        if operation == "put" and ("/log/" in key or "/slices/" in key):
            await go_on.wait()

    archive = Archive(WatchedStore(MemoryStore(), before))
    with pytest.raises(WouldLeaveGap) as caught:
        async with archiving(server, archive) as wal:
            state = "select wal_status from pg_replication_slots"
            while await asyncio.to_thread(server.psql, state) != "lost":
                await asyncio.to_thread(fill, server, 3)
                await asyncio.to_thread(server.psql, "checkpoint")
            go_on.set()
            await asyncio.sleep(20)
            raise AssertionError("it went on")
    assert "the server has WAL from" in str(caught.value)
    async with archiving(server, archive, new_chain=True) as wal:
        await durable(wal, write(server))
    async with log_of(archive, server) as log:
        assert len((await log.survey()).gaps) == 1


async def test_a_slot_that_was_idle_for_too_long_is_made_again(new_server: NewServer) -> None:
    server, archive = new_server(18, settings={"idle_replication_slot_timeout": "1s"}), Archive(MemoryStore())
    async with archiving(server, archive) as wal:
        await durable(wal, write(server))
    await asyncio.sleep(1.1)
    server.psql("checkpoint")
    assert server.psql("select invalidation_reason from pg_replication_slots") == "idle_timeout"
    async with archiving(server, archive) as wal:
        end = write(server)
        await durable(wal, end)
        assert any("has been made again" in finding.text for finding in wal.status.findings)
    await as_the_server_has_it(archive, server, ends=end)


async def test_of_two_archivers_on_one_slot_the_second_is_told(primary: TestServer) -> None:
    async with archiving(primary) as wal:
        pid = primary.psql("select active_pid from pg_replication_slots where slot_name = 'resilience_orders'")
        with pytest.raises(Conflict, match=rf"\b{pid}\b"):
            async with archiver(primary):
                raise AssertionError("it was entered")
        await durable(wal, write(primary))


async def test_a_slot_that_keeps_much_is_warned_of_and_too_much_is_loud(
    primary: TestServer, caplog: pytest.LogCaptureFixture
) -> None:
    fill(primary)
    primary.psql("checkpoint")
    async with archiving(primary, interval=NEVER, slot_warning=50_000, slot_limit=500_000) as wal:
        write(primary, 100)
        await until(lambda: [finding.severity for finding in wal.status.findings] == ["warning"])
        write(primary, 500)
        await until(lambda: [finding.severity for finding in wal.status.findings] == ["blocker"])
        assert wal.status.slot_bytes is not None and wal.status.slot_bytes > 500_000
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "the limit is" in caplog.text


def commits_wait_for(server: TestServer, names: str) -> None:
    """Set synchronous_standby_names."""
    server.psql(f"alter system set synchronous_standby_names = '{names}'")
    server.psql("select pg_reload_conf()")


@pytest.mark.parametrize("names", ["*", 'FIRST 1 (a, "Resilience_Orders")'])
async def test_commits_never_wait_for_the_archive(new_server: NewServer, names: str) -> None:
    server = new_server(16)
    commits_wait_for(server, names)
    with pytest.raises(Refused, match="commits would wait for the archive"):
        async with archiving(server):
            raise AssertionError("it was entered")
    assert server.psql("select count(*) from pg_replication_slots") == "0"


async def test_commits_that_begin_to_wait_for_the_archive_end_it(new_server: NewServer) -> None:
    server = new_server(16)
    with pytest.raises(Refused, match="commits would wait for the archive"):
        async with archiving(server) as wal:
            await durable(wal, write(server))
            commits_wait_for(server, "*")
            await asyncio.sleep(30)
