"""Whatever fails while WAL is archived: nothing is lost, nothing is invented, and nobody is left waiting."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from resilience import Archive
from resilience.model.errors import (
    Conflict,
    LineageBroken,
    Refused,
    StorageFailed,
    WouldLeaveGap,
)
from resilience.model.log import Branch, LogEntry, Watermark
from resilience.postgres import wal_archiver, wal_streaming
from resilience.postgres.lsn import position
from resilience.stores import LocalStore, MemoryStore
from resilience.testing.faults import WatchedStore, change, flipped
from resilience.testing.postgres import TestServer
from resilience.testing.stores import listed

from ..conftest import NewServer
from .proxy import proxied
from .wal import (
    NEVER,
    archiver,
    archiving,
    as_the_server_has_it,
    drop_slot,
    durable,
    fill,
    flushed,
    log_of,
    logged,
    received,
    reconnected,
    segment_size,
    until,
    write,
)

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def primary(postgres16: TestServer) -> Iterator[TestServer]:
    """The session's PostgreSQL 16, at a checkpoint; the archiver's slot is dropped afterwards."""
    postgres16.psql("checkpoint")
    yield postgres16
    drop_slot(postgres16)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for long pauses."""
    monkeypatch.setattr(wal_archiver, "BUSY_SECONDS", 0.5)
    monkeypatch.setattr(wal_archiver, "WATCH_SECONDS", 0.1)


def remove_wal(server: TestServer) -> None:
    """Have a server remove all WAL that no slot keeps."""
    for _ in range(2):
        fill(server, 2)
        server.psql("checkpoint")


# The process, the connection, the server


