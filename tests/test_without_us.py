"""An archive can be brought back without this library: the commands in docs/archive-format.md are run as they are."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from resilience import Archive, Manifest, backup
from resilience.model.log import Branch, LogEntry
from resilience.postgres import PostgresDumpTarget, PostgresTarget
from resilience.postgres.lsn import parse_lsn, position
from resilience.postgres.tools import Tools
from resilience.postgres.wal.names import segment_name
from resilience.stores import LocalStore
from resilience.testing.log_entries import opened, piece, plain, whole
from resilience.testing.postgres import TestServer, owned_folder, unprivileged

from .conftest import NewServer, missing
from .test_docs import ROOT, blocks

SEGMENT = 16 << 20
CONTENT = "select count(*), sum(n) from numbers"


@pytest.fixture
def run_documented() -> Callable[..., None]:
    """Run one of the documented blocks, chosen by a word in it, with variables and PostgreSQL's programs."""
    if shutil.which("zstd") is None:
        missing("zstd is not installed")

    def run(word: str, bin_dir: Path, **variables: object) -> None:
        (script,) = [code for code in blocks(ROOT / "docs" / "archive-format.md", "sh") if word in code]
        environment = {**Tools.at(bin_dir).environment(), **{name: str(value) for name, value in variables.items()}}
        environment["PATH"] = f"{bin_dir}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    return run


@contextmanager
def server_on(folder: Path, bin_dir: Path) -> Iterator[TestServer]:
    """Run a server on `folder`/data, which may belong to us."""
    server = TestServer(folder, bin_dir)
    if account := unprivileged():
        subprocess.run(["chown", "-R", f"{account.uid}:{account.gid}", str(folder)], check=True)
    with (server.data / "postgresql.conf").open("a") as file:
        file.write(f"port = {server.port}\nunix_socket_directories = ''\n")
    server.start()
    try:
        yield server
    finally:
        server.kill()


def folder_of(store: Path, manifest: Manifest) -> Path:
    """Return where the parts of a backup lie in a local store."""
    return store / manifest.system / manifest.target / manifest.kind / manifest.id


async def test_a_base_backup_with_a_tablespace_comes_back(
    new_server: NewServer, run_documented: Callable[..., None], tmp_path: Path, tmp_owned: Path
) -> None:
    origin = new_server(17)
    fast = owned_folder(tmp_owned / "fast")
    origin.psql(f"create tablespace fast location '{fast}'")
    origin.psql("create table numbers tablespace fast as select generate_series(1, 100000) as n")
    report = await backup(
        PostgresTarget("orders", dsn=origin.dsn("backup")), Archive(LocalStore(tmp_path), object_size=100_000)
    )
    content = origin.psql(CONTENT)
    origin.kill()
    shutil.rmtree(fast)

    run_documented(
        "pg_verifybackup",
        origin.bin_dir,
        backup=folder_of(tmp_path, report.manifest),
        data=tmp_owned / "data",
        tablespaces=tmp_owned / "tablespaces",
    )
    with server_on(tmp_owned, origin.bin_dir) as server:
        assert server.psql(CONTENT) == content
        assert not fast.exists()


