"""An archive can be brought back without this library: the commands in docs/archive-format.md are run as they are."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from resilience import Archive, Manifest, backup
from resilience.postgres import PostgresDumpTarget, PostgresTarget
from resilience.postgres.tools import Tools
from resilience.stores import LocalStore
from resilience.testing.postgres import TestServer, owned_folder, unprivileged

from .conftest import NewServer, missing
from .test_docs import ROOT, blocks

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