async def test_killed_again_and_again_it_leaves_no_gap(primary: TestServer, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.postgres.killed_archiver", str(tmp_path), primary.dsn("backup")]
    for pause in (0.0, 0.15, 0.03, 0.1, 0.06):
        child = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "streaming\n"
        write(primary, 300)
        fill(primary, 2)
        write(primary, 300)
        time.sleep(pause)
        child.kill()
        child.wait()
        child.stdout.close()
    archive = Archive(LocalStore(tmp_path))
    async with archiving(primary, archive) as wal:
        end = write(primary)
        await durable(wal, end)
    await as_the_server_has_it(archive, primary, ends=end)
    await every_object_agrees(archive, primary)


async def every_object_agrees(archive: Archive, server: TestServer) -> None:
    """Insist that every slice, also those that no reader needs any more, holds the bytes that the log has there."""
    async with log_of(archive, server) as log:
        found = await logged(log)
        for info in await listed(archive.store, "postgresql/orders/slices/"):
            segment, _, ends = info.key.partition("/1/")[2].partition("/")
            begins, _, ends = ends.removesuffix(".zst").partition("-")
            entry = LogEntry(
                begins=position(1, int(begins, 16)),
                ends=position(1, int(ends, 16)),
                segment=position(1, int(segment, 16)),
            )
            at = int(begins, 16) - found.begins
            assert b"".join(await log.read(entry)) == found.data[at : at + entry.size]


async def test_a_cut_connection_is_made_again(primary: TestServer) -> None:
    archive = Archive(MemoryStore())
    async with proxied(primary) as proxy, archiving(primary, archive, dsn=proxy.dsn()) as wal:
        for cuts in range(1, 4):
            await durable(wal, write(primary))
            proxy.cut()
            end = write(primary)
            fill(primary)
            await reconnected(wal, cuts)
            await durable(wal, end)
    await as_the_server_has_it(archive, primary, ends=end)


async def test_a_server_that_restarts_is_waited_for(new_server: NewServer) -> None:
    server, archive = new_server(17), Archive(MemoryStore())
    async with archiving(server, archive) as wal:
        for end_it in (server.stop, server.kill):
            await durable(wal, write(server))
            await asyncio.to_thread(end_it)
            await until(lambda: not wal.status.connected and wal.status.last_error)
            server.start()
            end = write(server)
            await durable(wal, end)
            assert wal.status.connected and not wal.status.last_error
    await as_the_server_has_it(archive, server, ends=end)


async def test_what_came_before_the_server_vanished_is_archived(new_server: NewServer) -> None:
    server, archive = new_server(16), Archive(MemoryStore())
    async with archiving(server, archive, interval=NEVER) as wal:
        end = write(server)
        await received(wal, end)
        server.kill()
        await durable(wal, end)
    await as_the_server_has_it_stopped(archive, server, end)


async def as_the_server_has_it_stopped(archive: Archive, server: TestServer, end: int) -> None:
    server.start()
    await as_the_server_has_it(archive, server, ends=end)


async def test_a_server_that_shuts_down_need_not_wait_for_the_interval(new_server: NewServer) -> None:
    server, archive = new_server(16), Archive(MemoryStore())
    async with archiving(server, archive, interval=NEVER) as wal:
        end = write(server)
        await asyncio.wait_for(asyncio.to_thread(server.stop), 20)
        await durable(wal, end)
        assert not wal.status.connected


@pytest.mark.parametrize("segments", [0, 7])
async def test_a_server_that_shuts_down_need_not_wait_for_a_store_that_is_down(
    new_server: NewServer, monkeypatch: pytest.MonkeyPatch, segments: int
) -> None:
    monkeypatch.setattr(wal_streaming, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(wal_streaming, "FLUSH_SECONDS", 0.5)
    failing = False

    async def before(operation: str, key: str) -> None:
        if failing and operation == "put":
            raise StorageFailed("no space left on device", operation="put", subject=key)

    server, archive = new_server(16), Archive(WatchedStore(MemoryStore(), before))
    async with archiving(server, archive) as wal:
        failing = True
        await asyncio.to_thread(fill, server, segments)
        await asyncio.to_thread(write, server)
        await asyncio.wait_for(asyncio.to_thread(server.stop), 20)
        failing = False
        server.start()
        end = write(server)
        await durable(wal, end)
    await as_the_server_has_it(archive, server, ends=end)


# The store


async def test_a_store_that_fails_for_long_is_tried_until_it_works(primary: TestServer) -> None:
    failing = False

    async def before(operation: str, key: str) -> None:
        if failing and operation in ("put", "chunk"):
            raise StorageFailed("no space left on device", operation="put", subject=key)

    archive = Archive(WatchedStore(MemoryStore(), before))
    async with archiving(primary, archive) as wal:
        await durable(wal, write(primary))
        failing = True
        began = wal.status.durable_lsn
        end = fill(primary, 7)
        await until(lambda: "no space left" in wal.status.last_error)
        await asyncio.sleep(1)
        assert wal.status.connected and wal.status.durable_lsn == began
        assert wal.status.received_lsn is not None and wal.status.received_lsn.offset < end, "memory is bounded"
        failing = False
        await durable(wal, end)
        assert not wal.status.last_error and wal.status.reconnects == 0
    await as_the_server_has_it(archive, primary, ends=end)


async def test_while_the_store_hangs_the_server_does_not_cut_us_off(new_server: NewServer) -> None:
    server, go_on = new_server(16, settings={"wal_sender_timeout": "2s"}), asyncio.Event()

    async def before(operation: str, key: str) -> None:
        if operation == "put" and "/log/" in key:
            await go_on.wait()

    archive = Archive(WatchedStore(MemoryStore(), before))
    async with archiving(server, archive) as wal:
        end = await asyncio.to_thread(fill, server, 7)
        await asyncio.sleep(4)
        assert wal.status.connected and wal.status.reconnects == 0
        assert wal.status.received_lsn is not None and wal.status.received_lsn.offset < end
        go_on.set()
        await durable(wal, end)
        assert wal.status.reconnects == 0
    await as_the_server_has_it(archive, server, ends=end)


async def test_leaving_does_not_wait_for_ever_for_the_store(
    primary: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal_streaming, "FLUSH_SECONDS", 0.3)
    store = MemoryStore()
    failing = False

    async def before(operation: str, key: str) -> None:
        if failing and operation == "put":
            raise StorageFailed("no space left on device", operation="put", subject=key)

    async with archiving(primary, Archive(WatchedStore(store, before))) as wal:
        await durable(wal, write(primary))
        failing = True
        end = write(primary)
        await until(lambda: wal.status.last_error)
    assert any("was not durable within" in finding.text for finding in wal.status.findings)
    async with archiving(primary, Archive(store)) as wal:
        await durable(wal, end)
    await as_the_server_has_it(Archive(store), primary, ends=end)


# The slot


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
    size = segment_size(server)
    assert f"the archive ends at {wal.status.durable_lsn}" in str(caught.value)
    oldest = min(path.name for path in (server.data / "pg_wal").iterdir() if len(path.name) == 24)
    assert oldest and size
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


# Never a synchronous standby


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


# Other histories


async def test_other_bytes_at_the_same_place_are_another_lineage(primary: TestServer) -> None:
    archive = Archive(MemoryStore())
    begins = flushed(primary) - flushed(primary) % segment_size(primary)
    async with log_of(archive, primary) as log:
        segment = position(1, begins)
        await log.record(Branch(name="1"))
        await log.record(Watermark(begins=segment, ends=segment))
        await log.append(LogEntry(begins=segment, ends=position(1, begins + 64), segment=segment), [bytes(64)])
    write(primary)
    with pytest.raises(LineageBroken, match="has other bytes than the archive"):
        async with archiving(primary, archive):
            await asyncio.sleep(30)


async def test_a_server_that_lost_wal_is_another_lineage(primary: TestServer) -> None:
    archive = Archive(MemoryStore())
    async with log_of(archive, primary) as log:
        await log.record(Branch(name="1"))
        await log.record(Watermark(begins=position(1, 0), ends=position(1, flushed(primary) + (1 << 30))))
    with pytest.raises(LineageBroken, match="it has lost some"):
        async with archiving(primary, archive):
            raise AssertionError("it was entered")


async def test_a_slice_that_is_damaged_is_archived_again(primary: TestServer) -> None:
    archive = Archive(MemoryStore())
    fill(primary)
    async with archiving(primary, archive) as wal:
        await durable(wal, flushed(primary))
        await durable(wal, write(primary))
    for info in await listed(archive.store, "postgresql/orders/slices/"):
        await change(archive.store, info.key, flipped(-1))
    async with archiving(primary, archive) as wal:
        assert any("archived again" in finding.text for finding in wal.status.findings)
        end = write(primary)
        await durable(wal, end)
    await as_the_server_has_it(archive, primary, ends=end)
