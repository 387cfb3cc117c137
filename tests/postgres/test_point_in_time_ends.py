"""What a restore leaves behind is what was asked for: a primary, a server that stays where it was put, a standby."""

from __future__ import annotations

import stat
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import pytest
from attrs import define, field
from psycopg.conninfo import conninfo_to_dict

from resilience import Archive, restore
from resilience.model.targets import RecoveryTarget
from resilience.postgres import PostgresDataDirectory
from resilience.postgres.mark import AUTO
from resilience.stores import MemoryStore
from resilience.testing.postgres import TestServer, owned_folder, running_server, starts

from .archived import SETTINGS, archive_wal, back_up, insert, rows

SECRET = "s3cr'et \\ word"
ATTEMPTS = 500


@define
class Source:
    """A server that goes on running, with two rows after its backup, all of it archived."""

    server: TestServer
    archive: Archive = field(factory=lambda: Archive(MemoryStore(), object_size=1 << 20))
    moments: list[datetime] = field(factory=list)

    async def happen(self) -> None:
        self.server.psql("create table rows (id int)")
        manifest = await back_up(self.server, self.archive)
        self.moments += [insert(self.server, row) for row in (0, 1, 2)]
        await archive_wal(self.server, self.archive, manifest)

    @property
    def restore_command(self) -> str:
        """Gets WAL from where the server keeps it."""
        return f"cp {self.server.data}/pg_wal/%f %p"


Tell = Callable[[], Awaitable[Source]]


@pytest.fixture(scope="module")
def told(session_folder: Path, postgres_bin: Callable[[int], Path]) -> Iterator[Tell]:
    """`await told()` is the module's source."""
    sources: list[Source] = []
    folder = owned_folder(Path(tempfile.mkdtemp(prefix="source-", dir=session_folder)))
    with running_server(folder, postgres_bin(17), settings={**SETTINGS, "fsync": "off"}) as server:

        async def source() -> Source:
            if not sources:
                sources.append(Source(server))
                await sources[0].happen()
            return sources[0]

        yield source


@contextmanager
def left_running(folder: Path, source: Source) -> Iterator[TestServer]:
    """What was left in `folder/data` as a server of its own: with the source's configuration, but not its port."""
    server = TestServer(folder, source.server.bin_dir)
    with (folder / "data" / "postgresql.conf").open("a") as file:
        file.write(f"port = {server.port}\nunix_socket_directories = '{folder}'\n")
    server.start()
    try:
        yield server
    finally:
        server.kill()


def eventually(server: TestServer, query: str, wanted: str) -> None:
    for _ in range(ATTEMPTS):
        if server.psql(query) == wanted:
            return
        time.sleep(0.02)
    assert server.psql(query) == wanted


async def test_paused_at_its_target_it_can_be_read_and_then_promoted(told: Tell, tmp_owned: Path) -> None:
    source = await told()
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=source.server.bin_dir, end="pause")
    report = await restore(source.archive, "orders", into=into, until=source.moments[1])
    assert report.reached.time == source.moments[1]
    assert await rows(into) == [0, 1], "an isolated look"
    with left_running(tmp_owned, source) as server:
        eventually(server, "select pg_get_wal_replay_pause_state()", "paused")
        assert server.psql("select array_agg(id order by id) from rows") == "{0,1}"
        server.psql("select pg_promote()")
        assert server.psql("insert into rows values (7) returning pg_is_in_recovery()") == "f"
        assert server.psql("select array_agg(id order by id) from rows") == "{0,1,7}"


async def test_shut_down_at_its_target_it_goes_on_to_a_further_one(told: Tell, tmp_owned: Path) -> None:
    source = await told()
    into = PostgresDataDirectory(
        tmp_owned / "data", bin_dir=source.server.bin_dir, end="shutdown", restore_command=source.restore_command
    )
    await restore(source.archive, "orders", into=into, until=source.moments[0])
    assert await rows(into) == [0]
    assert not starts(into.path, source.server.bin_dir)
    assert "shutting down" in (tmp_owned / "hurried.log").read_text(), "at the same target again"
    assert (into.path / "recovery.signal").exists()
    with (into.path / AUTO).open("a") as file:
        file.write(f"recovery_target_time = '{source.moments[1]}'\nrecovery_target_action = 'promote'\n")
    with left_running(tmp_owned, source) as server:
        eventually(server, "select pg_is_in_recovery()", "f")
        assert server.psql("select array_agg(id order by id) from rows") == "{0,1}"


async def test_asked_for_everything_it_waits_for_more(told: Tell, tmp_owned: Path) -> None:
    source = await told()
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=source.server.bin_dir, end="shutdown")
    await restore(source.archive, "orders", into=into, until=RecoveryTarget.latest())
    assert await rows(into) == [0, 1, 2]
    with left_running(tmp_owned, source) as server:
        assert server.psql("select pg_is_in_recovery()") == "t"
        assert server.psql("select array_agg(id order by id) from rows") == "{0,1,2}"


async def test_a_backup_alone_can_stay_in_recovery_too(told: Tell, tmp_owned: Path) -> None:
    source = await told()
    manifest = await anext(source.archive.manifests("orders"))
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=source.server.bin_dir, end="pause")
    report = await restore(source.archive, "orders", into=into, until=RecoveryTarget.backup(manifest.id))
    assert report.reached.position.offset >= manifest.recovery_point.position.offset
    assert await rows(into) is None


async def test_a_standby_made_from_the_archive_follows_its_primary(told: Tell, tmp_owned: Path) -> None:
    source = await told()
    primary = source.server
    primary.psql("select pg_create_physical_replication_slot('made')")
    into = PostgresDataDirectory(
        tmp_owned / "data",
        bin_dir=primary.bin_dir,
        end="standby",
        primary=primary.uri("backup").replace("@", f":{quote(SECRET)}@"),
        slot="made",
        restore_command=source.restore_command,
    )
    assert "s3cr" not in repr(into)
    report = await restore(source.archive, "orders", into=into)
    assert "s3cr" not in repr(report)
    assert stat.S_IMODE((into.path / AUTO).stat().st_mode) == 0o600
    try:
        with left_running(tmp_owned, source) as standby:
            assert standby.psql("select pg_is_in_recovery()") == "t"
            assert conninfo_to_dict(standby.psql("show primary_conninfo"))["password"] == SECRET
            primary.psql("create table later as select 5 as id")
            eventually(standby, "select count(*) from pg_class where relname = 'later'", "1")
            assert primary.psql("select active from pg_replication_slots where slot_name = 'made'") == "t"
    finally:
        eventually(primary, "select active from pg_replication_slots where slot_name = 'made'", "f")
        primary.psql("select pg_drop_replication_slot('made')")


async def test_ends_that_contradict_each_other_are_refused(tmp_owned: Path) -> None:
    with pytest.raises(ValueError, match="cannot be left running"):
        PostgresDataDirectory(tmp_owned, end="shutdown", leave="running")
    with pytest.raises(ValueError, match="only a standby follows"):
        PostgresDataDirectory(tmp_owned, primary="host=db1")
