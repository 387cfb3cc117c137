"""restore_command: recovery is never ended by anything but proof, and standbys are fed long after we have gone."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from attrs import evolve

from resilience import Archive
from resilience.archive import layout
from resilience.commands import wal
from resilience.commands.config import load
from resilience.commands.fetching import fetch
from resilience.commands.opened import Opened
from resilience.model.log import Branch, LogEntry
from resilience.postgres.lsn import position
from resilience.postgres.wal.header import read_control
from resilience.postgres.wal.names import segment_name
from resilience.postgres.wal.spool import Answer
from resilience.stores import LocalStore
from resilience.testing.postgres import TestServer, owned_folder, unprivileged
from resilience.testing.python import reachable_python

from ..conftest import NewServer
from .resident import SEGMENT, Commands, ended, until

SETTINGS = {"archive_mode": "on", "archive_command": "'false'", "fsync": "off", "full_page_writes": "on"}
NOT_KNOWN = 130


@pytest.fixture(scope="session")
def python(session_folder: Path) -> str:
    folder = session_folder / "python"
    folder.mkdir(exist_ok=True)
    return reachable_python(folder)


@pytest.fixture(scope="module")
def data(session_folder: Path, postgres_bin: Callable[[int], Path]) -> TestServer:
    """A cluster that does not run: what a restore_command needs to see of one."""
    cluster = TestServer(owned_folder(session_folder / "commands-restore"), postgres_bin(16))
    cluster.create("--wal-segsize=1")
    return cluster


class Filled(Commands):
    """Commands whose archive holds what a test says."""

    @property
    def lineage(self) -> str:
        return read_control((self.server.data / "global/pg_control").read_bytes()).lineage

    async def fill(self, *numbers: int, begins: int = 0, ends: int = SEGMENT) -> None:
        """Append segments by number, or slices of them."""
        async with Archive(LocalStore(self.archive)).log("orders", system="postgresql", lineage=self.lineage) as log:
            await log.record(Branch(name="1"))
            for number in numbers:
                at = number * SEGMENT
                whole = (begins, ends) == (0, SEGMENT)
                entry = LogEntry(
                    begins=position(1, at + begins),
                    ends=position(1, at + ends),
                    segment=None if whole else position(1, at),
                )
                await log.append(entry, [content(number)[begins:ends]])
        self.give()

    def give(self) -> None:
        """Let what a test wrote into the archive belong to the account that servers run as."""
        if account := unprivileged():
            for path in self.archive.rglob("*"):
                os.chown(path, account.uid, account.gid)

    @property
    def given(self) -> bytes:
        """What the last fetch gave."""
        return (self.wal / "RECOVERYXLOG").read_bytes()

    def here(self) -> set[str]:
        """The segments in the spool."""
        return {path.name for path in self.spool.iterdir() if len(path.name) == 24}


def content(number: int) -> bytes:
    return number.to_bytes(8, "big") * (SEGMENT // 8)


def name(number: int) -> str:
    return segment_name(1, number * SEGMENT, SEGMENT)


@pytest.fixture
def commands(data: TestServer, tmp_owned: Path, python: str) -> Iterator[Filled]:
    """The commands of a cluster with a spool and an archive of the test's own."""
    made = Filled(python, tmp_owned, data, str(tmp_owned / "spool"))
    with ended(made):
        yield made
    (made.wal / "RECOVERYXLOG").unlink(missing_ok=True)


async def test_one_who_finds_nobody_fetches_and_leaves_a_prefetcher(commands: Filled) -> None:
    await commands.fill(*range(3, 20))
    assert commands.fetch(name(3)).returncode == 0
    assert commands.given == content(3)
    ahead = {name(number) for number in range(4, 12)}
    until(lambda: commands.here() == ahead)
    assert commands.fetch(name(4)).returncode == 0
    assert commands.given == content(4)
    until(lambda: commands.here() == {name(number) for number in range(5, 13)})
    assert commands.fetch(name(17)).returncode == 0
    assert commands.given == content(17)
    until(lambda: commands.here() == {name(18), name(19)})


async def test_the_prefetcher_keeps_to_the_bounds_that_are_configured(commands: Filled) -> None:
    await commands.fill(*range(3, 20))
    commands.write("ahead = 50", f"ahead_bytes = {3 * SEGMENT}")
    assert commands.fetch(name(3)).returncode == 0
    until(lambda: len(commands.here()) == 3)
    commands.end(signal.SIGTERM)
    assert commands.here() == set()


