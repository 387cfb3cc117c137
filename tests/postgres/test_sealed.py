"""A sealed PostgreSQL server comes back to a moment with the key, and without it not at all."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from resilience import Archive, restore, verify
from resilience.keys import KeyFile
from resilience.model.errors import Corrupt, Refused
from resilience.model.findings import Level
from resilience.postgres import PostgresDataDirectory
from resilience.postgres.wal.source import WalSource
from resilience.stores import LocalStore
from resilience.testing.faults import changed, flipped
from resilience.testing.postgres import owned_folder, unprivileged
from resilience.testing.python import reachable_python

from ..conftest import NewServer
from .archived import SETTINGS, archive_wal, back_up, insert, rows
from .resident import SEGMENT, Commands, ended

SECRET = "the secret that nobody shall find"


def contains(folder: Path, text: bytes) -> bool:
    return any(text in path.read_bytes() for path in folder.rglob("*") if path.is_file())


async def test_a_sealed_server_comes_back_to_a_moment_with_its_key_only(
    new_server: NewServer, tmp_path: Path, tmp_owned: Path
) -> None:
    key, other = KeyFile.create(tmp_path / "key"), KeyFile.create(tmp_path / "other")
    store = LocalStore(tmp_path / "store")
    origin = new_server(17, settings={**SETTINGS, "fsync": "off"})
    origin.psql(f"create table rows (id int primary key, note text default '{SECRET}')")
    insert(origin, 1)
    archive = Archive(store, key=key, object_size=1 << 20)
    manifest = await back_up(origin, archive)
    moment = insert(origin, 2)
    insert(origin, 3)
    await archive_wal(origin, archive, manifest)
    origin.kill()

    assert not contains(tmp_path / "store", SECRET.encode())
    assert not contains(tmp_path / "store", b"\x28\xb5\x2f\xfd")  # where zstd would begin
    fresh = Archive(store, key=KeyFile(tmp_path / "key"))
    assert (await verify(fresh, manifest)).level == Level.CHECKSUMS
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=origin.bin_dir)
    for wrong in (Archive(store), Archive(store, key=other)):
        with pytest.raises(Refused) as refused:
            await restore(wrong, "orders", into=into, until=moment)
        assert key.id in str(refused.value)
        assert not (tmp_owned / "data").exists()
    async with changed(store, manifest.part("base.tar").objects[0].key, flipped(1000)):
        with pytest.raises(Corrupt):
            await restore(fresh, "orders", into=into, until=moment)
        await into.discard()
    report = await restore(fresh, "orders", into=into, until=moment)
    assert report.reached.time == moment
    assert await rows(into) == [1, 2]


@pytest.fixture
def live(new_server: NewServer, tmp_owned: Path, session_folder: Path) -> Iterator[Commands]:
    """A server whose archive_command seals, with a key that its account may read."""
    python = reachable_python(owned_folder(session_folder / "sealing-python"))
    settings = {"archive_mode": "on", "archive_command": "'false'", "fsync": "off"}
    made = Commands(python, tmp_owned, new_server(16, "--wal-segsize=1", settings=settings))
    KeyFile.create(tmp_owned / "key")
    shutil.copy(tmp_owned / "key", tmp_owned / "servers key")
    if account := unprivileged():
        shutil.chown(tmp_owned / "servers key", account.uid, account.gid)
    made.write(f'key_file = "{tmp_owned}/servers key"')
    made.configure(made.archive_command)
    with ended(made):
        made.server.psql(f"create table t as select '{SECRET}'::text as note; select pg_reload_conf()")
        yield made


async def test_what_the_server_archives_is_sealed_and_comes_back_byte_for_byte(live: Commands) -> None:
    names = [live.switch() for _ in range(3)]
    live.caught_up()
    live.end(signal.SIGTERM)
    assert not contains(live.archive, SECRET.encode())
    archive = Archive(LocalStore(live.archive), key=KeyFile(live.home / "key"))
    (lineage,) = await archive.lineages("orders")
    async with archive.log("orders", system="postgresql", lineage=lineage) as log:
        for name in names:
            pieces = await WalSource(log, SEGMENT).fetch(name)
            assert pieces is not None and b"".join(pieces) == (live.wal / name).read_bytes()
        facts = await log.survey()
    assert facts.findings == () and len(facts.watermarks) == 1
