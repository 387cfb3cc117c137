"""What the tests of incremental backups share: servers that allow them, chains, and the way back from a chain."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeAlias

import asyncpg

from resilience import Archive, Manifest, backup
from resilience.model.capture import Restored
from resilience.planning.chains import chain_of
from resilience.planning.restore import plan_restore
from resilience.postgres import PostgresDataDirectory, PostgresTarget
from resilience.primitives import StoredBackup
from resilience.stores import MemoryStore
from resilience.testing.postgres import TestServer, starts

Chain: TypeAlias = tuple[TestServer, Archive, list[Manifest]]
SUMMARIES = {"summarize_wal": "on", "autovacuum": "off"}


def archive_in_memory() -> Archive:
    return Archive(MemoryStore(), object_size=1 << 20)


def orders(server: TestServer) -> PostgresTarget:
    return PostgresTarget("orders", dsn=server.dsn("backup"))


async def chain_to(archive: Archive, manifest: Manifest) -> tuple[Manifest, ...]:
    return chain_of(manifest, [each async for each in archive.manifests(manifest.target)])


async def bring_back(archive: Archive, chain: Sequence[Manifest], into: PostgresDataDirectory) -> Restored:
    """Restore exactly these backups, without replaying a log."""
    plan = plan_restore(chain, await into.survey(chain))
    async with AsyncExitStack() as opened:
        stored: list[StoredBackup] = [await opened.enter_async_context(archive.open(each)) for each in chain]
        return await into.apply(plan, chain=stored)


async def three(server: TestServer, archive: Archive) -> list[Manifest]:
    """Back up a server with some rows three times, each time on what was there before."""
    made = []
    server.psql("create table trips as select i, repeat(md5(i::text), 9) as text from generate_series(1, 3000) i")
    for number in range(3):
        made.append((await backup(orders(server), archive, incremental=True)).manifest)
        server.psql(f"update trips set text = 'round {number}' where i % 300 = {number}")
    assert [each.kind for each in made] == ["base", "incremental", "incremental"]
    return made


async def value(dsn: str, query: str) -> str:
    """Return the only value of a query, as text."""
    connection = await asyncpg.connect(dsn)
    try:
        return str(await connection.fetchval(query))
    finally:
        await connection.close()


def anything_starts(data: Path, bin_dir: Path) -> bool:
    """Try, as a hurried person would, everything in and below a folder that looks like a data directory."""
    found = {path.parent.parent for path in data.rglob("global/pg_control")} | {data}
    return any(starts(each, bin_dir) for each in found)


async def nothing_starts(data: Path, bin_dir: Path) -> bool:
    return not await asyncio.to_thread(anything_starts, data, bin_dir)
