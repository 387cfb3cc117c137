"""A real archive is pruned, and every kept moment of a real server comes back."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

from resilience import Archive, backup, coverage, restore, verify
from resilience.model.findings import Level
from resilience.model.retention import Keep, RetentionPolicy, RetentionRule
from resilience.operations.prune import plan_prune, prune
from resilience.postgres import PostgresDataDirectory
from resilience.postgres.wal.archiver import WalArchiver
from resilience.stores import LocalStore

from ..conftest import NewServer
from .archived import SETTINGS, archive_wal, insert, rows
from .chains import SUMMARIES, orders
from .wal import SOON, durable, fill, write

AGED = Keep(lasting=timedelta(microseconds=1))
POLICY = RetentionPolicy(
    rules=tuple(RetentionRule(system="postgresql", kind=kind, keep=(AGED,)) for kind in ("base", "incremental")),
    grace=timedelta(0),
)
"""Everything is old, but the newest of each kind."""


async def keys(archive: Archive, what: str) -> list[str]:
    return [info.key async for info in archive.store.list(f"postgresql/orders/{what}/")]


async def test_after_a_prune_a_moment_comes_back_from_an_incremental_chain_and_the_log(
    new_server: NewServer, tmp_path: Path, tmp_owned: Path
) -> None:
    server = new_server(17, settings={**SETTINGS, **SUMMARIES})
    archive = Archive(LocalStore(tmp_path / "store"), object_size=1 << 20)
    server.psql("create table rows (id int primary key)")
    made = []
    for number, incremental in enumerate((False, True, False, True)):
        insert(server, number)
        made.append((await backup(orders(server), archive, incremental=incremental)).manifest)
        write(server)
        await archive_wal(server, archive, made[0])
        fill(server, 2)
    moment = insert(server, 4)
    insert(server, 5)
    made.append((await backup(orders(server), archive)).manifest)
    await archive_wal(server, archive, made[0])
    assert [each.kind for each in made] == ["base", "incremental", "base", "incremental", "base"]

    before = await keys(archive, "log")
    plan = await plan_prune(archive, "orders", policy=POLICY)
    assert set(plan.removed) == {made[0].id, made[1].id}
    assert f"{made[3].id} builds on it" in str(plan)
    report = await prune(archive, "orders", plan=plan, actor="a test", reason="to see what comes back")
    assert set(report.removed) == set(plan.removed)
    assert report.freed == plan.freed > 1 << 20

    segments = await keys(archive, "log")
    assert 0 < len(segments) < len(before)
    begins = made[2].begins.offset
    assert all(int(key[-37:-21], 16) + (16 << 20) > begins for key in segments)
    assert (await coverage(archive, "orders")).holes == ()
    for manifest in made[2:]:
        assert (await verify(archive, manifest)).level == Level.CHECKSUMS
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=server.bin_dir)
    restored = await restore(archive, "orders", into=into, until=moment)
    assert restored.chain == (made[2].id, made[3].id)
    assert restored.reached.time == moment
    assert await rows(into) == [0, 1, 2, 3, 4]


async def test_a_log_that_is_being_written_goes_on_while_it_is_pruned(new_server: NewServer, tmp_path: Path) -> None:
    server = new_server(16)
    archive = Archive(LocalStore(tmp_path / "store"), object_size=1 << 20)
    async with WalArchiver("orders", dsn=server.dsn("backup"), archive=archive, interval=SOON) as wal:
        await backup(orders(server), archive)
        for _ in range(3):
            await durable(wal, await asyncio.to_thread(fill, server))
        newest = (await backup(orders(server), archive)).manifest
        await durable(wal, await asyncio.to_thread(write, server))
        report = await prune(archive, "orders", policy=POLICY)
        assert len(report.removed) == 1
        assert {"expired"} <= {each.what for each in report.plan.log}
        await durable(wal, await asyncio.to_thread(fill, server))
    (covered,) = (await coverage(archive, "orders")).ranges
    assert covered.begins.position.offset == newest.recovery_point.position.offset
    async with WalArchiver("orders", dsn=server.dsn("backup"), archive=archive, interval=SOON) as wal:
        await durable(wal, await asyncio.to_thread(write, server))
    assert (await coverage(archive, "orders")).holes == ()
