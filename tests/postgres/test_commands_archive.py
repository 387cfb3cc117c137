"""archive_command: what PostgreSQL was told is archived is in the archive, whoever died meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from resilience import Archive
from resilience.model.log import LogFacts
from resilience.postgres.wal.source import WalSource
from resilience.stores import LocalStore
from resilience.testing.postgres import TestServer, owned_folder, running_server, unprivileged
from resilience.testing.python import reachable_python

from ..conftest import NewServer
from .resident import SEGMENT, Commands, ended, until

SETTINGS = {"archive_mode": "on", "archive_command": "'false'", "wal_keep_size": "1GB", "fsync": "off"}


@pytest.fixture(scope="session")
def python(session_folder: Path) -> str:
    folder = session_folder / "python"
    folder.mkdir(exist_ok=True)
    return reachable_python(folder)


@pytest.fixture
def live(new_server: NewServer, tmp_owned: Path, python: str) -> Iterator[Commands]:
    """A server whose archive_command is ours, with segments of 1 MiB and a table to write to."""
    made = Commands(python, tmp_owned, new_server(16, "--wal-segsize=1", settings=SETTINGS))
    made.server.psql("create table t (i int)")
    made.configure(made.archive_command)
    with ended(made):
        made.server.psql("select pg_reload_conf()")
        yield made


@pytest.fixture(scope="module")
def cluster(session_folder: Path, postgres_bin: Callable[[int], Path]) -> Iterator[TestServer]:
    """A server with some finished segments that nobody archives; tests run the commands themselves."""
    folder = owned_folder(session_folder / "commands-cluster")
    with running_server(folder, postgres_bin(16), "--wal-segsize=1", settings=SETTINGS) as server:
        server.psql("create table t (i int)")
        for _ in range(6):
            server.psql("insert into t values (1); select pg_switch_wal()")
        yield server


@pytest.fixture
def commands(cluster: TestServer, tmp_owned: Path, python: str) -> Iterator[Commands]:
    """The commands of that cluster with a spool and an archive of the test's own."""
    made = Commands(python, tmp_owned, cluster, str(tmp_owned / "spool"))
    with ended(made):
        yield made


def segments(commands: Commands) -> list[str]:
    """The finished segments, by name."""
    status = commands.wal / "archive_status"
    return sorted(ready.stem for ready in status.iterdir() if len(ready.stem) == 24)


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


async def complete(commands: Commands, names: list[str]) -> bool:
    """Whether segments are in the archive, byte for byte."""
    for name in names:
        if await stored(commands, name) != (commands.wal / name).read_bytes():
            return False
    return True


async def test_what_the_server_archives_is_in_the_archive_byte_for_byte(live: Commands) -> None:
    names = [live.switch(rows=1000) for _ in range(40)]
    live.caught_up()
    assert live.resident() is not None
    assert await complete(live, names)
    live.end(signal.SIGTERM)
    found = await facts(live)
    assert [branch.name for branch in found.branches] == ["1"]
    (watermark,) = found.watermarks
    assert watermark.ends.offset >= int(names[-1][16:], 16) * SEGMENT
    assert watermark.latest is not None and watermark.complete_at is not None
    assert watermark.complete_at < watermark.latest


async def test_a_resident_that_dies_in_the_middle_costs_nothing(live: Commands) -> None:
    names = []
    for number in range(30):
        names.append(live.switch(rows=1000))
        if number % 7 == 3:
            until(live.resident)
            live.end(signal.SIGKILL)
    live.caught_up()
    assert await complete(live, names)


async def test_an_archive_that_is_away_makes_the_server_try_again(live: Commands) -> None:
    names = [live.switch()]
    live.caught_up()
    away = live.archive.with_name("away")
    live.archive.rename(away)
    live.archive.touch()  # a folder would be made again
    names += [live.switch() for _ in range(5)]
    until(lambda: int(live.server.psql("select failed_count from pg_stat_archiver")) > 0)
    assert {ready.stem for ready in (live.wal / "archive_status").glob("*.ready")} >= set(names[1:])
    live.archive.unlink()
    away.rename(live.archive)
    live.server.psql("select pg_reload_conf()")  # wakes the archiver
    live.caught_up()
    assert await complete(live, names)


