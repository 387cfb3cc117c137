"""A physical backup comes back: whole, owned rightly, alone, and never half."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

from resilience import Archive, Corrupt, Event, Manifest, Refused, backup, restore
from resilience.errors import DestinationNotEmpty, DiskTooSmall
from resilience.planning.restore import plan_restore
from resilience.postgres import PostgresDataDirectory, PostgresTarget
from resilience.postgres.mark import MARK, Mark
from resilience.postgres.places import places_for
from resilience.postgres.unpacking import Unpacking
from resilience.stores import MemoryStore
from resilience.testing.cancellation import cancellations
from resilience.testing.postgres import TestServer, owned_folder, starts, unprivileged

from ..conftest import NewServer


@pytest.fixture(scope="module")
def taken(server: Callable[[int], TestServer]) -> tuple[Archive, Manifest]:
    """One backup of a small PostgreSQL 17, for the tests that only read it."""
    source = server(17)
    archive = Archive(MemoryStore(), object_size=1 << 20)
    report = asyncio.run(backup(PostgresTarget("orders", dsn=source.dsn("backup")), archive))
    return archive, report.manifest


@pytest.fixture
def bin_dir(postgres_bin: Callable[[int], Path]) -> Path:
    """The programs of the shared backup's major."""
    return postgres_bin(17)


async def ask(dsn: str, query: str) -> object:
    """Run one query and return its only value."""
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


@pytest.mark.parametrize("major", [15, 16, 17, 18])
async def test_a_backup_comes_back_with_its_tablespaces(new_server: NewServer, tmp_owned: Path, major: int) -> None:
    source = new_server(major)
    where = owned_folder(source.folder / "space")
    source.psql(f"create tablespace warm location '{where}'")
    source.psql("create table far tablespace warm as select generate_series(1, 5000) as id")
    source.psql("create table near as select generate_series(1, 3000) as id")
    archive = Archive(MemoryStore())
    taken = await backup(PostgresTarget("orders", dsn=source.dsn("backup")), archive)
    source.psql("drop table near")

    moved = tmp_owned / "space"
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=source.bin_dir, tablespaces={str(where): moved})
    report = await restore(archive, "orders", into=into)

    assert report.reached.position.offset >= taken.manifest.recovery_point.position.offset
    async with into.live() as live:
        assert await ask(live.dsn, "select count(*) from near") == 3000
        assert await ask(live.dsn, "select sum(id) from far") == 5000 * 5001 // 2
        location = "select pg_tablespace_location(oid) from pg_tablespace where spcname = 'warm'"
        assert await ask(live.dsn, location) == str(moved)
    assert source.psql("select count(*) from far") == "5000", "the source was touched"


async def test_pg_verifybackup_agrees_with_what_was_unpacked(
    taken: tuple[Archive, Manifest], bin_dir: Path, tmp_owned: Path
) -> None:
    archive, manifest = taken
    data = tmp_owned / "data"
    async with archive.open(manifest) as stored:
        places = places_for(manifest, data, tablespaces={}, owner=None)
        await Unpacking(places, Mark(data, places.account)).unpack([stored])
    (data / MARK).unlink()
    (data / "recovery.signal").unlink()
    said = TestServer(tmp_owned, bin_dir).run("pg_verifybackup", str(data), check=False)
    assert said.returncode == 0, said.stderr


async def test_everything_belongs_to_the_account_with_the_modes_it_had(
    taken: tuple[Archive, Manifest], bin_dir: Path, tmp_owned: Path
) -> None:
    data = tmp_owned / "data"
    await restore(taken[0], "orders", into=PostgresDataDirectory(data, bin_dir=bin_dir))
    owner = tmp_owned.stat().st_uid
    for path in [data, *data.rglob("*")]:
        status = path.stat()
        assert status.st_uid == owner, path
        assert stat.S_IMODE(status.st_mode) == (0o700 if path.is_dir() else 0o600), path


async def test_group_access_comes_back(new_server: NewServer, tmp_owned: Path) -> None:
    source = new_server(17, "--allow-group-access")
    archive = Archive(MemoryStore())
    await backup(PostgresTarget("orders", dsn=source.dsn("backup")), archive)
    data = tmp_owned / "data"
    await restore(archive, "orders", into=PostgresDataDirectory(data, bin_dir=source.bin_dir))
    assert stat.S_IMODE(data.stat().st_mode) == 0o750
    assert stat.S_IMODE((data / "PG_VERSION").stat().st_mode) == 0o640


