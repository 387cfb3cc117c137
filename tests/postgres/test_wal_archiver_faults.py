"""Whatever fails while WAL is archived: nothing is lost, nothing is invented, and nobody is left waiting."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resilience import Archive
from resilience.model.errors import (
    LineageBroken,
    StorageFailed,
)
from resilience.model.log import Branch, LogEntry, Watermark
from resilience.postgres.lsn import position
from resilience.postgres.wal import streaming as wal_streaming
from resilience.postgres.wal.archiver import WalArchiver
from resilience.stores import LocalStore, MemoryStore
from resilience.testing.faults import WatchedStore, change, flipped
from resilience.testing.postgres import TestServer
from resilience.testing.stores import listed

from ..conftest import NewServer
from .proxy import proxied
from .wal import (
    NEVER,
    archiving,
    as_the_server_has_it,
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


pytestmark = pytest.mark.usefixtures("quick")


# The process, the connection, the server


async def test_killed_again_and_again_it_leaves_no_gap(primary: TestServer, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.postgres.killed_archiver", str(tmp_path), primary.dsn("backup")]
    for pause in (0.0, 0.1, 0.03):
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
        await until(lambda: not wal.status.connected)


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
    server, go_on = new_server(16, settings={"wal_sender_timeout": "1500ms"}), asyncio.Event()

    async def before(operation: str, key: str) -> None:
        if operation == "put" and "/log/" in key:
            await go_on.wait()

    archive = Archive(WatchedStore(MemoryStore(), before))
    async with archiving(server, archive) as wal:
        end = await asyncio.to_thread(fill, server, 7)
        await asyncio.sleep(2.5)
        assert wal.status.connected and wal.status.reconnects == 0
        assert wal.status.received_lsn is not None and wal.status.received_lsn.offset < end
        go_on.set()
        await durable(wal, end)
        assert wal.status.reconnects == 0
    await as_the_server_has_it(archive, server, ends=end)


async def test_a_store_that_hangs_is_told_although_it_raises_nothing(
    primary: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal_streaming, "HANGING_SECONDS", 0.2)
    monkeypatch.setattr(wal_streaming, "MARK_SECONDS", 0.05)
    go_on, hanging = asyncio.Event(), False

    async def before(operation: str, key: str) -> None:
        if hanging and operation == "put":
            await go_on.wait()

    def warned(wal: WalArchiver) -> bool:
        return any("the archive has not taken" in finding.text for finding in wal.status.findings)

    async with proxied(primary) as proxy:
        archive = Archive(WatchedStore(MemoryStore(), before))
        async with archiving(primary, archive, dsn=proxy.dsn()) as wal:
            await durable(wal, write(primary))
            assert not warned(wal)
            hanging = True
            end = write(primary)
            await until(lambda: warned(wal))
            proxy.cut()
            await until(lambda: not wal.status.connected)
            assert wal.status.last_error, "it says why it is not connected"
            await asyncio.sleep(0.2)
            assert warned(wal) and wal.status.last_error
            go_on.set()
            await durable(wal, end)
            await until(lambda: wal.status.connected and not warned(wal))
            assert not wal.status.last_error


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


async def test_another_history_is_noticed_also_where_the_archive_ends_with_a_segment(primary: TestServer) -> None:
    archive = Archive(MemoryStore())
    size = segment_size(primary)
    begins = flushed(primary) - flushed(primary) % size
    fill(primary)  # the server has gone on: only the segment before can tell
    async with log_of(archive, primary) as log:
        await log.record(Branch(name="1"))
        await log.record(Watermark(begins=position(1, begins), ends=position(1, begins)))
        whole = LogEntry(begins=position(1, begins), ends=position(1, begins + size))
        await log.append(whole, [bytes(size)])
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
        assert any("archived again" in finding.hint for finding in wal.status.findings)
        end = write(primary)
        await durable(wal, end)
    await as_the_server_has_it(archive, primary, ends=end)