async def test_a_promotion_is_archived_with_its_history(
    live: Commands, tmp_owned: Path, python: str, request: pytest.FixtureRequest
) -> None:
    live.switch()
    live.caught_up()
    live.server.stop()
    (live.server.data / "standby.signal").touch()
    live.configure("restore_command = 'false'")
    live.server.start()
    live.server.psql("select pg_promote()")
    name = live.switch(rows=100)
    live.caught_up()
    assert name.startswith("00000002")
    assert await complete(live, [name])
    (_, second) = (await facts(live)).branches
    assert second.name == "2" and second.parent == "1"
    assert second.text == (live.wal / "00000002.history").read_text()
    assert await stored(live, "00000002.history") == second.text.encode()
    lineage = (await facts(live)).lineage
    kept = {path.name for path in (live.archive / f"postgresql/orders/files/{lineage}").glob("*")}
    assert any(name.endswith(".partial.zst") for name in kept)


def test_without_a_resident_the_command_archives_and_leaves_one(commands: Commands) -> None:
    first, second, *_ = segments(commands)
    assert commands.resident() is None
    assert commands.push(f"pg_wal/{first}").returncode == 0
    until(commands.resident)
    until(lambda: (commands.spool / f"{second}.ok").exists())
    assert (commands.spool / f"{second}.ok").samefile(commands.wal / second)
    assert commands.push(f"pg_wal/{second}").returncode == 0


def test_pushing_again_succeeds_with_and_without_a_resident(commands: Commands) -> None:
    first, *_ = segments(commands)
    for _ in range(2):
        assert commands.run("push", f"pg_wal/{first}").returncode == 0
        until(commands.resident)
        assert commands.push(f"pg_wal/{first}").returncode == 0
        commands.end()


def altered(commands: Commands, name: str, folder: Path, *, at: int, into: bytes) -> Path:
    """Make a copy of a segment that differs, in a data directory of its own, and return its path."""
    data = owned_folder(folder / "data")
    for made in ("global", "pg_wal", "pg_wal/archive_status"):
        owned_folder(data / made)
    shutil.copy(commands.server.data / "global/pg_control", data / "global")
    changed = bytearray((commands.wal / name).read_bytes())
    changed[at : at + len(into)] = into
    (data / "pg_wal" / name).write_bytes(changed)
    for path in (data / "global/pg_control", data / "pg_wal" / name):
        path.chmod(0o644)
    return data / "pg_wal" / name


def test_another_content_is_refused_in_words_that_reach_the_servers_log(commands: Commands, tmp_owned: Path) -> None:
    first, *_ = segments(commands)
    assert commands.push(f"pg_wal/{first}").returncode == 0
    other = altered(commands, first, tmp_owned, at=5000, into=b"other")
    for _ in ("without a resident", "and with one"):
        pushed = commands.run("push", str(other), cwd=other.parent.parent)
        assert pushed.returncode == 1
        assert "is in the archive with other bytes" in pushed.stderr


@pytest.mark.parametrize(
    ("at", "into", "says"),
    [
        pytest.param(24, b"\x01\x02\x03\x04\x05\x06\x07\x08", "it is WAL of cluster 578437695752307201", id="cluster"),
        pytest.param(8, b"\x00\x00\x10\x00\x77\x00\x00\x00", "its name says 0/", id="LSN"),
        pytest.param(4, b"\x07\x00\x00\x00", "it is of timeline 7, its name says 1", id="timeline"),
        pytest.param(0, b"\x00\x00", "does not begin like a segment", id="no WAL"),
        pytest.param(SEGMENT, b"\x00", "it has 1048577 bytes", id="size"),
    ],
)
def test_what_does_not_belong_under_its_name_is_refused(
    commands: Commands, tmp_owned: Path, at: int, into: bytes, says: str
) -> None:
    first, *_ = segments(commands)
    wrong = altered(commands, first, tmp_owned, at=at, into=into)
    pushed = commands.run("push", str(wrong), cwd=wrong.parent.parent)
    assert pushed.returncode == 1 and says in pushed.stderr
    assert not list(commands.archive.rglob("*.zst"))


