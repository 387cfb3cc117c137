"""What clusters of all kinds keep when they come back, and what an isolated server must not stumble over."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

from resilience import Archive, Conflict, Manifest, Refused, backup, restore
from resilience.postgres import PostgresDataDirectory, PostgresTarget
from resilience.postgres.mark import AUTO, GUARD, MARK, Mark
from resilience.stores import MemoryStore
from resilience.testing.postgres import TestServer, owned_folder, starts

from ..conftest import NewServer


async def back_up(server: TestServer) -> tuple[Archive, Manifest]:
    """Take a backup into memory."""
    archive = Archive(MemoryStore())
    report = await backup(PostgresTarget("orders", dsn=server.dsn("backup")), archive)
    return archive, report.manifest


async def ask(into: PostgresDataDirectory, query: str) -> object:
    """Ask the restored data, isolated, one question."""
    async with into.live() as live:
        connection = await asyncpg.connect(live.dsn)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()


async def test_commit_timestamps_survive(new_server: NewServer, tmp_owned: Path) -> None:
    source = new_server(17, settings={"track_commit_timestamp": "on"})
    source.psql("create table t as select 1 as id")
    archive, _ = await back_up(source)
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=source.bin_dir)
    await restore(archive, "orders", into=into)
    assert await ask(into, "select pg_xact_commit_timestamp(xmin) is not null from t")


@pytest.mark.parametrize("megabytes", [1, 64])
async def test_wal_segments_of_another_size_are_no_obstacle(
    new_server: NewServer, tmp_owned: Path, megabytes: int
) -> None:
    source = new_server(17, f"--wal-segsize={megabytes}", settings={"min_wal_size": "128MB"})
    archive, manifest = await back_up(source)
    assert manifest.details["wal_segment_size"] == f"{megabytes}MB"
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=source.bin_dir)
    await restore(archive, "orders", into=into)
    assert await ask(into, "select 1") == 1


@pytest.mark.parametrize("major", [17, 18])
async def test_many_replication_origins_are_no_obstacle(new_server: NewServer, tmp_owned: Path, major: int) -> None:
    name = "max_active_replication_origins" if major == 18 else "max_replication_slots"
    source = new_server(major, settings={name: "40"})
    source.psql("select pg_replication_origin_create('o' || n) from generate_series(1, 30) n")
    source.psql("select pg_replication_origin_advance('o' || n, '0/1') from generate_series(1, 30) n")
    archive, _ = await back_up(source)
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=source.bin_dir)
    await restore(archive, "orders", into=into)
    assert await ask(into, "select count(*) from pg_replication_origin") == 30


async def test_a_superuser_who_may_not_log_in_is_no_obstacle(new_server: NewServer, tmp_owned: Path) -> None:
    source = new_server(17)
    source.psql("create role dba superuser login")
    source.psql("alter role postgres nologin", user="dba")
    archive, _ = await back_up(source)
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=source.bin_dir)
    await restore(archive, "orders", into=into)
    assert await ask(into, "select current_user") == "dba"


async def test_code_that_runs_at_login_does_not_run_in_an_isolated_server(
    new_server: NewServer, tmp_owned: Path
) -> None:
    source = new_server(17)
    source.psql("create function stop() returns event_trigger language plpgsql as $$ begin raise 'no'; end $$")
    source.psql("alter system set event_triggers = off")
    source.psql("select pg_reload_conf()")
    source.psql("create event trigger stop on login execute function stop()")
    source.psql("alter role postgres set session_preload_libraries = 'auto_explain'")
    archive, _ = await back_up(source)
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=source.bin_dir)
    await restore(archive, "orders", into=into)
    assert await ask(into, "select current_setting('session_preload_libraries')") == ""


async def test_a_delayed_standby_gives_back_what_it_had_replayed_and_no_more(
    new_server: NewServer, standby_of: Callable[[TestServer], TestServer], tmp_owned: Path
) -> None:
    primary = new_server(17)
    primary.psql("create table t as select 1 as id")
    standby = standby_of(primary)
    standby.psql("alter system set recovery_min_apply_delay = '1h'")
    standby.psql("select pg_reload_conf()")
    primary.psql("drop table t")
    lsn = primary.psql("select pg_current_wal_flush_lsn()")
    while standby.psql(f"select pg_last_wal_receive_lsn() >= '{lsn}'") != "t":
        pass
    archive, manifest = await back_up(standby)
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=primary.bin_dir)
    report = await restore(archive, "orders", into=into)
    assert report.reached.position.offset >= manifest.recovery_point.position.offset
    assert await ask(into, "select count(*) from t") == 1


async def test_the_new_timelines_history_waits_to_be_archived(new_server: NewServer, tmp_owned: Path) -> None:
    source = new_server(17)
    archive, _ = await back_up(source)
    data = tmp_owned / "data"
    await restore(archive, "orders", into=PostgresDataDirectory(data, bin_dir=source.bin_dir))
    assert (data / "pg_wal" / "archive_status" / "00000002.history.ready").exists()


async def test_a_mark_in_a_backup_is_not_taken_for_ours(new_server: NewServer, tmp_owned: Path) -> None:
    source = new_server(17)
    (source.data / MARK).write_text("[]")
    os.chown(source.data / MARK, source.data.stat().st_uid, source.data.stat().st_gid)
    archive, _ = await back_up(source)
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=source.bin_dir)
    await restore(archive, "orders", into=into)
    assert not (tmp_owned / "data" / MARK).exists()
    assert starts(tmp_owned / "data", source.bin_dir)


def marked(data: Path, folders: list[Path]) -> Mark:
    """Make a folder that looks like an interrupted restore."""
    owned_folder(data)
    mark = Mark(data, None)
    mark.set(folders)
    return mark


async def test_a_restore_that_still_runs_is_not_discarded(tmp_owned: Path) -> None:
    mark = marked(tmp_owned / "data", [tmp_owned / "data"])
    with pytest.raises(Conflict, match="still running"):
        await PostgresDataDirectory(tmp_owned / "data").discard()
    mark.release()
    await PostgresDataDirectory(tmp_owned / "data").discard()
    assert list((tmp_owned / "data").iterdir()) == []


async def test_a_complete_cluster_with_a_stale_mark_is_not_discarded(tmp_owned: Path) -> None:
    data = tmp_owned / "data"
    marked(data, [data]).release()
    (data / "global").mkdir()
    (data / "global" / "pg_control").write_bytes(b"control")
    (data / AUTO).write_bytes(b"")
    with pytest.raises(Refused, match="neither by this object"):
        await PostgresDataDirectory(data).discard()
    (data / AUTO).write_bytes(b"x = 1\n" + GUARD)
    await PostgresDataDirectory(data).discard()
    assert list(data.iterdir()) == []


async def test_a_mark_that_is_not_ours_or_unreadable_is_not_obeyed(tmp_owned: Path) -> None:
    data, precious = tmp_owned / "data", owned_folder(tmp_owned / "precious")
    (precious / "file").write_text("keep")
    marked(data, [precious]).release()
    if os.geteuid() == 0:
        os.chown(data / MARK, 65534, 65534)
        with pytest.raises(Refused, match="belongs to another account"):
            await PostgresDataDirectory(data).discard()
        os.chown(data / MARK, 0, 0)
    (data / MARK).write_text("{")
    with pytest.raises(Refused, match="cannot be read"):
        await PostgresDataDirectory(data).discard()
    assert (precious / "file").exists()


async def test_tablespaces_may_not_share_a_folder(new_server: NewServer, tmp_owned: Path) -> None:
    source = new_server(17)
    places = {str(owned_folder(source.folder / name)): tmp_owned / "same" for name in ("one", "two")}
    for number, where in enumerate(places):
        source.psql(f"create tablespace t{number} location '{where}'")
    archive, _ = await back_up(source)
    with pytest.raises(Refused, match="lie in one another"):
        await restore(
            archive,
            "orders",
            into=PostgresDataDirectory(tmp_owned / "data", bin_dir=source.bin_dir, tablespaces=dict(places)),
        )


async def test_a_relative_tablespace_path_is_taken_from_here(
    new_server: NewServer, tmp_owned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = new_server(17)
    where = owned_folder(source.folder / "space")
    source.psql(f"create tablespace warm location '{where}'")
    source.psql("create table far tablespace warm as select generate_series(1, 50) as id")
    archive, _ = await back_up(source)
    monkeypatch.chdir(tmp_owned)
    into = PostgresDataDirectory("data", bin_dir=source.bin_dir, tablespaces={str(where): "space"})
    await restore(archive, "orders", into=into)
    assert await ask(into, "select count(*) from far") == 50
