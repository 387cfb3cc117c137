"""Scratch servers prove that a backup starts, and never act as the production it was taken from."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

import asyncpg
import pytest
from attrs import evolve

from resilience import Archive, Level, Manifest, backup, restore, verify
from resilience.planning.restore import plan_restore
from resilience.postgres import (
    PostgresBackupValidator,
    PostgresDataDirectory,
    PostgresDumpTarget,
    PostgresDumpValidator,
    PostgresScratch,
    PostgresTarget,
)
from resilience.stores import MemoryStore
from resilience.testing.postgres import TestServer, owned_folder

from ..conftest import NewServer, missing


async def back_up(server: TestServer) -> tuple[Archive, Manifest]:
    """Take a backup into memory, in small objects."""
    archive = Archive(MemoryStore(), object_size=1 << 20)
    report = await backup(PostgresTarget("orders", dsn=server.dsn("backup")), archive)
    return archive, report.manifest


async def test_a_scratch_server_does_nothing_that_production_does(new_server: NewServer, tmp_owned: Path) -> None:
    limits = {"max_connections": "300", "max_prepared_transactions": "9"}
    source = new_server(17, settings={"wal_level": "logical", **limits})
    archived = owned_folder(tmp_owned / "archived")
    source.psql("create table orders as select generate_series(1, 100) as id")
    source.psql("create publication everything for all tables")
    source.psql(
        "create subscription mirror connection 'host=127.0.0.1 port=1 dbname=postgres' publication everything "
        "with (connect = false)"
    )
    source.psql("alter subscription mirror enable")
    for name, value in {
        "archive_mode": "on",
        "archive_command": f"touch {archived}/%f",
        "restore_command": f"touch {archived}/%f",
        "primary_conninfo": "host=127.0.0.1 port=1",
        "recovery_target_time": "2020-01-01 00:00:00+00",
        "shared_preload_libraries": "auto_explain",
        "session_preload_libraries": "auto_explain",
        "listen_addresses": "*",
        "shared_buffers": "4GB",
    }.items():
        source.psql(f"alter system set {name} = '{value}'")
    archive, manifest = await back_up(source)
    scratch = PostgresScratch(bin_dir=source.bin_dir, within=tmp_owned)
    try:
        plan = plan_restore([manifest], await scratch.survey([manifest]))
        async with archive.open(manifest) as stored:
            await scratch.apply(plan, chain=[stored])
        async with scratch.live() as live:
            connection = await asyncpg.connect(live.dsn)
            rows = await connection.fetch("select name, setting from pg_settings")
            settings = {row["name"]: row["setting"] for row in rows}
            workers = await connection.fetch("select backend_type from pg_stat_activity")
            await connection.execute("insert into orders values (0)")
            await connection.fetchval("select pg_switch_wal()")
            await connection.close()
    finally:
        await scratch.discard()
    kinds = {row["backend_type"] for row in workers}
    assert settings["max_connections"] == "300" and settings["max_prepared_transactions"] == "9"
    assert settings["archive_mode"] == "off" and settings["primary_conninfo"] == ""
    assert settings["listen_addresses"] == "" and settings["shared_buffers"] == "4096"
    assert settings["shared_preload_libraries"] == settings["session_preload_libraries"] == ""
    assert settings["autovacuum"] == "off"
    assert not {kind for kind in kinds if "logical" in kind or "archiver" in kind or "autovacuum" in kind}
    assert list(archived.iterdir()) == [], "it archived"
    assert [path.name for path in tmp_owned.iterdir()] == ["archived"], "it left something behind"


async def test_a_configuration_outside_the_data_directory_is_not_needed(new_server: NewServer, tmp_owned: Path) -> None:
    source = new_server(17)
    source.stop()
    elsewhere = source.folder / "elsewhere.conf"
    text = (source.data / "postgresql.conf").read_text()
    elsewhere.write_text(f"{text}\ndata_directory = '{source.data}'\nhba_file = '{source.data}/pg_hba.conf'\n")
    (source.data / "postgresql.conf").write_text(f"include '{elsewhere}'\n")
    source.start()
    (source.data / "postgresql.conf").unlink()
    archive, _ = await back_up(source)
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=source.bin_dir)
    await restore(archive, "orders", into=into)
    assert not (tmp_owned / "data" / "postgresql.conf").exists()
    async with into.live() as live:
        connection = await asyncpg.connect(live.dsn)
        assert await connection.fetchval("select 1") == 1
        await connection.close()


@pytest.fixture
def english(session_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A locale whose collation has a version, made for the test: C and C.UTF-8 have none."""
    if shutil.which("localedef") is None or not Path("/usr/share/i18n/locales/en_US").exists():
        missing("localedef or its sources are not installed (Debian: locales)")
    made = session_folder / "locales"
    made.mkdir(exist_ok=True)
    subprocess.run(["localedef", "-i", "en_US", "-f", "UTF-8", str(made / "en_US.UTF-8")], check=True)
    monkeypatch.setenv("LOCPATH", str(made))
    return "en_US.UTF-8"


async def test_differing_collation_versions_are_reported(new_server: NewServer, tmp_owned: Path, english: str) -> None:
    source = new_server(17, f"--locale={english}", "--encoding=UTF8")
    source.psql("update pg_database set datcollversion = '1.0' where datname = 'postgres'")
    archive, manifest = await back_up(source)
    report = await restore(archive, "orders", into=PostgresDataDirectory(tmp_owned / "data", bin_dir=source.bin_dir))
    assert [str(finding) for finding in report.findings if "collation version was 1.0" in finding.text]
    recorded = manifest.details["databases"]
    assert isinstance(recorded, list)
    assert isinstance(recorded[0], dict)
    assert {"collate", "provider", "collation_version"} <= set(recorded[0])


