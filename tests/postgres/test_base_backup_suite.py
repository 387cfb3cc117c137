"""The physical target and the data directory keep what targets and destinations promise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from resilience import Archive
from resilience.postgres import PostgresDataDirectory, PostgresTarget
from resilience.postgres.client import Dsn
from resilience.postgres.isolation import LiveServer
from resilience.postgres.lsn import parse_lsn
from resilience.postgres.wal.archiver import WalArchiver
from resilience.primitives import BackupTarget, RestoreDestination
from resilience.stores import MemoryStore
from resilience.testing.postgres import TestServer, owned_folder, starts
from resilience.testing.systems import RoundTripSuite

from .wal import durable

_CONTENT = "select count(*) || ' ' || sum(hashtext(suite::text)::numeric) from suite"
_STATE = """
select array[
    (select count(*) from pg_replication_slots),
    (select count(*) from pg_stat_progress_basebackup),
    (select count(*) from pg_stat_activity where backend_type = 'walsender'),
    (select count(*) from pg_roles),
    (select count(*) from pg_database),
    (select count(*) from pg_class)]
"""


class TestPostgresDirectory(RoundTripSuite[LiveServer]):
    capture_step = 5
    apply_step = 97

    @pytest.fixture
    def target(self, postgres16: TestServer, request: pytest.FixtureRequest) -> BackupTarget:
        postgres16.psql("create table suite as select i, repeat(i::text, 9) from generate_series(1, 999) i")
        request.addfinalizer(lambda: postgres16.psql("drop table suite"))  # noqa: PT021  # the suite says: return
        return PostgresTarget("orders", dsn=postgres16.dsn("backup"))

    @pytest.fixture
    def destination(self, postgres16: TestServer, tmp_owned: Path) -> RestoreDestination[LiveServer]:
        return PostgresDataDirectory(tmp_owned / "data", bin_dir=postgres16.bin_dir)

    @pytest.fixture
    def archive(self) -> Archive:
        return Archive(MemoryStore(), object_size=1 << 20)

    async def state(self, target: BackupTarget) -> object:
        return await value(superuser(target), _STATE)

    async def content(self, destination: RestoreDestination[LiveServer]) -> object:
        folder = directory(destination).path
        return sorted(str(path) for path in folder.rglob("*"))

    async def occupy(self, destination: RestoreDestination[LiveServer]) -> None:
        (owned_folder(directory(destination).path) / "theirs").write_text("data")

    async def startable(self, destination: RestoreDestination[LiveServer]) -> bool:
        into = directory(destination)
        return await asyncio.to_thread(starts, into.path, Path(into.bin_dir or ""))

    async def whole(self, destination: RestoreDestination[LiveServer]) -> bool:
        # PostgreSQL removes recovery.signal when it has reached the recovery point.
        data = directory(destination).path
        return (data / "global" / "pg_control").exists() and not (data / "recovery.signal").exists()

    @asynccontextmanager
    async def archiving(self, target: BackupTarget, archive: Archive) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        dsn = superuser(target)
        wal = WalArchiver(target.name, dsn=dsn, archive=archive, slot="suite", interval=0.1)
        try:
            async with wal:

                async def change() -> None:
                    await value(dsn, "insert into suite values (0, 'changed')")
                    await durable(wal, parse_lsn(str(await value(dsn, "select pg_current_wal_flush_lsn()::text"))))

                yield change
        finally:
            await value(dsn, "select pg_drop_replication_slot(slot_name) from pg_replication_slots")

    async def check(self, target: BackupTarget, live: LiveServer) -> None:
        assert await value(live.dsn, _CONTENT) == await value(superuser(target), _CONTENT)


async def value(dsn: str, query: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def superuser(target: BackupTarget) -> str:
    assert isinstance(target, PostgresTarget)
    return Dsn({**target.dsn.parameters, "user": "postgres"}).uri()


def directory(destination: RestoreDestination[LiveServer]) -> PostgresDataDirectory:
    assert isinstance(destination, PostgresDataDirectory)
    return destination
