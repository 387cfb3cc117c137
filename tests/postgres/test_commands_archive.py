"""archive_command: what PostgreSQL was told is archived is in the archive, whoever died meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from resilience import Archive
from resilience.archive.log import ArchiveLog
from resilience.model.log import LogFacts
from resilience.postgres.wal_source import WalSource
from resilience.stores import LocalStore
from resilience.testing.postgres import TestServer

from ..conftest import NewServer
from .resident import SEGMENT, Commands, ended, reachable_python, until

SETTINGS = {"archive_mode": "on", "archive_command": "false", "wal_keep_size": "1GB"}


@pytest.fixture(scope="session")
def python(session_folder: Path) -> str:
    folder = session_folder / "python"
    folder.mkdir(exist_ok=True)
    return reachable_python(folder)


@pytest.fixture
def commands(new_server: NewServer, tmp_owned: Path, python: str) -> Iterator[Commands]:
    """A server whose archive_command is ours, with segments of 1 MiB and a table to write to."""
    server = new_server(16, "--wal-segsize=1", settings=SETTINGS)
    made = Commands(python, tmp_owned, server)
    server.psql("create table t (i int)")
    with ended(made):
        yield made


def use(commands: Commands) -> None:
    commands.configure(commands.archive_command)
    commands.server.psql("select pg_reload_conf()")


async def facts(commands: Commands) -> LogFacts:
    archive = Archive(LocalStore(commands.archive))
    (lineage,) = await archive.lineages("orders")
    async with archive.log("orders", system="postgresql", lineage=lineage) as log:
        return await log.survey()


async def stored(commands: Commands, name: str) -> bytes | None:
    archive = Archive(LocalStore(commands.archive))
    (lineage,) = await archive.lineages("orders")
    async with archive.log("orders", system="postgresql", lineage=lineage) as log:
        pieces = await WalSource(log, SEGMENT).fetch(name)
        return None if pieces is None else b"".join(pieces)


async def test_what_the_server_archives_is_in_the_archive_byte_for_byte(commands: Commands) -> None:
    use(commands)
    names = [commands.switch(rows=1000) for _ in range(20)]
    commands.caught_up()
    assert commands.resident() is not None
    for name in names:
        assert await stored(commands, name) == (commands.server.data / "pg_wal" / name).read_bytes()
    found = await facts(commands)
    assert [branch.name for branch in found.branches] == ["1"]
    assert commands.server.psql("select failed_count from pg_stat_archiver where failed_count > 1") == ""
