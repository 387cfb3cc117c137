"""A backup and the log after it come back to the moment that was asked for: everything before it, nothing after."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import asyncpg
import pytest

from resilience import Archive, backup
from resilience.model.targets import RecoveryTarget
from resilience.postgres import PostgresDataDirectory, PostgresTarget
from resilience.stores import MemoryStore
from resilience.testing.postgres import TestServer

from ..conftest import NewServer
from .archived import archive_wal, replay_plan, replayed

SETTINGS = {"wal_keep_size": "1GB", "autovacuum": "off"}


async def ask(into: PostgresDataDirectory, query: str) -> object:
    async with into.live() as live:
        connection = await asyncpg.connect(live.dsn)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()


def commit(server: TestServer, row: int) -> datetime:
    """Insert one row and return when that was committed."""
    server.psql(f"insert into rows values ({row})")
    text = server.psql(
        f"select pg_xact_commit_timestamp(xmin)::timestamptz at time zone 'UTC' from rows where id = {row}"
    )
    return datetime.fromisoformat(text + "+00:00")


@pytest.mark.parametrize("major", [15, 16, 17, 18])
async def test_a_restore_to_a_time_has_what_was_committed_by_then(
    new_server: NewServer, tmp_owned: Path, major: int
) -> None:
    source = new_server(major, settings={**SETTINGS, "track_commit_timestamp": "on"})
    source.psql("create table rows (id int)")
    archive = Archive(MemoryStore())
    manifest = (await backup(PostgresTarget("orders", dsn=source.dsn("backup")), archive)).manifest
    moments = [commit(source, row) for row in range(5)]
    end = await archive_wal(source, archive, manifest)
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=source.bin_dir)
    restored = await replayed(archive, replay_plan(manifest, RecoveryTarget.time(moments[2]), end), manifest, into)
    assert await ask(into, "select array_agg(id order by id) from rows") == [0, 1, 2]
    assert restored.reached.time == moments[2]
    assert restored.reached.position.branch == "1"
    assert not (tmp_owned / "data/pg_wal/resilience").exists()