async def test_a_prefetcher_that_is_killed_leaves_nothing_stale(commands: Filled) -> None:
    await commands.fill(*range(3, 9))
    assert commands.fetch(name(3)).returncode == 0
    until(lambda: len(commands.here()) == 5)
    commands.end(signal.SIGKILL)
    assert commands.fetch(name(5)).returncode == 0  # nobody has to be there for a hit
    assert commands.given == content(5)
    (commands.spool / name(700)).write_bytes(b"of long ago")
    (commands.spool / name(700)).chmod(0o666)
    assert commands.fetch(name(3)).returncode == 0
    until(lambda: commands.here() == {name(number) for number in range(4, 9)})


async def test_a_segment_that_was_open_is_fetched_anew_each_time(commands: Filled) -> None:
    await commands.fill(3)
    await commands.fill(4, ends=8000)
    assert commands.fetch(name(3)).returncode == 0
    until(commands.resident)
    for grown in (8000, 16000):
        assert commands.fetch(name(4)).returncode == 0
        assert commands.given == content(4)[:grown] + bytes(SEGMENT - grown)
        assert commands.here() == set()
        await commands.fill(4, begins=8000, ends=16000)
    await commands.fill(4)
    assert commands.fetch(name(4)).returncode == 0
    assert commands.given == content(4)


async def both(commands: Filled, wanted: str) -> set[int]:
    """The exit statuses of a fetch without a resident, with one, and of the full command by itself."""
    commands.end()
    without = commands.fetch(wanted).returncode
    commands.end()
    shutil.rmtree(commands.spool)  # it may have been given what is fetched next
    assert commands.fetch(name(3)).returncode == 0
    until(commands.resident)
    until(lambda: (commands.spool / "ask").exists())
    return {without, commands.fetch(wanted).returncode, commands.run("fetch", wanted, "x").returncode}


async def test_what_is_proven_not_to_be_there_ends_with_1(commands: Filled) -> None:
    await commands.fill(3, 4)
    for absent in (name(5), name(2), "00000002.history", segment_name(2, 4 * SEGMENT, SEGMENT)):
        assert await both(commands, absent) == {1}