async def test_a_restored_server_is_left_running_when_asked(new_server: NewServer, tmp_owned: Path) -> None:
    source = new_server(17)
    archive = Archive(MemoryStore())
    await backup(PostgresTarget("orders", dsn=source.dsn("backup")), archive)
    source.stop()
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=source.bin_dir, leave="running")
    await restore(archive, "orders", into=into)
    assert await ask(f"postgresql://postgres@127.0.0.1:{source.port}/postgres", "select pg_is_in_recovery()") is False
    await into.discard()
    assert list((tmp_owned / "data").iterdir()) == []
    assert source.run("pg_isready", "-h", "127.0.0.1", "-p", str(source.port), check=False).returncode != 0


async def test_a_restored_server_begins_a_timeline_of_its_own(
    taken: tuple[Archive, Manifest], bin_dir: Path, tmp_owned: Path
) -> None:
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=bin_dir)
    await restore(taken[0], "orders", into=into)
    async with into.live() as live:
        assert await ask(live.dsn, "select timeline_id from pg_control_checkpoint()") == 2


async def test_restore_refuses_a_nonempty_directory(
    taken: tuple[Archive, Manifest], bin_dir: Path, tmp_owned: Path
) -> None:
    (tmp_owned / "precious").write_text("keep me")
    into = PostgresDataDirectory(tmp_owned, bin_dir=bin_dir)
    with pytest.raises(DestinationNotEmpty, match="is not empty.*choose an empty or absent folder"):
        await restore(taken[0], "orders", into=into)
    with pytest.raises(Refused, match="neither by this object"):
        await into.discard()
    assert (tmp_owned / "precious").read_text() == "keep me"


async def test_apply_looks_again_whether_the_directory_is_empty(
    taken: tuple[Archive, Manifest], bin_dir: Path, tmp_owned: Path
) -> None:
    archive, manifest = taken
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=bin_dir)
    plan = plan_restore([manifest], await into.survey([manifest]))
    owned_folder(tmp_owned / "data").joinpath("precious").write_text("keep me")
    async with archive.open(manifest) as stored:
        with pytest.raises(DestinationNotEmpty):
            await into.apply(plan, chain=[stored])
    assert [path.name for path in (tmp_owned / "data").iterdir()] == ["precious"]


async def test_survey_writes_nothing(taken: tuple[Archive, Manifest], bin_dir: Path, tmp_owned: Path) -> None:
    facts = await PostgresDataDirectory(tmp_owned / "deep" / "data", bin_dir=bin_dir).survey([taken[1]])
    assert facts.empty and facts.findings == ()
    assert list(tmp_owned.iterdir()) == []


async def test_programs_of_another_major_are_refused(
    taken: tuple[Archive, Manifest], postgres_bin: Callable[[int], Path], tmp_owned: Path
) -> None:
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=postgres_bin(16))
    with pytest.raises(Refused, match=r"of PostgreSQL 17, the programs are of 16 \(name the programs"):
        await restore(taken[0], "orders", into=into)
    assert not (tmp_owned / "data").exists()


async def test_missing_programs_are_refused(taken: tuple[Archive, Manifest], tmp_owned: Path) -> None:
    with pytest.raises(Refused, match="postgres is not in .*bin_dir="):
        await restore(taken[0], "orders", into=PostgresDataDirectory(tmp_owned / "data", bin_dir=tmp_owned))
    assert not (tmp_owned / "data").exists()


@pytest.mark.skipif(unprivileged() is None, reason="only root can restore for others")
async def test_root_is_refused_as_the_owner(taken: tuple[Archive, Manifest], bin_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"will not run as root.*owner="):
        await restore(taken[0], "orders", into=PostgresDataDirectory(tmp_path / "data", bin_dir=bin_dir))
    with pytest.raises(Refused, match="no account 'nobody-at-all'"):
        into = PostgresDataDirectory(tmp_path / "data", bin_dir=bin_dir, owner="nobody-at-all")
        await restore(taken[0], "orders", into=into)


async def test_a_tablespace_that_is_not_in_the_backup_is_refused(
    taken: tuple[Archive, Manifest], bin_dir: Path, tmp_owned: Path
) -> None:
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=bin_dir, tablespaces={"/mnt/wrong": tmp_owned / "x"})
    with pytest.raises(Refused, match="no tablespace at /mnt/wrong.*it has: none"):
        await restore(taken[0], "orders", into=into)


