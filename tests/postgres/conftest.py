"""What the tests of PostgreSQL share: standbys, and a look at what a server still does for a backup."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from resilience.postgres.wal import archiver as wal_archiver
from resilience.testing.postgres import TestServer, owned_folder, running_server

from ..conftest import FAST
from .chains import SUMMARIES, Chain, archive_in_memory, three
from .wal import drop_slot

ATTEMPTS = 1000
BUSY = """
select (select count(*) from pg_replication_slots where temporary)
    || ' slots, ' || (select count(*) from pg_stat_progress_basebackup)
    || ' backups, '
    || (select count(*) from pg_stat_activity where backend_type = 'walsender' and application_name <> 'standby')
    || ' connections'
"""
IDLE = "0 slots, 0 backups, 0 connections"


async def idle(server: TestServer) -> bool:
    """Wait until a server does nothing for a backup any more: it notices a moment later that its client has left."""
    for _ in range(ATTEMPTS):
        if await asyncio.to_thread(server.psql, BUSY) == IDLE:
            return True
        await asyncio.sleep(0.01)
    return False


@pytest.fixture(scope="session")
def chain(session_folder: Path, postgres_bin: Callable[[int], Path]) -> Iterator[Chain]:
    """The session's PostgreSQL 18 with a full backup and two incremental ones; leave both as they are found."""
    with running_server(session_folder / "server-chain", postgres_bin(18), settings={**FAST, **SUMMARIES}) as server:
        archive = archive_in_memory()
        yield server, archive, asyncio.run(three(server, archive))


@pytest.fixture
def standby_of(session_folder: Path) -> Iterator[Callable[[TestServer], TestServer]]:
    """`standby_of(server)` is a running standby of a server, of the test's own."""
    with ExitStack() as stack:

        def made(primary: TestServer) -> TestServer:
            folder = owned_folder(Path(tempfile.mkdtemp(prefix="standby-", dir=session_folder)))
            standby = TestServer(folder, primary.bin_dir)
            source = primary.dsn(application_name="standby")
            primary.run("pg_basebackup", "-D", str(standby.data), "-d", source, "-R", "-c", "fast", "--no-sync")
            with (standby.data / "postgresql.conf").open("a") as file:
                file.write(f"port = {standby.port}\nunix_socket_directories = '{folder}'\n")
            stack.callback(standby.kill)
            standby.start()
            return standby

        yield made


@pytest.fixture
def primary(postgres16: TestServer) -> Iterator[TestServer]:
    """The session's PostgreSQL 16, at a checkpoint; the archiver's slot is dropped afterwards."""
    postgres16.psql("checkpoint")
    yield postgres16
    drop_slot(postgres16)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """An archiver that does not pause for long."""
    monkeypatch.setattr(wal_archiver, "BUSY_SECONDS", 0.5)
    monkeypatch.setattr(wal_archiver, "WATCH_SECONDS", 0.1)
