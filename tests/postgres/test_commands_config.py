"""The commands' configuration: refused in one sentence, unless it can be relied on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from resilience import Archive
from resilience.commands import archive_command, postgresql_conf, restore_command
from resilience.commands.config import load
from resilience.commands.keeping import keeping
from resilience.commands.wal import main
from resilience.keys import KeyFile
from resilience.model.errors import Corrupt, Refused, Unsupported
from resilience.postgres.directory import PostgresDataDirectory
from resilience.postgres.wal.header import read_control, read_header
from resilience.primitives import Archiver
from resilience.stores import LocalStore
from resilience.testing.postgres import TestServer


def written(folder: Path, text: str, *, mode: int = 0o644) -> Path:
    path = folder / "wal.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("target = ", "it is no TOML"),
        ('target = "orders"', "one of directory, container, archive"),
        ('directory = "/backups"', "it has to name target"),
        ('target = "orders"\ndirectory = "/b"\narchive = "a:b"', "one of directory, container, archive"),
        ('target = "orders"\ndirectory = "/b"\npassword = "x"', "nothing is called password"),
        ('target = "Orders!"\ndirectory = "/b"', "is no name"),
        ('target = "orders"\ndirectory = "backups"', "has to be a full path"),
        ('target = "orders"\ndirectory = "/b"\nidle = "long"', "idle"),
        ('target = "orders"\ndirectory = "/b"\nahead = -1', "ahead"),
        ('target = 7\ndirectory = "/b"', "target"),
        ('target = "orders"\ndirectory = "/b"\nkey_file = "key"', "has to be a full path"),
        ('target = "orders"\narchive = "a:b"\nkey_file = "/key"', "key_file, vault_key and older go with"),
        ('target = "orders"\narchive = "a:b"\nolder = ["/key"]', "key_file, vault_key and older go with"),
        ('target = "orders"\ndirectory = "/b"\nolder = ["key"]', "has to be a full path"),
        ('target = "orders"\ndirectory = "/b"\nolder = "/key"', "older"),
        ('target = "orders"\ndirectory = "/b"\nkey_file = "/k"\nvault_key = "https://v/keys/k/1"', "or vault_key"),
        ('target = "orders"\ndirectory = "/b"\nvault_key = "/key"', "is no identifier of a vault's key"),
        ('target = "orders"\ndirectory = "/b"\ncontainer = "https://a/b"', "one of directory, container"),
        ('target = "orders"\ndirectory = "/b"\nsignature_file = "/s"', "signature_file goes with container"),
        ('target = "orders"\ncontainer = "https://a/b?sig=secret"', "belongs into signature_file"),
        ('target = "orders"\ncontainer = "https://a/b"\nsignature_file = "s"', "has to be a full path"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(Refused, match=says) as refused:
        load(path)
    assert str(refused.value).startswith(f"read {path}: ") and "\n" not in str(refused.value)


def test_a_file_that_anybody_may_write_to_names_no_code_to_run(tmp_path: Path) -> None:
    path = written(tmp_path, 'target = "orders"\ndirectory = "/b"', mode=0o666)
    with pytest.raises(Refused, match="others than its owner may write"):
        load(path)
    with pytest.raises(Refused, match="it cannot be read: No such file"):
        load(tmp_path / "gone.toml")


async def archiver(path: Path) -> Archiver:
    """Open the archive that a file names, and close it again."""
    async with keeping(load(path)) as opened:
        return opened


async def test_an_archive_is_a_folder_or_what_a_function_returns(tmp_path: Path) -> None:
    (tmp_path / "backups").mkdir()
    path = written(tmp_path, f'target = "orders"\ndirectory = "{tmp_path}/backups"')
    assert await archiver(path) == Archive(LocalStore(tmp_path / "backups"))
    path = written(tmp_path, f'target = "orders"\ndirectory = "{tmp_path}/gone"')
    with pytest.raises(Refused, match="is no folder"):
        await archiver(path)
    (tmp_path / "where_backups_are.py").write_text(
        "from resilience import Archive\nfrom resilience.stores import LocalStore\n"
        "def archive(): return Archive(LocalStore('/elsewhere'))\n"
    )
    path = written(tmp_path, 'target = "orders"\narchive = "where_backups_are:archive"')
    before = list(sys.path)
    try:
        assert await archiver(path) == Archive(LocalStore("/elsewhere"))
    finally:
        sys.path[:] = before
    for wrong in ("where_backups_are:gone", "nowhere:archive", "archive", ""):
        path = written(tmp_path, f'target = "orders"\narchive = "{wrong}"')
        with pytest.raises(Refused, match="cannot be had"):
            await archiver(path)


async def test_an_archive_is_sealed_with_the_key_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "backups").mkdir()
    text = f'target = "orders"\ndirectory = "{tmp_path}/backups"\nkey_file = "{tmp_path}/key"'
    path = written(tmp_path, text)
    with pytest.raises(Refused, match=f"{tmp_path}/key: it cannot be read"):
        await archiver(path)
    key = KeyFile.create(tmp_path / "key")
    archive = await archiver(path)
    assert isinstance(archive, Archive) and archive.key is not None and archive.key.id == key.id


def test_nobody_waits_for_what_seals_where_nothing_is_sealed(tmp_path: Path) -> None:
    (tmp_path / "backups").mkdir()
    path = written(tmp_path, f'target = "orders"\ndirectory = "{tmp_path}/backups"')
    program = (
        "import asyncio, sys; from resilience.commands import config, keeping, wal\n"
        f"asyncio.run(keeping.keeping(config.load({str(path)!r})).__aenter__())\n"
        "sys.exit('cryptography' in sys.modules or 'resilience.keys' in sys.modules or 'azure' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_without_a_cluster_it_is_said_which_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, 'target = "orders"\ndirectory = "/b"')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match=f"look into {tmp_path}: there is no PostgreSQL cluster"):
        load(path).located()


def test_the_lines_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, 'target = "orders"\ndirectory = "/b"')
    assert main([str(path), "lines"]) == 0
    assert capsys.readouterr().out == f"{postgresql_conf(path)}\n"
    assert main([str(path), "dance"]) > 125
    assert main([str(path), "push"]) > 125


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can tell what another account may run")
def test_a_python_that_the_server_cannot_run_is_not_written_down(
    tmp_path: Path, tmp_owned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "python").symlink_to("/bin/sh")
    monkeypatch.setattr(sys, "executable", str(closed / "python"))
    path = written(tmp_path, f'target = "orders"\ndirectory = "/b"\ndata = "{tmp_owned}"')
    commands: list[Callable[..., str]] = [archive_command, restore_command, postgresql_conf]
    for command in commands:
        with pytest.raises(Refused, match=rf"{closed}/python is closed to the account \w+, .*python=\)$"):
            command(path)
        assert "/bin/sh" in command(path, python="/bin/sh")
    path = written(tmp_path, 'target = "orders"\ndirectory = "/b"')
    assert str(closed) in archive_command(path)  # nobody knows whose cluster it is for


def test_an_outage_of_some_minutes_is_waited_for(tmp_path: Path) -> None:
    path = written(tmp_path, 'target = "orders"\ndirectory = "/b"')
    assert load(path).patience == PostgresDataDirectory(tmp_path / "data").patience == 900


def test_a_cluster_and_its_wal_say_who_they_are(every_postgres: TestServer) -> None:
    control = read_control((every_postgres.data / "global/pg_control").read_bytes())
    assert control.lineage == every_postgres.psql("select system_identifier from pg_control_system()")
    assert control.segment_size == 16 << 20 and control.timeline == 1 and not control.in_recovery
    name = every_postgres.psql("select pg_walfile_name(pg_current_wal_lsn())")
    header = read_header((every_postgres.data / "pg_wal" / name).read_bytes())
    assert header.lineage == control.lineage and header.segment_size == control.segment_size
    assert header.timeline == 1 and header.begins % control.segment_size == 0


def test_what_is_no_cluster_and_no_wal_is_refused() -> None:
    with pytest.raises(Unsupported, match="laid out otherwise"):
        read_control(bytes(8192))
    for data in (b"", bytes(8192)):
        with pytest.raises(Corrupt):
            read_header(data)