async def test_a_dropped_postgres_database_is_no_obstacle(new_server: NewServer, tmp_owned: Path) -> None:
    source = new_server(17)
    source.psql("create database orders")
    source.psql("drop database postgres", database="orders")
    archive = Archive(MemoryStore())
    await backup(PostgresTarget("orders", dsn=source.dsn("backup", "orders")), archive)
    await restore(archive, "orders", into=PostgresDataDirectory(tmp_owned / "data", bin_dir=source.bin_dir))


async def test_verify_reaches_level_3_and_says_what_it_looked_at(new_server: NewServer, tmp_owned: Path) -> None:
    source = new_server(17)
    where = owned_folder(source.folder / "space")
    source.psql(f"create tablespace warm location '{where}'")
    source.psql("create table far tablespace warm as select generate_series(1, 5000) as id")
    archive, manifest = await back_up(source)
    scratch = PostgresScratch(bin_dir=source.bin_dir, within=tmp_owned)
    verdict = await verify(archive, manifest, validators=[PostgresBackupValidator(at_least=1 << 20)], scratch=scratch)
    assert verdict.passed and verdict.level is Level.STARTS
    assert verdict.objects == 1 + sum(len(part.objects) for part in manifest.parts)
    assert verdict.bytes >= manifest.stored
    assert [finding.subject for finding in verdict.findings] == ["L0", "L1", "L2", "L3"]
    assert list(tmp_owned.iterdir()) == []


async def test_a_logical_backup_comes_to_life_in_a_scratch_cluster(every_postgres: TestServer, tmp_owned: Path) -> None:
    every_postgres.psql("create table counted as select generate_series(1, 77) as id")
    archive = Archive(MemoryStore())
    target = PostgresDumpTarget("logical", dsn=every_postgres.dsn(), bin_dir=every_postgres.bin_dir)
    report = await backup(target, archive)
    every_postgres.psql("drop table counted")
    scratch = PostgresScratch(bin_dir=every_postgres.bin_dir, within=tmp_owned)
    plan = plan_restore([report.manifest], await scratch.survey([report.manifest]))
    async with archive.open(report.manifest) as stored:
        await scratch.apply(plan, chain=[stored])
    async with scratch.live() as live:
        connection = await asyncpg.connect(live.dsn)
        assert await connection.fetchval("select count(*) from counted") == 77
        await connection.close()
    await scratch.discard()
    checks = [PostgresDumpValidator(bin_dir=every_postgres.bin_dir)]
    verdict = await verify(archive, report.manifest, validators=checks, scratch=scratch)
    assert verdict.passed and verdict.level is Level.STARTS
    assert list(tmp_owned.iterdir()) == []


async def test_verify_cancelled_in_a_scratch_server_leaves_nothing(new_server: NewServer, tmp_owned: Path) -> None:
    source = new_server(17)
    archive, manifest = await back_up(source)
    scratch = PostgresScratch(bin_dir=source.bin_dir, within=tmp_owned)
    verifying = asyncio.create_task(verify(archive, manifest, scratch=scratch))
    while not list(tmp_owned.glob("*/data/global/pg_control")):
        await asyncio.sleep(0.01)
    verifying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await verifying
    assert list(tmp_owned.iterdir()) == []


async def test_a_backup_below_the_size_floor_fails_level_2(new_server: NewServer) -> None:
    archive, manifest = await back_up(new_server(17))
    verdict = await verify(archive, manifest, validators=[PostgresBackupValidator(at_least=1 << 40)])
    assert not verdict.passed and verdict.level is Level.CHECKSUMS
    assert "less than the floor of 1.0 TiB" in str(verdict)


@pytest.mark.parametrize("fault", ["truncated", "flipped", "deleted"])
async def test_verify_names_every_object_that_is_damaged(new_server: NewServer, fault: str) -> None:
    archive, manifest = await back_up(new_server(17))
    store = archive.store
    victims = [info.key async for info in store.list("postgresql/") if "/runs/" not in info.key]
    assert len(victims) > 3
    for victim in victims:
        async with store.get(victim) as chunks:
            whole = b"".join([chunk async for chunk in chunks])
        await store.delete(victim)
        if fault == "truncated":
            await store.put(victim, [whole[:-1]])
        elif fault == "flipped":
            middle = len(whole) // 2
            await store.put(victim, [whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]])
        verdict = await verify(archive, manifest)
        assert not verdict.passed
        assert [finding.subject for finding in verdict.findings if finding.severity == "blocker"] == [victim]
        await store.delete(victim)
        await store.put(victim, [whole])
    assert (await verify(archive, manifest)).passed


async def test_level_2_finds_a_manifest_of_another_backup(new_server: NewServer) -> None:
    source = new_server(17)
    archive, _ = await back_up(source)
    source.psql("create table later as select generate_series(1, 100) as id")
    report = await backup(PostgresTarget("orders", dsn=source.dsn("backup")), archive)
    first = await anext(archive.manifests("orders"))
    listing = first.part("backup_manifest")
    mixed = tuple(listing if part.name == listing.name else part for part in report.manifest.parts)
    async with archive.open(evolve(report.manifest, parts=mixed)) as stored:
        verdict = await PostgresBackupValidator().check(stored)
    assert not verdict.passed and verdict.level is None
    assert "what arrived is not what the server's manifest says" in str(verdict)
