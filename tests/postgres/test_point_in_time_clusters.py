"""What may have happened to a cluster since its backup is no obstacle to replaying it, and harms nobody else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

from resilience import Archive, Refused, restore
from resilience.model.targets import RecoveryTarget
from resilience.postgres import PostgresDataDirectory, PostgresScratch
from resilience.stores import MemoryStore
from resilience.testing.postgres import TestServer, owned_folder

from ..conftest import NewServer
from .archived import SETTINGS, archive_wal, ask, back_up, insert, rows


async def test_settings_raised_and_databases_dropped_since_the_backup(new_server: NewServer, tmp_owned: Path) -> None:
    source = new_server(17, "--wal-segsize=1", settings={**SETTINGS, "track_commit_timestamp": "off"})
    source.psql("create database orders")
    where = owned_folder(source.folder / "space")
    source.psql(f"create tablespace warm location '{where}'")
    archive = Archive(MemoryStore(), object_size=1 << 20)
    manifest = await back_up(source, archive)
    source.psql("create table filler as select repeat(i::text, 30) from generate_series(1, 40000) i", database="orders")

    raised = {"max_connections": "311", "max_locks_per_transaction": "80", "track_commit_timestamp": "on"}
    with (source.data / "postgresql.conf").open("a") as file:
        file.writelines(f"{name} = {value}\n" for name, value in raised.items())
    source.stop()
    source.start()
    source.psql("create table rows (id int) tablespace warm", database="orders")
    source.psql("drop database postgres", database="orders")
    source.psql("insert into rows values (1)", database="orders")
    source.psql("select pg_create_restore_point('here')", database="orders")
    source.psql("insert into rows values (2)", database="orders")
    await archive_wal(source, archive, manifest, database="orders")
    untouched = {path: path.stat().st_mtime_ns for path in where.rglob("*")}

    spaces = {str(where): tmp_owned / "space"}
    for target, wanted in ((RecoveryTarget.name("here"), 1), (RecoveryTarget.latest(), 2)):
        into = PostgresDataDirectory(tmp_owned / "data", bin_dir=source.bin_dir, tablespaces=spaces)
        await restore(archive, "orders", into=into, until=target)
        async with into.live() as live:
            connection = await asyncpg.connect(live.dsn.replace("/template1?", "/orders?"))
            try:
                assert await connection.fetchval("select count(*) from rows") == wanted
                stamped = "select count(*) from rows where pg_xact_commit_timestamp(xmin) is not null"
                assert await connection.fetchval(stamped) == wanted
            finally:
                await connection.close()
        await into.discard()
    assert untouched == {path: path.stat().st_mtime_ns for path in where.rglob("*")}


async def test_the_log_of_a_primary_goes_on_where_a_backup_of_its_standby_ends(
    new_server: NewServer, standby_of: Callable[[TestServer], TestServer], tmp_owned: Path
) -> None:
    source = new_server(17, settings=SETTINGS)
    source.psql("create table rows (id int)")
    archive = Archive(MemoryStore(), object_size=1 << 20)
    manifest = await back_up(standby_of(source), archive)
    moments = [insert(source, row) for row in (1, 2)]
    await archive_wal(source, archive, manifest)
    for target, wanted in ((RecoveryTarget.time(moments[0]), [1]), (RecoveryTarget.latest(), [1, 2])):
        into = PostgresDataDirectory(tmp_owned / "data", bin_dir=source.bin_dir)
        await restore(archive, "orders", into=into, until=target)
        assert await rows(into) == wanted
        await into.discard()


async def test_a_scratch_restore_beside_a_live_archive_leaves_it_untouched(
    new_server: NewServer, tmp_owned: Path
) -> None:
    pushed = owned_folder(tmp_owned / "pushed")
    push = {"archive_mode": "on", "archive_command": f"'cp %p {pushed}/%f'"}
    source = new_server(17, "--wal-segsize=64", settings={**SETTINGS, **push})
    archive = Archive(MemoryStore(), object_size=1 << 20)
    source.psql("create table rows (id int)")
    manifest = await back_up(source, archive)
    insert(source, 1)
    source.psql("select pg_switch_wal()")
    await archive_wal(source, archive, manifest)
    source.stop()  # it pushes what is left
    before = sorted(path.name for path in pushed.iterdir())
    logged = [info.key async for info in archive.store.list("postgresql/orders/log/")]

    scratch = PostgresScratch(bin_dir=source.bin_dir, within=tmp_owned)
    await restore(archive, "orders", into=scratch, until=RecoveryTarget.latest())
    assert await rows(scratch) == [1]
    async with scratch.live() as live:
        connection = await asyncpg.connect(live.dsn)
        await connection.execute("insert into rows values (2)")
        await connection.execute("select pg_switch_wal()")
        await connection.close()
    await scratch.discard()
    assert before == sorted(path.name for path in pushed.iterdir())
    assert logged == [info.key async for info in archive.store.list("postgresql/orders/log/")]
    assert {path.name for path in tmp_owned.iterdir()} == {"pushed"}


async def test_a_tablespace_created_since_the_backup_is_not_shared_with_the_server_that_has_it(
    new_server: NewServer, tmp_owned: Path
) -> None:
    source = new_server(17, settings=SETTINGS)
    old, new = owned_folder(source.folder / "old"), owned_folder(source.folder / "new")
    source.psql(f"create tablespace cold location '{old}'")
    archive = Archive(MemoryStore(), object_size=1 << 20)
    source.psql("create table rows (id int)")
    manifest = await back_up(source, archive)
    source.psql("drop tablespace cold")
    before = insert(source, 1)
    insert(source, 2)
    source.psql(f"create tablespace warm location '{new}'")
    source.psql("create table far tablespace warm as select 1 as id")
    await archive_wal(source, archive, manifest)
    untouched = {path: path.stat().st_mtime_ns for path in new.rglob("*")}
    assert len(untouched) > 2

    spaces = {str(old): tmp_owned / "space"}
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=source.bin_dir, tablespaces=spaces)
    with pytest.raises(Refused, match=f"creates a tablespace in {new}.*new_tablespaces=True"):
        await restore(archive, "orders", into=into)
    assert untouched == {path: path.stat().st_mtime_ns for path in new.rglob("*")}
    await into.discard()
    await restore(archive, "orders", into=into, until=before)
    assert await rows(into) == [1]
    assert list((into.path / "pg_tblspc").iterdir()) == [], "the one that was dropped"
    await into.discard()

    source.stop()
    shutil.rmtree(new)
    owned_folder(new)
    alone = PostgresDataDirectory(tmp_owned / "data", bin_dir=source.bin_dir, tablespaces=spaces, new_tablespaces=True)
    await restore(archive, "orders", into=alone)
    assert await ask(alone, "select count(*) from far") == 1