def test_a_second_cluster_is_refused_under_the_same_name(
    commands: Commands, tmp_owned: Path, python: str, server: object, new_server: NewServer
) -> None:
    first, *_ = segments(commands)
    assert commands.push(f"pg_wal/{first}").returncode == 0
    other = Commands(python, owned_folder(tmp_owned / "other"), new_server(16, "--wal-segsize=1", settings=SETTINGS))
    other.archive = commands.archive
    other.write()
    name = other.server.psql("select pg_walfile_name(pg_switch_wal())")
    with ended(other):
        for _ in range(2):
            pushed = other.push(f"pg_wal/{name}")
            assert pushed.returncode == 1
            assert "under this name" in pushed.stderr and 'write lineage = "' in pushed.stderr
        lineage = pushed.stderr.partition('lineage = "')[2].partition('"')[0]
        other.write(f'lineage = "{lineage}"')
        assert other.push(f"pg_wal/{name}").returncode == 0
        until(other.resident)
        other.end()
        other.write('lineage = "7300000000000000001"')
        other.server.psql("create table something ()")
        new = other.server.psql("select pg_walfile_name(pg_switch_wal())")  # the one before has its mark by now
        pushed = other.push(f"pg_wal/{new}")
        assert pushed.returncode == 1 and "it names cluster 7300000000000000001" in pushed.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can write as another account")
@pytest.mark.parametrize("denied", ["files", "folders"])
def test_an_archive_that_another_account_wrote_says_whose_it_is_and_what_to_do(commands: Commands, denied: str) -> None:
    first, second = (commands.wal / name for name in segments(commands)[:2])
    assert commands.run("push", str(first)).returncode == 0
    commands.end()
    for path in commands.archive.rglob("*"):
        if path.is_dir() == (denied == "folders"):
            os.chown(path, 0, 0)
    account = unprivileged()
    assert account is not None
    commands.write("patience = 600")
    for command in (["push", str(second)], ["fetch", first.name, "pg_wal/RECOVERYXLOG"]):
        ended = commands.run(*command)
        commands.end()
        assert ended.returncode in (1, 130) and "Traceback" not in ended.stderr
        assert f"belongs to the account root, and this runs as {account.name}" in ended.stderr
        assert f"chown -R {account.name} {commands.archive}" in ended.stderr


def test_a_resident_does_not_answer_for_another_data_directory(commands: Commands, tmp_owned: Path) -> None:
    first, *_ = segments(commands)
    assert commands.push(f"pg_wal/{first}").returncode == 0
    until(commands.resident)
    other = altered(commands, first, tmp_owned, at=5000, into=b"other")
    pushed = commands.push(other)
    assert pushed.returncode == 1 and "a spool of its own" in pushed.stderr


def test_an_archive_that_was_emptied_or_not_mounted_is_not_written_to(commands: Commands) -> None:
    first, second, *_ = segments(commands)
    assert commands.push(f"pg_wal/{first}").returncode == 0
    until(commands.resident)
    commands.end()
    commands.archive.rename(commands.archive.with_name("away"))
    owned_folder(commands.archive)
    pushed = commands.run("push", f"pg_wal/{second}")
    assert pushed.returncode == 1 and "see whether it is mounted" in pushed.stderr
    assert not list(commands.archive.rglob("*"))


def test_an_archive_that_is_taken_away_from_a_resident_is_not_written_elsewhere(commands: Commands) -> None:
    first, *_ = segments(commands)
    assert commands.push(f"pg_wal/{first}").returncode == 0
    late = segments(commands)[-1]
    until(lambda: (commands.spool / f"{late}.at").exists())
    away = commands.archive.with_name("away")
    commands.archive.rename(away)
    owned_folder(commands.archive)
    for mark in commands.spool.glob("*.ok"):
        mark.unlink()
    os.utime(commands.wal / late)
    pushed = commands.push(f"pg_wal/{late}")
    assert pushed.returncode == 1
    assert "no longer there" in pushed.stderr or "although it was archived there before" in pushed.stderr
    assert not list(commands.archive.rglob("*.zst"))
    shutil.rmtree(commands.archive)  # a put that was on its way may have made folders in it
    away.rename(commands.archive)
    until(lambda: commands.push(f"pg_wal/{late}").returncode == 0)