async def test_what_a_new_resident_has_swept_away_is_fetched_again(
    commands: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    await commands.fill(3)
    swept: list[str] = []

    async def fetched(found: Opened, wanted: str) -> Answer:
        answer = await fetch(found, wanted)
        if not swept:
            swept.append(answer.text)
            await found.spool.drop(answer.text)
        return answer

    monkeypatch.setattr(wal, "fetch", fetched)
    config = evolve(load(commands.config), data=commands.server.data)
    into = commands.wal / "RECOVERYXLOG"
    assert await wal.get(config, name(3), str(into), absent=1) == 0
    assert swept and into.read_bytes() == content(3)
    into.unlink()
    with pytest.raises(FileNotFoundError):
        await wal.get(config, name(3), "no_such_folder/RECOVERYXLOG", absent=1)


async def test_a_hole_ends_above_125(commands: Filled) -> None:
    await commands.fill(3, 5)
    assert await both(commands, name(4)) == {NOT_KNOWN}
    assert "goes on behind it" in commands.fetch(name(4)).stderr


async def test_a_damaged_segment_ends_above_125(commands: Filled) -> None:
    await commands.fill(3, 4, 5)
    prefix = layout.segments("postgresql", "orders", commands.lineage, "1")
    stored = commands.archive / (prefix + layout.segment(4 * SEGMENT, 5 * SEGMENT))
    stored.write_bytes(stored.read_bytes()[:-1] + b"x")
    assert await both(commands, name(4)) == {NOT_KNOWN}


async def test_a_history_is_given(commands: Filled) -> None:
    await commands.fill(3)
    async with Archive(LocalStore(commands.archive)).log(
        "orders", system="postgresql", lineage=commands.lineage
    ) as log:
        text = "1\t0/350000\tno recovery target specified\n"
        await log.record(Branch(name="2", parent="1", forked_at=position(1, 0x350000), text=text))
    commands.give()
    for _ in range(2):
        assert commands.fetch("00000002.history").returncode == 0
        assert commands.given.decode() == text
        until(commands.resident)


@pytest.mark.parametrize("how", ["gone", "empty", "another cluster's"])
async def test_an_archive_that_is_not_the_right_one_proves_nothing(commands: Filled, how: str) -> None:
    await commands.fill(3)
    shutil.rmtree(commands.archive)
    if how != "gone":
        owned_folder(commands.archive)
    if how == "another cluster's":
        async with Archive(LocalStore(commands.archive)).log(
            "orders", system="postgresql", lineage="7300000000000000001"
        ) as log:
            await log.record(Branch(name="1"))
        commands.give()
    fetched = commands.fetch(name(3))
    assert fetched.returncode == NOT_KNOWN
    assert "is no folder" in fetched.stderr or "is it the right one?" in fetched.stderr


@pytest.mark.parametrize("broken", ["python", "ask.py", "configuration", "data"])
async def test_whatever_is_broken_on_our_side_is_no_proof(commands: Filled, broken: str, tmp_owned: Path) -> None:
    await commands.fill(3)
    line = commands.restore_command
    absent = name(8)
    if broken == "python":
        line = line.replace(commands.python, "/bin/false")  # what an interpreter that cannot start ends with
    elif broken == "ask.py":
        line = line.replace("/ask.py", "/gone.py")
    elif broken == "configuration":
        commands.config.write_text("target = ")
    else:
        commands.write(f'data = "{tmp_owned}"')
        line = commands.restore_command
    assert commands.shell(line, f=absent, p="pg_wal/RECOVERYXLOG").returncode == NOT_KNOWN


@pytest.mark.parametrize("major", [15, 18])
async def test_a_standby_is_fed_catches_up_and_keeps_following(
    major: int, new_server: NewServer, session_folder: Path, tmp_owned: Path, python: str
) -> None:
    primary = Commands(python, tmp_owned, new_server(major, "--wal-segsize=1", settings=SETTINGS))
    primary.server.psql("create table t (i int)")
    primary.configure(primary.archive_command)
    with ended(primary), ExitStack() as stack:
        primary.server.psql("select pg_reload_conf()")
        standby = Commands(python, owned_folder(tmp_owned / "standby"), copy_of(primary.server, session_folder, stack))
        standby.archive = primary.archive
        standby.write()
        stack.enter_context(ended(standby))
        for _ in range(10):
            primary.switch(rows=2000)
        standby.configure(standby.restore_command, "archive_mode = off", "wal_retrieve_retry_interval = 100ms")
        (standby.server.data / "standby.signal").touch()
        primary.caught_up()
        standby.server.start()
        until(lambda: standby.server.psql("select count(*) from t") == "20000")
        until(standby.resident)
        standby.end()
        primary.switch(rows=5)
        until(lambda: standby.server.psql("select count(*) from t") == "20005")
        primary.switch(rows=5)
        until(lambda: standby.server.psql("select count(*) from t") == "20010")
        until(standby.resident)
        assert standby.resident() != primary.resident()
        standby.server.psql("select pg_promote()")
        assert standby.server.psql("select pg_walfile_name(pg_current_wal_lsn())").startswith("00000002")


async def test_an_outage_while_recovering_stops_the_server_but_never_ends_recovery(
    new_server: NewServer, session_folder: Path, tmp_owned: Path, python: str
) -> None:
    primary = Commands(python, tmp_owned, new_server(17, "--wal-segsize=1", settings=SETTINGS))
    primary.server.psql("create table t (i int)")
    primary.configure(primary.archive_command)
    with ended(primary), ExitStack() as stack:
        primary.server.psql("select pg_reload_conf()")
        copy = copy_of(primary.server, session_folder, stack)
        for _ in range(5):
            primary.switch(rows=1000)
        primary.caught_up()
        primary.end()
        recovering = Commands(python, owned_folder(tmp_owned / "recovering"), copy)
        recovering.archive = primary.archive
        recovering.write("patience = 0.1")
        stack.enter_context(ended(recovering))
        recovering.configure(recovering.restore_command, "archive_mode = off")
        (copy.data / "recovery.signal").touch()
        away = primary.archive.with_name("away")
        primary.archive.rename(away)
        with pytest.raises(RuntimeError, match="could not restore file"):
            copy.start()
        assert (copy.data / "recovery.signal").exists()
        away.rename(primary.archive)
        copy.start()
        until(lambda: copy.psql("select not pg_is_in_recovery()") == "t")
        assert copy.psql("select count(*) from t") == "5000"


def copy_of(primary: TestServer, folder: Path, stack: ExitStack) -> TestServer:
    """Take a base backup without its WAL: a server on it needs the archive."""
    made = TestServer(owned_folder(Path(tempfile.mkdtemp(prefix="copy-", dir=folder))), primary.bin_dir)
    stack.callback(shutil.rmtree, made.folder, ignore_errors=True)
    stack.callback(made.kill)
    source = primary.dsn()
    primary.run("pg_basebackup", "-D", str(made.data), "-d", source, "-X", "none", "-c", "fast", "--no-sync")
    with (made.data / "postgresql.conf").open("a") as file:
        file.write(f"port = {made.port}\nunix_socket_directories = '{made.folder}'\n")
    return made