async def test_a_tablespace_in_use_must_be_mapped_elsewhere(new_server: NewServer, tmp_owned: Path) -> None:
    source = new_server(17)
    where = owned_folder(source.folder / "space")
    source.psql(f"create tablespace warm location '{where}'")
    archive = Archive(MemoryStore())
    await backup(PostgresTarget("orders", dsn=source.dsn("backup")), archive)
    with pytest.raises(DestinationNotEmpty, match=r"space is not empty.*tablespaces="):
        await restore(archive, "orders", into=PostgresDataDirectory(tmp_owned / "data", bin_dir=source.bin_dir))


async def test_a_disk_that_is_too_small_is_refused_beforehand(
    taken: tuple[Archive, Manifest], bin_dir: Path, tmp_owned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tiny:
        f_bavail, f_frsize = 100, 4096

    monkeypatch.setattr(os, "statvfs", lambda _: Tiny)
    with pytest.raises(DiskTooSmall, match="has 400.0 KiB free and needs"):
        await restore(taken[0], "orders", into=PostgresDataDirectory(tmp_owned / "data", bin_dir=bin_dir))
    assert not (tmp_owned / "data").exists()


@pytest.mark.parametrize("part", ["base.tar", "backup_manifest"])
async def test_a_damaged_archive_leaves_nothing_that_starts(
    taken: tuple[Archive, Manifest], bin_dir: Path, tmp_owned: Path, part: str
) -> None:
    archive, manifest = taken
    victim = manifest.part(part).objects[-1].key
    damaged = MemoryStore()
    async for info in archive.store.list(""):
        async with archive.store.get(info.key) as chunks:
            data = bytearray(b"".join([chunk async for chunk in chunks]))
        if info.key == victim:
            data[-5] ^= 1
        await damaged.put(info.key, [bytes(data)])
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=bin_dir)
    with pytest.raises(Corrupt, match=victim.replace(".", r"\.")):
        await restore(Archive(damaged), "orders", into=into)
    assert not starts(tmp_owned / "data", bin_dir)
    await into.discard()
    assert list((tmp_owned / "data").iterdir()) == []


async def test_a_restore_cancelled_anywhere_leaves_nothing_that_starts(
    taken: tuple[Archive, Manifest], bin_dir: Path, tmp_owned: Path
) -> None:
    for number, attempt in enumerate(cancellations(step=61)):
        data = tmp_owned / str(number)
        into = PostgresDataDirectory(data, bin_dir=bin_dir)
        completed = await attempt(restore(taken[0], "orders", into=into))
        done = starts(data, bin_dir)
        assert done or not completed
        assert not (done and (data / MARK).exists())
        await into.discard()
        assert not data.exists() or list(data.iterdir()) == []


async def test_an_interrupted_restore_can_be_discarded_by_somebody_else(
    taken: tuple[Archive, Manifest], bin_dir: Path, tmp_owned: Path
) -> None:
    data = tmp_owned / "data"

    def give_up(event: Event) -> None:
        if event.stage == "progress":
            task.cancel()

    task = asyncio.create_task(
        restore(taken[0], "orders", into=PostgresDataDirectory(data, bin_dir=bin_dir), observer=give_up)
    )
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not starts(data, bin_dir)
    again = PostgresDataDirectory(data, bin_dir=bin_dir)
    with pytest.raises(DestinationNotEmpty):
        await restore(taken[0], "orders", into=again)
    await again.discard()
    await restore(taken[0], "orders", into=again)
    assert starts(data, bin_dir)


@pytest.mark.skipif(unprivileged() is None, reason="only root can mount a small disk")
async def test_a_full_disk_says_so_and_leaves_nothing_that_starts(
    taken: tuple[Archive, Manifest], bin_dir: Path, tmp_owned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = owned_folder(tmp_owned / "small")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m,mode=755", "tmpfs", str(small)], check=True)
    try:
        account = unprivileged()
        assert account is not None
        os.chown(small, account.uid, account.gid)
        monkeypatch.setattr("resilience.postgres.places.Places.tightest", lambda *_: (0, 0))
        into = PostgresDataDirectory(small / "data", bin_dir=bin_dir)
        with pytest.raises(Exception, match="No space left on device") as failure:
            await restore(taken[0], "orders", into=into)
        assert type(failure.value).__name__ == "StorageFailed"
        assert not starts(small / "data", bin_dir)
        await into.discard()
        assert list((small / "data").iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