def test_a_mark_is_good_for_the_very_file_only(commands: Commands, tmp_owned: Path) -> None:
    first, second, *_ = segments(commands)
    assert commands.push(f"pg_wal/{first}").returncode == 0
    until(lambda: (commands.spool / f"{second}.at").exists())
    commands.end()
    line = commands.archive_command
    commands.config.unlink()  # from here on only a mark can help
    assert commands.shell(line, f=second, p=f"pg_wal/{second}").returncode == 0
    other = altered(commands, second, tmp_owned, at=5000, into=b"other")
    assert commands.shell(line, f=second, p=str(other)).returncode == 1
    os.utime(commands.wal / second)  # written to again
    assert commands.shell(line, f=second, p=f"pg_wal/{second}").returncode == 1


def test_two_residents_at_once_are_one(commands: Commands) -> None:
    first, *_ = segments(commands)
    assert commands.push(f"pg_wal/{first}").returncode == 0
    until(commands.resident)
    serving = commands.resident()
    second = commands.run("serve")
    assert second.returncode == 1
    assert commands.resident() == serving
    assert commands.push(f"pg_wal/{first}").returncode == 0


def test_a_resident_leaves_when_there_is_nothing_to_do(commands: Commands) -> None:
    commands.write("idle = 0.5")
    first, second, *_ = segments(commands)
    assert commands.push(f"pg_wal/{first}").returncode == 0
    until(commands.resident)
    until(lambda: commands.resident() is None)
    assert (commands.spool / f"{second}.ok").exists()  # but not before all that was ready was archived


def test_a_resident_leaves_when_its_configuration_changes(commands: Commands) -> None:
    first, *_ = segments(commands)
    assert commands.push(f"pg_wal/{first}").returncode == 0
    until(commands.resident)
    commands.write("idle = 29")
    until(lambda: commands.resident() is None)


def test_a_resident_leaves_when_its_spool_is_taken_away(commands: Commands) -> None:
    first, *_ = segments(commands)
    assert commands.push(f"pg_wal/{first}").returncode == 0
    pid = commands.resident()
    until(commands.resident)
    pid = commands.resident()
    shutil.rmtree(commands.spool)
    until(lambda: not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes())
    assert commands.push(f"pg_wal/{first}").returncode == 0


def test_the_spool_may_have_any_path_however_long(cluster: TestServer, tmp_owned: Path, python: str) -> None:
    deep = tmp_owned / ('it\'s 100% "deep" ' + "x" * 100) / "and deeper"
    owned_folder(deep.parent)
    commands = Commands(python, tmp_owned, cluster, str(deep).replace('"', '\\"'))
    commands.spool_name = str(deep)
    with ended(commands):
        first, second, *_ = segments(commands)
        assert commands.push(f"pg_wal/{first}").returncode == 0
        until(commands.resident)
        assert commands.push(f"pg_wal/{second}").returncode == 0
        assert commands.fetch(second).returncode == 0
        assert (commands.wal / "RECOVERYXLOG").read_bytes() == (commands.wal / second).read_bytes()
    (commands.wal / "RECOVERYXLOG").unlink()


async def test_what_came_from_elsewhere_claims_no_time(commands: Commands, tmp_owned: Path) -> None:
    first, *_ = segments(commands)
    received = altered(commands, first, tmp_owned, at=5000, into=b"")
    (received.parent.parent / "standby.signal").touch()
    assert commands.run("push", str(received), cwd=received.parent.parent).returncode == 0
    (watermark,) = (await facts(commands)).watermarks
    assert watermark.latest is not None and watermark.complete_at is None
