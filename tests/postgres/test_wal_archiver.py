"""WalArchiver: what a server writes is in the archive seconds later, byte for byte."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from resilience import Archive
from resilience.model.errors import Refused, Unreachable
from resilience.model.events import Event
from resilience.postgres.lsn import parse_lsn
from resilience.postgres.wal.archiver import WalArchiver
from resilience.stores import MemoryStore
from resilience.testing.faults import WatchedStore
from resilience.testing.postgres import TestServer, free_port

from ..conftest import NewServer
from .wal import (
    MIB,
    NEVER,
    archiver,
    archiving,
    as_the_server_has_it,
    complete,
    drop_slot,
    durable,
    fill,
    flushed,
    log_of,
    logged,
    received,
    segment_size,
    until,
    write,
)


@pytest.fixture
def primary(postgres16: TestServer) -> Iterator[TestServer]:
    """The session's PostgreSQL 16; the archiver's slot is dropped afterwards."""
    yield postgres16
    drop_slot(postgres16)


async def test_what_a_server_writes_is_in_the_log_byte_for_byte(every_postgres: TestServer) -> None:
    archive = Archive(MemoryStore())
    try:
        async with archiving(every_postgres, archive) as wal:
            write(every_postgres, 3000)
            fill(every_postgres, 2)
            end = write(every_postgres)
            await durable(wal, end)
            assert wal.status.connected and wal.status.segments >= 2 and wal.status.timeline == "1"
        found = await as_the_server_has_it(archive, every_postgres, ends=end)
        assert found.begins % segment_size(every_postgres) == 0
    finally:
        drop_slot(every_postgres)


async def test_leaving_makes_durable_what_was_received(primary: TestServer) -> None:
    archive = Archive(MemoryStore())
    async with archiving(primary, archive, interval=NEVER) as wal:
        end = write(primary)
        await received(wal, end)
        assert wal.status.durable_lsn is not None and wal.status.durable_lsn.offset < end
    assert wal.status.durable_lsn.offset >= end
    assert not wal.status.connected
    await as_the_server_has_it(archive, primary, ends=end)
    async with log_of(archive, primary) as log:
        watermark = await log.watermark("1")
    assert watermark is not None and watermark.ends == wal.status.durable_lsn


async def test_the_slot_stays_and_keeps_what_is_not_archived(primary: TestServer) -> None:
    async with archiving(primary) as wal:
        await durable(wal, write(primary))
    write(primary)
    kept = primary.psql("select restart_lsn from pg_replication_slots where slot_name = 'resilience_orders'")
    assert wal.status.durable_lsn is not None
    assert parse_lsn(kept) <= wal.status.durable_lsn.offset < flushed(primary)


async def test_the_next_archiver_goes_on_where_the_last_one_left(primary: TestServer) -> None:
    archive = Archive(MemoryStore())
    async with archiving(primary, archive) as wal:
        await durable(wal, write(primary))
    fill(primary, 2)
    for _ in range(2):
        async with archiving(primary, archive) as wal:
            end = write(primary)
            await durable(wal, end)
    await as_the_server_has_it(archive, primary, ends=end)


async def test_many_slices_of_a_segment_are_read_as_few(primary: TestServer) -> None:
    archive = Archive(MemoryStore())
    fill(primary)
    async with archiving(primary, archive) as wal:
        await durable(wal, flushed(primary))
        for _ in range(15):
            before = wal.status.slices
            await durable(wal, write(primary, 1))
            assert wal.status.slices >= before
        made = wal.status.slices
    async with log_of(archive, primary) as log:
        found = await logged(log)
    needed = sum(entry.segment is not None for entry in found.entries)
    assert made >= 10
    assert needed <= made.bit_length() + 1


async def test_a_finished_segment_supersedes_its_slices(primary: TestServer) -> None:
    archive = Archive(MemoryStore())
    async with archiving(primary, archive) as wal:
        await durable(wal, write(primary))
        assert wal.status.slices > 0
        end = fill(primary)
        await durable(wal, end)
    async with log_of(archive, primary) as log:
        entries = [entry async for entry in log.entries("1", ends=end)]
    assert all(entry.segment is None and entry.size == segment_size(primary) for entry in entries)


@pytest.mark.parametrize("megabytes", [1, 64])
async def test_the_size_of_segments_is_the_servers(new_server: NewServer, megabytes: int) -> None:
    server = new_server(16, f"--wal-segsize={megabytes}", settings={"min_wal_size": "160MB"})
    archive = Archive(MemoryStore())
    async with archiving(server, archive) as wal:
        write(server, 1500)
        fill(server, 3)
        end = write(server)
        await durable(wal, end)
    found = await as_the_server_has_it(archive, server, ends=end)
    assert {entry.size for entry in found.entries if entry.segment is None} == {megabytes * MIB}


async def test_only_what_is_durable_is_reported_as_flushed(primary: TestServer) -> None:
    go_on = asyncio.Event()

    async def before(operation: str, key: str) -> None:
        if operation == "put" and ("/slices/" in key or "/log/" in key):
            await go_on.wait()

    primary.psql("checkpoint")  # there the slot begins, so that nothing waits but what is written now
    async with archiving(primary, Archive(WatchedStore(MemoryStore(), before))) as wal:
        began = wal.status.durable_lsn
        assert began is not None
        end = write(primary)
        seen = "select write_lsn, flush_lsn from pg_stat_replication where application_name = 'resilience_orders'"
        await until(lambda: parse_lsn(primary.psql(seen).split("|")[0]) >= end)
        assert parse_lsn(primary.psql(seen).split("|")[1]) <= began.offset
        assert wal.status.durable_lsn == began
        go_on.set()
        await until(lambda: parse_lsn(primary.psql(seen).split("|")[1]) >= end)
        assert wal.status.durable_lsn.offset >= end


async def test_an_idle_server_keeps_the_rpo_small(primary: TestServer) -> None:
    async with archiving(primary, interval=0.2) as wal:
        await durable(wal, write(primary))
        await until(lambda: wal.status.complete_at)
        first = wal.status
        assert first.complete_at is not None
        later = first.complete_at + timedelta(seconds=1)
        await complete(wal, later)
        assert wal.status.achieved_rpo is not None and wal.status.achieved_rpo < timedelta(seconds=5)


async def test_complete_at_never_promises_what_is_not_archived(primary: TestServer) -> None:
    async with archiving(primary) as wal:
        for _ in range(5):
            write(primary, 1)
            status, answer = wal.status, primary.psql("select clock_timestamp(), pg_current_wal_flush_lsn()")
            assert status.complete_at is None or status.complete_at < datetime.fromisoformat(answer.split("|")[0])
            acknowledged = datetime.fromisoformat(primary.psql("select clock_timestamp()"))
            end = flushed(primary)
            await complete(wal, acknowledged)
            assert wal.status.durable_lsn is not None and wal.status.durable_lsn.offset >= end


async def test_a_jump_of_our_clock_changes_nothing(primary: TestServer) -> None:
    jumps = iter([0, -86400, 86400 * 365, -3600] * 1000)

    def clock() -> datetime:
        return datetime.now(UTC) + timedelta(seconds=next(jumps))

    archive = Archive(MemoryStore(), clock=clock)
    async with archiving(primary, archive, clock=clock) as wal:
        for _ in range(3):
            end = write(primary)
            await durable(wal, end)
            await until(lambda: wal.status.achieved_rpo is not None)
            assert wal.status.achieved_rpo is not None
            assert timedelta(0) <= wal.status.achieved_rpo < timedelta(seconds=30)
    await as_the_server_has_it(archive, primary, ends=end)


async def test_the_times_of_entries_are_the_servers(primary: TestServer) -> None:
    archive = Archive(MemoryStore())
    fill(primary)
    before = datetime.fromisoformat(primary.psql("select clock_timestamp()"))
    async with archiving(primary, archive) as wal:
        await durable(wal, write(primary))
        await until(lambda: wal.status.complete_at)
    after = datetime.fromisoformat(primary.psql("select clock_timestamp()"))
    async with log_of(archive, primary) as log:
        watermark = await log.watermark("1")
    assert watermark is not None and watermark.latest is not None and watermark.complete_at is not None
    assert before < watermark.latest < after and before < watermark.complete_at < after


async def test_progress_is_told(primary: TestServer) -> None:
    events: list[Event] = []
    async with archiving(primary, observer=events.append) as wal:
        await durable(wal, write(primary))
    assert [events[0].stage, events[-1].stage] == ["started", "completed"]
    assert {event.operation for event in events} == {"archive wal"} and {event.subject for event in events} == {
        "orders"
    }
    assert events[-1].done > 100_000


async def test_a_status_shows_itself(primary: TestServer) -> None:
    wal = archiver(primary)
    assert str(wal.status) == (
        "orders: NOT CONNECTED, nothing durable, RPO unknown, the slot keeps unknown, 0 segments and 0 slices archived"
    )
    async with wal:
        end = write(primary)
        await durable(wal, end)
        await until(lambda: wal.status.complete_at)
        text = str(wal.status)
        assert text.startswith("orders: connected, durable up to ") and " on 1, RPO " in text
        assert '"achieved_rpo":"PT' in wal.status.to_json()


async def test_a_role_that_may_not_replicate_is_refused(primary: TestServer) -> None:
    primary.psql("create role nobody login")
    try:
        with pytest.raises(Refused):
            async with archiving(primary, dsn=primary.dsn("nobody")):
                raise AssertionError("it was entered")
    finally:
        primary.psql("drop role nobody")


async def test_replication_is_enough_where_sql_is_not_allowed(primary: TestServer) -> None:
    async with archiving(primary, dsn=primary.dsn("backup", "no_such_database")) as wal:
        await durable(wal, write(primary))
        await until(lambda: wal.status.findings)
        (finding,) = wal.status.findings
        assert finding.severity == "warning" and "cannot be watched" in finding.text
        assert wal.status.slot_bytes is not None


async def test_a_server_that_is_not_there_is_unreachable() -> None:
    nowhere = f"host=127.0.0.1 port={free_port()} user=backup password=hidden"
    wal = WalArchiver("orders", dsn=nowhere, archive=Archive(MemoryStore()))
    with pytest.raises(Unreachable) as caught:
        async with wal:
            raise AssertionError("it was entered")
    assert "hidden" not in str(caught.value) + repr(wal)


async def test_an_archiver_is_entered_once_at_a_time(primary: TestServer) -> None:
    wal = archiver(primary)
    async with wal:
        with pytest.raises(RuntimeError, match="once at a time"):
            await wal.__aenter__()
    async with wal:
        await durable(wal, write(primary))


def test_a_slot_has_a_name_that_the_server_accepts(primary: TestServer) -> None:
    assert archiver(primary, slot="mine_2").slot == "mine_2"
    with pytest.raises(ValueError, match="cannot be the name of a slot"):
        archiver(primary, slot="Robert'); --")