async def keep_wal(server: TestServer, archive: Archive, manifest: Manifest) -> None:
    """Append the WAL a server has written since a backup began to the log, the open segment as two slices."""
    ends = parse_lsn(server.psql("select pg_current_wal_flush_lsn()"))
    async with archive.log("orders", system="postgresql", lineage=manifest.lineage) as log:
        await log.record(Branch(name="1"))
        for begins in range(manifest.begins.offset // SEGMENT * SEGMENT, ends, SEGMENT):
            data = (server.data / "pg_wal" / segment_name(1, begins, SEGMENT)).read_bytes()
            cuts = [(0, SEGMENT)] if begins + SEGMENT <= ends else [(0, 5000), (4000, ends - begins)]
            for first, last in cuts:
                entry = LogEntry(
                    begins=position(1, begins + first),
                    ends=position(1, begins + last),
                    segment=None if last == SEGMENT else position(1, begins),
                )
                assert await log.append(entry, [data[first:last]])


async def test_the_wal_after_a_base_backup_comes_back_to_the_last_commit(
    new_server: NewServer, run_documented: Callable[..., None], tmp_path: Path, tmp_owned: Path
) -> None:
    origin = new_server(17)
    archive = Archive(LocalStore(tmp_path))
    report = await backup(PostgresTarget("orders", dsn=origin.dsn("backup")), archive)
    origin.psql("create table numbers as select generate_series(1, 100000) as n")
    origin.psql("select pg_switch_wal()")
    origin.psql("insert into numbers select generate_series(1, 1000)")
    content = origin.psql(CONTENT)
    await keep_wal(origin, archive, report.manifest)
    origin.kill()

    variables = {"backup": folder_of(tmp_path, report.manifest), "data": tmp_owned / "data"}
    run_documented("pg_verifybackup", origin.bin_dir, **variables, tablespaces=tmp_owned / "tablespaces")
    logs = tmp_path / "postgresql" / "orders"
    run_documented(
        "recovery.signal",
        origin.bin_dir,
        log=logs / "log" / report.manifest.lineage / "1",
        slices=logs / "slices" / report.manifest.lineage / "1",
        timeline=1,
        segment=SEGMENT,
        wal=tmp_owned / "wal",
        data=tmp_owned / "data",
    )
    with server_on(tmp_owned, origin.bin_dir) as server:
        while server.psql("select pg_is_in_recovery()") == "t":
            await asyncio.sleep(0.05)
        assert server.psql(CONTENT) == content
        assert server.psql("select timeline_id from pg_control_checkpoint()") == "2"


async def test_an_entry_of_a_log_is_what_zstd_makes_of_it(tmp_path: Path) -> None:
    if shutil.which("zstd") is None:
        missing("zstd is not installed")
    archive = Archive(LocalStore(tmp_path), frame_size=1000)
    async with opened(archive, whole(0), piece(1, 10, 20)) as log:
        await log.keep("a.backup", b"some bytes")
    for folder, expected in (("log", plain(whole(0))), ("slices", plain(piece(1, 10, 20))), ("files", b"some bytes")):
        (path,) = (tmp_path / "memory" / "orders" / folder).rglob("*.zst")
        assert subprocess.run(["zstd", "-q", "-d", "-c", str(path)], capture_output=True, check=True).stdout == expected
        damaged = tmp_path / "damaged.zst"
        damaged.write_bytes(path.read_bytes()[:-1] + b"?")
        assert subprocess.run(["zstd", "-q", "-d", "-c", str(damaged)], capture_output=True).returncode != 0


async def test_a_dump_of_every_database_comes_back(
    new_server: NewServer, run_documented: Callable[..., None], tmp_path: Path
) -> None:
    origin = new_server(17)
    origin.psql('create role "the owner"; create table numbers as select generate_series(1, 100000) as n')
    origin.psql('create database shop owner "the owner"')
    origin.psql("create table orders (id int primary key); insert into orders values (7)", database="shop")
    report = await backup(
        PostgresDumpTarget("orders", dsn=origin.dsn(), bin_dir=origin.bin_dir),
        Archive(LocalStore(tmp_path), object_size=100_000),
    )
    content = origin.psql(CONTENT)
    origin.kill()

    other = new_server(17)
    other.psql("drop role backup")
    run_documented(
        "pg_restore",
        origin.bin_dir,
        backup=folder_of(tmp_path, report.manifest),
        server=f"host=127.0.0.1 port={other.port} user=postgres",
        superuser="postgres",
    )
    assert other.psql(CONTENT) == content
    assert other.psql("select id from orders", database="shop") == "7"
    assert other.psql("select pg_get_userbyid(datdba) from pg_database where datname = 'shop'") == "the owner"
