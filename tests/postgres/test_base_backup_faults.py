"""Whatever fails in the middle of a physical backup: nothing half done is listed, the server is left in peace."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from resilience import Archive, backup, verify
from resilience.model.errors import (
    ChecksumMismatch,
    Corrupt,
    Refused,
    ResilienceError,
    StorageFailed,
    Unavailable,
    Unreachable,
)
from resilience.postgres import PostgresTarget
from resilience.primitives import ObjectStore
from resilience.stores import LocalStore, MemoryStore
from resilience.testing.archivers import listed
from resilience.testing.cancellation import nothing_left_running
from resilience.testing.faults import WatchedStore
from resilience.testing.postgres import TestServer, free_port
from resilience.testing.stores import listed as objects
from resilience.testing.stores import read

from ..conftest import NewServer
from .conftest import idle
from .killed_backup import archive_in
from .proxy import MIB, Proxy, proxied

CHECKOUT = Path(__file__).parents[2]
PASSWORD = "a wrong secret that must never show"


def archive_over(store: ObjectStore | None = None) -> Archive:
    return Archive(MemoryStore() if store is None else store, object_size=MIB)


async def outcomes(store: ObjectStore) -> list[dict[str, str]]:
    """Return the records of how attempts ended."""
    records = await objects(store, "postgresql/orders/runs/")
    return [json.loads(await read(store, info.key)) for info in records if info.key.endswith("ended.json")]


@asynccontextmanager
async def backing_up(proxy: Proxy, archive: Archive) -> AsyncIterator[asyncio.Task[object]]:
    """Run a backup through a proxy that holds it in the middle; the server is in backup mode then."""
    running: asyncio.Task[object] = asyncio.create_task(backup(PostgresTarget("orders", dsn=proxy.dsn()), archive))
    await asyncio.wait([running, asyncio.create_task(proxy.held.wait())], return_when=asyncio.FIRST_COMPLETED)
    assert not running.done()
    assert proxy.server.psql("select count(*) from pg_stat_progress_basebackup") == "1"
    assert proxy.server.psql("select count(*) from pg_replication_slots where temporary") == "1"
    try:
        yield running
    finally:
        running.cancel()
        await asyncio.wait([running])


async def untouched_then_succeeds(server: TestServer, archive: Archive) -> None:
    """Insist that nothing is listed, the server is idle, and a new run succeeds."""
    assert await listed(archive) == []
    assert await idle(server)
    report = await backup(PostgresTarget("orders", dsn=server.dsn("backup")), archive)
    assert (await verify(archive, report.manifest)).passed


async def test_a_server_killed_midway(new_server: NewServer) -> None:
    server, archive = new_server(16), archive_over()
    async with (
        nothing_left_running(),
        proxied(server, hold_after=4 * MIB) as proxy,
        backing_up(proxy, archive) as running,
    ):
        server.kill()
        proxy.release()
        with pytest.raises(Unreachable) as failed:
            await running
    assert f"127.0.0.1:{proxy.port}" in str(failed.value)
    assert [record["outcome"] for record in await outcomes(archive.store)] == ["failed"]
    server.start()
    await untouched_then_succeeds(server, archive)


async def test_a_connection_cut_midway(postgres17: TestServer) -> None:
    archive = archive_over()
    async with (
        nothing_left_running(),
        proxied(postgres17, hold_after=4 * MIB) as proxy,
        backing_up(proxy, archive) as running,
    ):
        proxy.cut()
        with pytest.raises(Unreachable, match="backup 127.0.0.1:"):
            await running
    await untouched_then_succeeds(postgres17, archive)


async def test_a_backup_that_an_administrator_ends(postgres17: TestServer) -> None:
    archive = archive_over()
    async with (
        nothing_left_running(),
        proxied(postgres17, hold_after=4 * MIB) as proxy,
        backing_up(proxy, archive) as running,
    ):
        postgres17.psql("select pg_terminate_backend(pid) from pg_stat_progress_basebackup")
        proxy.release()
        with pytest.raises(Unavailable, match="backup 127.0.0.1:"):
            await running
    await untouched_then_succeeds(postgres17, archive)


async def test_a_cancellation_while_the_server_says_nothing(postgres17: TestServer) -> None:
    archive = archive_over()
    async with (
        nothing_left_running(),
        proxied(postgres17, hold_after=4 * MIB) as proxy,
        backing_up(proxy, archive) as running,
    ):
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(running, 10)
    assert [record["outcome"] for record in await outcomes(archive.store)] == ["cancelled"]
    await untouched_then_succeeds(postgres17, archive)


@pytest.mark.parametrize("spoil_at", [1 * MIB, 8 * MIB])
async def test_a_byte_that_changes_on_the_way_is_found(postgres17: TestServer, spoil_at: int) -> None:
    archive = archive_over()
    async with nothing_left_running(), proxied(postgres17, spoil_at=spoil_at) as proxy:
        with pytest.raises(Corrupt, match="what arrived is not what the server's manifest says: base/.* checksum|tar"):
            await backup(PostgresTarget("orders", dsn=proxy.dsn()), archive)
    await untouched_then_succeeds(postgres17, archive)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(tmp_path)], check=True)
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


async def test_a_disk_full_in_the_store(postgres17: TestServer, small_disk: Path) -> None:
    async with nothing_left_running():
        with pytest.raises(StorageFailed, match=r"put postgresql/orders/base/.*: No space left on device"):
            await backup(PostgresTarget("orders", dsn=postgres17.dsn("backup")), archive_over(LocalStore(small_disk)))
    assert await listed(archive_over(LocalStore(small_disk))) == []
    assert await idle(postgres17)


async def test_a_store_that_fails_at_the_last_moment(postgres17: TestServer) -> None:
    async def fail(operation: str, key: str) -> None:
        if operation == "put" and "/manifests/" in key:
            raise StorageFailed("it is full", operation=operation, subject=key)

    store = MemoryStore()
    async with nothing_left_running():
        with pytest.raises(StorageFailed, match="it is full"):
            await backup(
                PostgresTarget("orders", dsn=postgres17.dsn("backup")), archive_over(WatchedStore(store, fail))
            )
    assert [record["outcome"] for record in await outcomes(store)] == ["failed"]
    await untouched_then_succeeds(postgres17, archive_over(store))


@pytest.mark.parametrize(
    ("operation", "words", "there"),
    [
        ("put", "targets/", 0),
        ("put", "/started.json", 0),
        ("put", "/base.tar/000000", 0),
        ("chunk", "/base.tar/000001", 0),
        ("put", "/backup_manifest/", 0),
        ("put", "/manifests/", 0),
        ("chunk", "/manifests/", 0),
        ("put", "/ended.json", 1),
    ],
)
async def test_our_process_killed_at_any_stage(
    postgres17: TestServer, tmp_path: Path, operation: str, words: str, there: int
) -> None:
    arguments = [str(tmp_path), postgres17.dsn("backup"), operation, words]
    killed = subprocess.run([sys.executable, "-m", "tests.postgres.killed_backup", *arguments], cwd=CHECKOUT)
    assert killed.returncode == -signal.SIGKILL
    assert await idle(postgres17)
    archive = archive_in(str(tmp_path))
    known = [manifest async for manifest in archive.manifests("orders")]
    assert len(known) == there
    assert all([(await verify(archive, manifest)).passed for manifest in known])
    report = await backup(PostgresTarget("orders", dsn=postgres17.dsn("backup")), archive)
    assert await listed(archive) == [*(manifest.id for manifest in known), report.manifest.id]


async def test_our_process_killed_while_the_server_is_sending(postgres17: TestServer, tmp_path: Path) -> None:
    async with proxied(postgres17, hold_after=4 * MIB) as proxy:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.postgres.killed_backup", str(tmp_path), proxy.dsn(), "", "", cwd=CHECKOUT
        )
        await proxy.held.wait()
        assert postgres17.psql("select count(*) from pg_stat_progress_basebackup") == "1"
        process.kill()
        await process.wait()
        proxy.release()
    await untouched_then_succeeds(postgres17, archive_in(str(tmp_path)))


@pytest.fixture
def guarded(new_server: NewServer) -> TestServer:
    """A server that asks `guarded` for a password, lets `local` in for SQL only, and `plain` may not replicate."""
    server = new_server(17)
    server.psql("create role guarded login replication password 'the right one'")
    server.psql("create role local login replication")
    server.psql("create role plain login")
    hba = server.data / "pg_hba.conf"
    rules = ["host all guarded samehost scram-sha-256", "host replication guarded samehost scram-sha-256"]
    rules += ["host replication local samehost reject"]
    hba.write_text("\n".join([*rules, hba.read_text()]))
    server.psql("select pg_reload_conf()")
    return server


async def test_a_wrong_password_is_refused_and_never_shown(
    guarded: TestServer, caplog: pytest.LogCaptureFixture
) -> None:
    target = PostgresTarget("orders", dsn=guarded.dsn("guarded", password=f"'{PASSWORD}'"))
    archive = archive_over()
    with caplog.at_level(logging.DEBUG), pytest.raises(Refused) as refused:
        await backup(target, archive)
    sentence = str(refused.value)
    assert sentence.startswith(f"survey 127.0.0.1:{guarded.port}: password authentication failed for user")
    assert sentence.endswith("(check the user, the password and pg_hba.conf)")
    shown = [sentence, repr(target), repr(target.dsn), caplog.text, *traceback.format_exception(refused.value)]
    assert not [text for text in shown if PASSWORD in text]
    assert await objects(archive.store) == []
    right = PostgresTarget("orders", dsn=guarded.dsn("guarded", password="'the right one'"))
    assert (await backup(right, archive)).manifest.size > 0


@pytest.mark.parametrize(
    ("role", "sentence"),
    [
        ("nobody-at-all", 'role "nobody-at-all" does not exist'),
        ("plain", r'the role plain may not replicate \(run: ALTER ROLE "plain" REPLICATION\)'),
        ("local", r"pg_hba.conf rejects replication connection .*\(check the user, the password and pg_hba.conf\)"),
    ],
)
async def test_a_role_that_may_not_is_refused_with_what_to_do(guarded: TestServer, role: str, sentence: str) -> None:
    archive = archive_over()
    with pytest.raises(Refused, match=sentence):
        await backup(PostgresTarget("orders", dsn=guarded.dsn(role)), archive)
    assert await listed(archive) == []
    assert await idle(guarded)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"wal_level": "minimal", "max_wal_senders": "0"}, "wal_level is minimal.*max_wal_senders is 0"),
        ({"max_wal_senders": "0"}, r"max_wal_senders is 0, nobody may take a backup \(set max_wal_senders = 5"),
        (
            {"max_replication_slots": "0"},
            r"max_replication_slots is 0, a backup needs one for .* \(set max_replication",
        ),
    ],
    ids=["wal_level", "senders", "slots"],
)
async def test_a_server_that_is_not_set_up_for_backups_says_so(
    new_server: NewServer, settings: dict[str, str], sentence: str
) -> None:
    server, archive = new_server(17, settings=settings), archive_over()
    with pytest.raises(Refused, match=sentence):
        await backup(PostgresTarget("orders", dsn=server.dsn("backup")), archive)
    assert await listed(archive) == []
    assert await idle(server)


async def test_a_server_that_is_not_there_is_said_in_one_sentence() -> None:
    port = free_port()
    with pytest.raises(Unreachable) as failed:
        await backup(PostgresTarget("orders", dsn=f"host=127.0.0.1 port={port} user=backup"), archive_over())
    assert str(failed.value).startswith(f"survey 127.0.0.1:{port}: no connection: ")
    assert str(failed.value).endswith("(is the server up?)")


async def test_a_host_that_is_not_known_is_said_in_one_sentence() -> None:
    with pytest.raises(Unreachable, match=r"survey nowhere.invalid:5432: no connection: .*is the server up"):
        await backup(PostgresTarget("orders", dsn="host=nowhere.invalid user=backup"), archive_over())


def spoil_page(server: TestServer, table: str) -> None:
    """Change a byte in the middle of the first page of a table; the server must not run."""
    path = server.data / table
    page = bytearray(path.read_bytes())
    page[4000] ^= 1
    path.write_bytes(page)


@pytest.mark.parametrize("major", [15, 18])
async def test_damaged_pages_fail_the_backup_unless_the_copy_is_wanted_all_the_same(
    new_server: NewServer, major: int
) -> None:
    server, archive = new_server(major), archive_over()
    server.psql("create table kept as select i, repeat('x', 100) from generate_series(1, 2000) i")
    file = server.psql("select pg_relation_filepath('kept')")
    server.psql("checkpoint")
    server.stop()
    spoil_page(server, file)
    server.start()

    async with nothing_left_running():
        with pytest.raises(Corrupt, match="checksum verification failure during base backup"):
            await backup(PostgresTarget("orders", dsn=server.dsn("backup")), archive)
    assert await listed(archive) == []
    assert await idle(server)

    target = PostgresTarget("orders", dsn=server.dsn("backup"), keep_damaged=True)
    report = await backup(target, archive)
    assert "checksum verification failure" in str(report.manifest.details["damaged"])
    warnings = [str(finding) for finding in report.findings]
    assert any("the copy holds damaged pages and was kept as asked" in text for text in warnings)
    assert any(file in text for text in warnings)
    assert all(finding.severity == "warning" for finding in report.findings)
    assert (await verify(archive, report.manifest)).passed
    assert await idle(server)


async def test_a_file_that_the_server_says_differs_is_named(
    postgres17: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(self: object) -> None:
        """Lose what was seen of one file."""

    monkeypatch.setattr("resilience.postgres.base_backup.BaseBackup.end", forget)
    archive = archive_over()
    with pytest.raises(ChecksumMismatch, match=r"what arrived is not what .* says: .* is missing, .* and \d+ more"):
        await backup(PostgresTarget("orders", dsn=postgres17.dsn("backup")), archive)
    await asyncio.sleep(0)
    monkeypatch.undo()
    await untouched_then_succeeds(postgres17, archive)


async def test_another_cluster_in_the_place_of_the_surveyed_one_is_refused(
    postgres16: TestServer, postgres17: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archive_over()
    elsewhere = await PostgresTarget("orders", dsn=postgres16.dsn("backup")).survey()

    async def surveyed(_: object) -> object:
        return elsewhere

    monkeypatch.setattr(PostgresTarget, "survey", surveyed)
    with pytest.raises(Refused, match="the server is now of lineage .*, the plan was made for"):
        await backup(PostgresTarget("orders", dsn=postgres17.dsn("backup")), archive)
    assert await listed(archive) == []
    assert await idle(postgres17)


async def test_backups_at_once_do_not_disturb_each_other(postgres17: TestServer) -> None:
    archive = archive_over()
    target = PostgresTarget("orders", dsn=postgres17.dsn("backup"))
    reports = await asyncio.gather(*(backup(target, archive) for _ in range(3)))
    assert await listed(archive) == sorted(report.manifest.id for report in reports)
    assert await idle(postgres17)


async def test_too_many_backups_at_once_fail_one_clearly_and_no_other(new_server: NewServer) -> None:
    server, archive = new_server(17, settings={"max_replication_slots": "1"}), archive_over()
    async with proxied(server, hold_after=4 * MIB) as proxy, backing_up(proxy, archive) as running:
        with pytest.raises(ResilienceError, match="all replication slots are in use") as failed:
            await backup(PostgresTarget("orders", dsn=server.dsn("backup")), archive)
        assert isinstance(failed.value, Unavailable)
        proxy.release()
        await running
    assert len(await listed(archive)) == 1
