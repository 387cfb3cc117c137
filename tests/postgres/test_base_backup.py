"""A physical backup of a real server: what is in it, from whom it may come, and what it says of itself."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from collections.abc import Callable

import pytest

from resilience import Archive, Event, Manifest, backup, restore, verify
from resilience.model.errors import Refused
from resilience.postgres import PostgresDataDirectory, PostgresTarget
from resilience.postgres.server_manifest import ServerManifest
from resilience.stores import MemoryStore
from resilience.testing.archivers import read
from resilience.testing.memory import MemoryTarget
from resilience.testing.postgres import TestServer, owned_folder, starts

from ..conftest import NewServer
from .conftest import idle
from .proxy import MIB, proxied


def archive_in_memory() -> Archive:
    return Archive(MemoryStore(), object_size=2 * MIB)


async def opened(archive: Archive, manifest: Manifest, part: str) -> tarfile.TarFile:
    """Read a part as a tar, with another reader than our own."""
    async with archive.open(manifest) as stored:
        return tarfile.open(fileobj=io.BytesIO(await read(stored, part)))  # only in memory


@pytest.mark.parametrize("major", [15, 16, 17, 18])
async def test_everything_is_in_the_backup_also_what_lies_in_another_tablespace(
    new_server: NewServer, major: int
) -> None:
    server = new_server(major)
    where = owned_folder(server.folder / "space")
    server.psql(f"create tablespace warm location '{where}'")
    server.psql("create table far tablespace warm as select generate_series(1, 5000) as id")
    oid = server.psql("select oid from pg_tablespace where spcname = 'warm'")
    file = server.psql("select pg_relation_filepath('far')")
    archive = archive_in_memory()

    report = await backup(PostgresTarget("orders", dsn=server.dsn("backup")), archive)

    manifest = report.manifest
    assert [part.name for part in manifest.parts] == [f"{oid}.tar", "base.tar", "backup_manifest"]
    space = await opened(archive, manifest, f"{oid}.tar")
    assert file.removeprefix(f"pg_tblspc/{oid}/") in space.getnames()
    base = await opened(archive, manifest, "base.tar")
    names = [name.removeprefix("./").rstrip("/") for name in base.getnames()]
    assert {"PG_VERSION", "backup_label", "base/1/PG_VERSION", f"pg_tblspc/{oid}"} <= set(names)
    wal = [name for name in names if name.startswith("pg_wal/0")]
    assert names.index("global/pg_control") < names.index(wal[0])
    async with archive.open(manifest) as stored:
        kept = ServerManifest.parse(await read(stored, "backup_manifest"))
    files = [member.name for member in base.getmembers() if member.isfile()]
    files += [f"pg_tblspc/{oid}/{member.name}" for member in space.getmembers() if member.isfile()]
    # WAL proves itself, so its segments are not in the server's manifest.
    assert {each.name for each in kept.files} == set(files) - set(wal)
    assert (await verify(archive, manifest)).passed


async def test_the_manifest_says_what_a_restore_has_to_know(postgres17: TestServer) -> None:
    report = await backup(PostgresTarget("orders", dsn=postgres17.dsn("backup")), archive_in_memory())
    manifest, details = report.manifest, report.manifest.details
    control = dict(
        line.split(":", 1) for line in postgres17.run("pg_controldata", str(postgres17.data)).stdout.splitlines()
    )
    assert manifest.lineage == control["Database system identifier"].strip()
    assert details["major"] == 17
    assert str(details["version"]).startswith("17.")
    assert (details["wal_segment_size"], details["block_size"], details["data_checksums"]) == ("16MB", "8192", "on")
    assert (details["from_standby"], details["damaged"], details["tablespaces"]) == (False, "", {})
    assert details["bootstrap_role"] == "postgres"
    databases = details["databases"]
    assert isinstance(databases, list)
    assert {each["name"] for each in databases if isinstance(each, dict)} == {"postgres", "template1"}
    begins, ends = manifest.begins, manifest.recovery_point.position
    assert begins.branch == ends.branch == "1"
    assert 0 < begins.offset < ends.offset
    assert manifest.recovery_point.time is not None
    assert manifest.started_at < manifest.recovery_point.time < manifest.ended_at
    assert report.findings == ()


async def test_progress_comes_to_the_servers_own_estimate(postgres17: TestServer) -> None:
    events: list[Event] = []
    report = await backup(
        PostgresTarget("orders", dsn=postgres17.dsn("backup")), archive_in_memory(), observer=events.append
    )
    total = events[-1].total
    assert total is not None
    assert events[-1].done == report.manifest.size
    # The estimate knows neither the WAL nor the tar's headers.
    assert 0 <= report.manifest.size - total < 20 * MIB
    assert len([event for event in events if event.stage == "progress"]) > 5


async def test_json_of_a_report_is_read_by_others(postgres17: TestServer) -> None:
    report = await backup(PostgresTarget("orders", dsn=postgres17.dsn("backup")), archive_in_memory())
    decoded = json.loads(report.to_json())
    assert decoded["manifest"]["lineage"] == report.manifest.lineage
    assert decoded["manifest"]["begins"]["offset"] == str(int(report.manifest.begins.offset))


async def test_a_standby_gives_a_backup_that_restores(
    new_server: NewServer, standby_of: Callable[[TestServer], TestServer]
) -> None:
    primary = new_server(17)
    primary.psql("create table kept as select generate_series(1, 1000) as id")
    standby = standby_of(primary)
    archive = archive_in_memory()
    report = await backup(PostgresTarget("orders", dsn=standby.dsn("backup")), archive)
    assert report.manifest.details["from_standby"] is True
    assert await idle(standby)
    data = owned_folder(standby.folder / "restored") / "data"
    into = PostgresDataDirectory(data, bin_dir=standby.bin_dir)
    restored = await restore(archive, "orders", into=into)
    assert restored.reached.position.offset >= report.manifest.recovery_point.position.offset
    assert starts(data, standby.bin_dir)


async def test_a_promotion_midway_fails_the_backup_of_a_standby_clearly(
    new_server: NewServer, standby_of: Callable[[TestServer], TestServer]
) -> None:
    standby = standby_of(new_server(17))
    archive = archive_in_memory()
    async with proxied(standby, hold_after=4 * MIB) as proxy:
        running = asyncio.create_task(backup(PostgresTarget("orders", dsn=proxy.dsn()), archive))
        await proxy.held.wait()
        standby.psql("select pg_promote()")
        proxy.release()
        with pytest.raises(Exception, match="the standby was promoted during online backup") as failed:
            await running
    assert type(failed.value).__name__ == "Unavailable"
    assert [each async for each in archive.manifests("orders")] == []
    assert await idle(standby)
    await backup(PostgresTarget("orders", dsn=standby.dsn("backup")), archive)


async def test_a_standby_whose_primary_writes_no_full_pages_is_refused_and_so_only(
    new_server: NewServer, standby_of: Callable[[TestServer], TestServer]
) -> None:
    primary = new_server(17, settings={"wal_keep_size": "1GB"})  # or a slow standby is left behind for ever
    standby = standby_of(primary)
    target = PostgresTarget("orders", dsn=standby.dsn("backup"))

    async def catch_up(setting: str) -> None:
        primary.psql(f"alter system set full_page_writes = {setting}")
        primary.psql("select pg_reload_conf()")
        # The checkpoint says with which setting it began; a standby knows the last one it has replayed.
        for _ in range(2):
            primary.psql("select pg_switch_wal()")
            primary.psql("checkpoint")
        lsn = primary.psql("select pg_current_wal_lsn()")
        while standby.psql(f"select pg_last_wal_replay_lsn() >= '{lsn}'") != "t":
            await asyncio.sleep(0.01)
        standby.psql("checkpoint")

    await catch_up("off")
    archive = archive_in_memory()
    with pytest.raises(Refused, match="full_page_writes"):
        await backup(target, archive)
    assert [each async for each in archive.manifests("orders")] == []
    assert await idle(standby)
    await catch_up("on")
    await backup(target, archive)
    # What the standby itself is set to does not matter.
    standby.psql("alter system set full_page_writes = off")
    standby.psql("select pg_reload_conf()")
    await backup(target, archive)


async def test_wal_that_others_would_recycle_is_kept_until_it_is_sent(new_server: NewServer) -> None:
    server = new_server(17, settings={"max_wal_size": "32MB", "min_wal_size": "32MB", "wal_keep_size": "0"})
    archive = archive_in_memory()
    async with proxied(server, hold_after=4 * MIB) as proxy:
        running = asyncio.create_task(backup(PostgresTarget("orders", dsn=proxy.dsn()), archive))
        await proxy.held.wait()
        assert server.psql("select count(*) from pg_replication_slots where temporary") == "1"
        first = server.psql("select min(name) from pg_ls_waldir() where name ~ '^[0-9A-F]{24}$'")
        for _ in range(4):
            server.psql("select pg_logical_emit_message(true, 'x', repeat('x', 5000000))")
            server.psql("select pg_switch_wal()")
            server.psql("checkpoint")
        assert server.psql("select min(name) from pg_ls_waldir() where name ~ '^[0-9A-F]{24}$'") == first
        proxy.release()
        report = await running
    assert await idle(server)
    base = await opened(archive, report.manifest, "base.tar")
    assert len([name for name in base.getnames() if name.startswith("pg_wal/0") and "." not in name]) >= 4


async def test_a_name_that_belongs_to_another_system_is_refused(postgres17: TestServer) -> None:
    archive = archive_in_memory()
    await backup(MemoryTarget("orders", {"one": b"data"}), archive)
    with pytest.raises(Refused, match="orders: the name belongs to a memory target in this archive"):
        await backup(PostgresTarget("orders", dsn=postgres17.dsn("backup")), archive)
    assert await idle(postgres17)
