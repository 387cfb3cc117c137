"""A logical backup comes back: everything in it, into any newer server, all or nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import attrs
import pytest

from resilience import Archive, Corrupt, Interrupted, Manifest, Refused, backup, restore
from resilience.errors import DestinationNotEmpty, DiskTooSmall
from resilience.model.errors import StorageFailed
from resilience.planning.restore import plan_restore
from resilience.postgres import PostgresDumpTarget, PostgresServer
from resilience.postgres.dumps import loading
from resilience.postgres.dumps.contents import Contents
from resilience.postgres.dumps.renaming import Renaming
from resilience.postgres.dumps.sql_text import quoted
from resilience.stores import MemoryStore
from resilience.testing.postgres import TestServer, owned_folder

from ..conftest import NewServer
from .dumps import (
    BROKEN,
    LEAKY,
    OWNER,
    SECRET,
    SHOP,
    ask,
    databases,
    drop_shop,
    fill_shop,
    gate,
    inside,
    look_at_roles,
    look_at_shop,
    make_shop,
)


async def dumped(server: TestServer, *names: str) -> tuple[Archive, Manifest]:
    """Dump databases into memory."""
    archive = Archive(MemoryStore())
    target = PostgresDumpTarget("shop", dsn=server.dsn(), databases=names, bin_dir=server.bin_dir)
    return archive, (await backup(target, archive)).manifest


def into(server: TestServer, **options: object) -> PostgresServer:
    """Restore into a server with its own programs."""
    return PostgresServer(dsn=server.dsn(), bin_dir=server.bin_dir, **options)  # type: ignore[arg-type]


@pytest.fixture
def shop(postgres17: TestServer) -> Iterator[TestServer]:
    """A server that has the shop; it has it no more afterwards."""
    make_shop(postgres17)
    yield postgres17
    drop_shop(postgres17)


@pytest.fixture(scope="module")
def taken(server: Callable[[int], TestServer]) -> tuple[Archive, Manifest]:
    """One dump of the shop, which is on the server no more; its roles neither."""
    source = server(17)
    make_shop(source)
    try:
        return asyncio.run(dumped(source, SHOP))
    finally:
        drop_shop(source)


@pytest.fixture
def emptied(postgres17: TestServer) -> Iterator[TestServer]:
    """The server that the shop of `taken` comes back to."""
    yield postgres17
    drop_shop(postgres17)


async def test_everything_comes_back(every_postgres: TestServer) -> None:
    server = every_postgres
    make_shop(server)
    try:
        before, roles = look_at_shop(server), look_at_roles(server)
        archive, manifest = await dumped(server, SHOP)
        drop_shop(server)
        destination = into(server)
        report = await restore(archive, "shop", into=destination)
        assert look_at_shop(server) == before
        assert look_at_roles(server) == roles
        assert report.reached == manifest.recovery_point
        assert report.destination == f"127.0.0.1:{server.port}"
        async with destination.live() as live:
            connection = await asyncpg.connect(live.dsn)
            assert await connection.fetchval("select count(*) from pg_database where datname = $1", SHOP) == 1
            await connection.close()
    finally:
        drop_shop(server)


async def test_a_dump_comes_back_into_a_newer_server(
    taken: tuple[Archive, Manifest], emptied: TestServer, postgres18: TestServer
) -> None:
    try:
        await restore(taken[0], "shop", into=into(postgres18))
        newer = look_at_shop(postgres18)
    finally:
        drop_shop(postgres18)
    await restore(taken[0], "shop", into=into(emptied))
    assert newer == look_at_shop(emptied)


async def test_a_whole_cluster_comes_back(new_server: NewServer) -> None:
    source, emptied = new_server(15), new_server(16)
    make_shop(source)
    ask(source, "create table kept as select 1 as id")
    archive = Archive(MemoryStore())
    await backup(PostgresDumpTarget("all", dsn=source.dsn(), bin_dir=source.bin_dir), archive)
    report = await restore(archive, "all", into=into(emptied))
    assert look_at_shop(emptied) == look_at_shop(source)
    assert ask(emptied, "select id from kept") == "1"
    said = " ".join(map(str, report.findings))
    assert 'database "postgres" is there and empty' in said
    assert "roles that are there are left as they are: backup" in said


async def test_a_whole_cluster_is_replaced_even_the_database_one_connects_to(new_server: NewServer) -> None:
    server = new_server(18)
    make_shop(server)
    ask(server, "create table kept as select 1 as id")
    before = look_at_shop(server)
    archive = Archive(MemoryStore())
    await backup(PostgresDumpTarget("all", dsn=server.dsn(), bin_dir=server.bin_dir), archive)
    ask(server, "drop table kept")
    ask(server, f"update pg_database set datconnlimit = -2 where datname = $name${SHOP}$name$")  # as a broken one has
    await restore(archive, "all", into=into(server, replace=True))
    assert look_at_shop(server) == before
    assert ask(server, "select id from kept") == "1"


async def test_restore_refuses_a_database_that_holds_something(
    taken: tuple[Archive, Manifest], emptied: TestServer
) -> None:
    ask(emptied, f"create database {quoted(SHOP)}")
    ask(emptied, "create table precious as select 1 as id", database=inside(SHOP))
    before = databases(emptied)
    archive, manifest = taken
    with pytest.raises(DestinationNotEmpty, match=r'database "We ird-ü"x" is not empty \(.*replace=True\)'):
        await restore(archive, "shop", into=into(emptied))
    empty = await into(emptied, replace=True).survey([manifest])
    async with archive.open(manifest) as stored:
        with pytest.raises(DestinationNotEmpty):
            await into(emptied).apply(plan_restore([manifest], empty), chain=[stored])
    assert databases(emptied) == before
    assert ask(emptied, "select id from precious", database=inside(SHOP)) == "1"
    assert OWNER not in ask(emptied, "select rolname from pg_roles")


@pytest.mark.parametrize(
    "object_",
    [
        "create table t (id int)",
        "create function f() returns int language sql as 'select 1'",
        "create type t as enum ('a')",
        "create schema s",
        "select lo_from_bytea(0, '')",
        "create publication p",
    ],
)
async def test_anything_a_user_made_counts(taken: tuple[Archive, Manifest], emptied: TestServer, object_: str) -> None:
    ask(emptied, f"create database {quoted(SHOP)}")
    ask(emptied, object_, database=inside(SHOP))
    assert not (await into(emptied).survey([taken[1]])).empty


async def test_a_replaced_database_is_as_it_was_in_the_backup(shop: TestServer) -> None:
    before = look_at_shop(shop)
    archive, _ = await dumped(shop, SHOP)
    ask(shop, "drop table sales.odd", database=inside(SHOP))
    connected = await asyncpg.connect(host="127.0.0.1", port=shop.port, user="postgres", database=SHOP)
    destination = PostgresServer(
        dsn=shop.dsn(database=inside(SHOP)), bin_dir=shop.bin_dir, replace=True, jobs=1, name="the shop"
    )
    report = await restore(archive, "shop", into=destination)
    assert report.destination == "the shop"
    assert look_at_shop(shop) == before
    assert connected.is_closed() or await closed(connected)
    assert not [name for name in databases(shop) if name.startswith("resilience")]


async def closed(connection: asyncpg.Connection) -> bool:
    """Say whether the server has ended a connection."""
    try:
        await connection.fetchval("select 1")
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
        return True
    return False


async def test_a_restore_that_fails_keeps_what_it_was_to_replace(shop: TestServer) -> None:
    archive, _ = await dumped(shop, SHOP)
    ask(shop, "insert into sales.empty values (1)", database=inside(SHOP))
    with gate(shop, BROKEN), pytest.raises(Interrupted):
        await restore(archive, "shop", into=into(shop, replace=True))
    assert ask(shop, "select id from sales.empty", database=inside(SHOP)) == "1"
    target = PostgresDumpTarget("all", dsn=shop.dsn(), bin_dir=shop.bin_dir)
    names = [each.name for each in Contents.of((await target.survey()).details).databases]
    assert names == [SHOP, "postgres"], "what is half restored is not backed up"
    await into(shop).discard()
    assert SHOP in databases(shop)


async def test_an_existing_empty_database_is_filled_and_keeps_its_properties(
    taken: tuple[Archive, Manifest], emptied: TestServer
) -> None:
    ask(emptied, f"create database {quoted(SHOP)} template template0 encoding 'UTF8' locale 'C' connection limit 33")
    report = await restore(taken[0], "shop", into=into(emptied))
    assert ask(emptied, "select count(*) from sales.items", database=inside(SHOP)) == "5000"
    kept = ask(
        emptied, f"select datconnlimit, datacl, pg_get_userbyid(datdba) from pg_database where datname = '{SHOP}'"
    )
    assert kept == "33||postgres"
    assert "keeps its owner, settings and privileges" in str(report)


async def test_filling_an_existing_database_is_all_or_nothing(
    taken: tuple[Archive, Manifest], emptied: TestServer
) -> None:
    ask(emptied, f"create database {quoted(SHOP)} template template0 encoding 'UTF8' locale 'C'")
    with gate(emptied, BROKEN), pytest.raises(Interrupted, match="the gate is broken"):
        await restore(taken[0], "shop", into=into(emptied))
    assert (await into(emptied).survey([taken[1]])).empty
    await restore(taken[0], "shop", into=into(emptied))


async def test_an_existing_database_with_other_text_rules_is_refused(
    taken: tuple[Archive, Manifest], emptied: TestServer
) -> None:
    ask(emptied, f"create database {quoted(SHOP)} template template0 encoding 'LATIN1' locale 'C'")
    with pytest.raises(Refused, match=r"encoding LATIN1 and locale C, the backup's has encoding UTF8 .*drop it"):
        await restore(taken[0], "shop", into=into(emptied))


async def test_an_existing_database_that_allows_no_connections_is_refused(
    taken: tuple[Archive, Manifest], emptied: TestServer
) -> None:
    ask(emptied, f"create database {quoted(SHOP)} allow_connections false")
    with pytest.raises(Refused, match="allows no connections"):
        await restore(taken[0], "shop", into=into(emptied))


async def test_a_template_is_not_replaced(taken: tuple[Archive, Manifest], emptied: TestServer) -> None:
    ask(emptied, f"create database {quoted(SHOP)} is_template true")
    try:
        with pytest.raises(Refused, match="is a template there"):
            await restore(taken[0], "shop", into=into(emptied, replace=True))
    finally:
        ask(emptied, f"alter database {quoted(SHOP)} is_template false")


async def test_existing_roles_are_left_as_they_are(taken: tuple[Archive, Manifest], emptied: TestServer) -> None:
    ask(emptied, f"create role {quoted(OWNER)} login password 'their own' connection limit 3")
    before = ask(
        emptied, "select rolname, rolpassword, rolconnlimit from pg_authid where rolname like 'o''wner %\"; --'"
    )
    report = await restore(taken[0], "shop", into=into(emptied))
    after = ask(
        emptied, "select rolname, rolpassword, rolconnlimit from pg_authid where rolname like 'o''wner %\"; --'"
    )
    assert after == before
    assert OWNER in str(report)
    assert ask(emptied, "select count(*) from pg_auth_members where pg_get_userbyid(member) like '% member'") == "1"


async def test_the_first_error_stops_a_restore_and_says_why(
    taken: tuple[Archive, Manifest], emptied: TestServer
) -> None:
    destination = into(emptied, jobs=1)
    with gate(emptied, BROKEN), pytest.raises(Interrupted) as failed:
        await restore(taken[0], "shop", into=destination)
    assert "pg_restore" in str(failed.value)
    assert "the gate is broken" in str(failed.value)
    assert "discard()" in str(failed.value)
    assert SHOP not in databases(emptied)
    (left,) = [name for name in databases(emptied) if name.startswith("resilience_restoring_")]
    assert "z_gated" not in ask(emptied, "select relname from pg_class", database=left)
    facts = await into(emptied).survey([taken[1]])
    assert facts.empty
    assert f"an interrupted restore has left {left}" in " ".join(map(str, facts.findings))
    await into(emptied).discard()
    assert left not in databases(emptied)


async def test_a_secret_in_a_failing_command_is_not_repeated(
    taken: tuple[Archive, Manifest], emptied: TestServer
) -> None:
    destination = into(emptied, jobs=1)
    with gate(emptied, LEAKY), pytest.raises(Interrupted) as failed:
        await restore(taken[0], "shop", into=destination)
    assert "the options are wrong" in str(failed.value)
    assert "the command is not shown" in str(failed.value)
    assert SECRET not in str(failed.value)
    await destination.discard()


async def test_discard_drops_what_was_restored_and_nothing_else(
    taken: tuple[Archive, Manifest], emptied: TestServer
) -> None:
    ask(emptied, "create database resilience_restoring_mine")
    try:
        before = databases(emptied)
        destination = into(emptied)
        await restore(taken[0], "shop", into=destination)
        assert SHOP in databases(emptied)
        await into(emptied).discard()
        assert SHOP in databases(emptied), "another object's discard() drops only what is half restored"
        await destination.discard()
        await destination.discard()
        assert databases(emptied) == before
    finally:
        ask(emptied, "drop database resilience_restoring_mine")


async def test_a_template_comes_back_as_a_template_and_can_be_discarded(postgres17: TestServer) -> None:
    ask(postgres17, "create database model is_template true")
    try:
        archive, _ = await dumped(postgres17, "model")
        ask(postgres17, "alter database model is_template false")
        ask(postgres17, "drop database model")
        destination = into(postgres17)
        await restore(archive, "shop", into=destination)
        assert ask(postgres17, "select datistemplate from pg_database where datname = 'model'") == "t"
        await destination.discard()
        assert "model" not in databases(postgres17)
    finally:
        ask(postgres17, "update pg_database set datistemplate = false where datname = 'model'")
        ask(postgres17, "drop database if exists model")


async def test_tablespaces_come_back_where_they_were_or_are_left_out(shop: TestServer, tmp_owned: Path) -> None:
    where = owned_folder(tmp_owned / "space")
    ask(shop, f"create tablespace warm location '{where}'")
    try:
        ask(shop, f"alter database {quoted(SHOP)} set tablespace warm")
        archive, _ = await dumped(shop, SHOP)
        home = (
            f"select spcname from pg_database d join pg_tablespace t on t.oid = dattablespace where datname = '{SHOP}'"
        )
        await restore(archive, "shop", into=into(shop, replace=True, tablespaces=False))
        assert ask(shop, home) == "pg_default"
        ask(shop, "drop tablespace warm")
        await restore(archive, "shop", into=into(shop, replace=True))
        assert ask(shop, home) == "warm"
        assert ask(shop, "select pg_tablespace_location(oid) from pg_tablespace where spcname = 'warm'") == str(where)
        ask(shop, f"drop database {quoted(SHOP)}")
        ask(shop, "drop tablespace warm")
        where.rmdir()
        with pytest.raises(Refused, match=r'CREATE TABLESPACE "warm" failed: directory .* does not exist'):
            await restore(archive, "shop", into=into(shop))
    finally:
        drop_shop(shop, owner=None)
        ask(shop, "drop tablespace if exists warm")


async def test_an_older_server_is_refused(taken: tuple[Archive, Manifest], postgres16: TestServer) -> None:
    with pytest.raises(Refused, match=r"the backup is of PostgreSQL 17, the server is 16.*cannot read it"):
        await restore(taken[0], "shop", into=into(postgres16))


async def test_programs_too_new_for_the_server_are_refused(
    postgres16: TestServer, postgres_bin: Callable[[int], Path]
) -> None:
    make_shop(postgres16)
    try:
        archive, _ = await dumped(postgres16, SHOP)
        drop_shop(postgres16)
        destination = PostgresServer(dsn=postgres16.dsn(), bin_dir=postgres_bin(17))
        with pytest.raises(Refused, match=r"a pg_restore of 17 or newer cannot restore.*PostgreSQL 16 with bin_dir="):
            await restore(archive, "shop", into=destination)
    finally:
        drop_shop(postgres16)


async def test_missing_programs_are_refused(
    taken: tuple[Archive, Manifest], emptied: TestServer, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match="pg_restore is not in .*bin_dir="):
        await restore(taken[0], "shop", into=PostgresServer(dsn=emptied.dsn(), bin_dir=tmp_path))


async def test_room_for_the_spool_is_looked_for_first(
    taken: tuple[Archive, Manifest], emptied: TestServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Refused, match="there is no folder .*/nowhere to spool to"):
        await restore(taken[0], "shop", into=into(emptied, spool=tmp_path / "nowhere"))
    full = os.statvfs(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: attrs.make_class("Usage", ["free"])(7))
    with pytest.raises(DiskTooSmall, match="7 B free and needs"):
        await restore(taken[0], "shop", into=into(emptied, spool=tmp_path))
    assert full and SHOP not in databases(emptied)


async def test_a_full_spool_ends_the_restore_with_nothing_created(
    taken: tuple[Archive, Manifest], emptied: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    before = databases(emptied)
    with monkeypatch.context() as patched:
        patched.setattr(loading, "_write", full)
        with pytest.raises(StorageFailed, match=r"No space left on device \(name another folder with spool="):
            await restore(taken[0], "shop", into=into(emptied))
        patched.setattr("tempfile.TemporaryFile", full)
        with pytest.raises(StorageFailed, match="cannot be spooled"):
            await restore(taken[0], "shop", into=into(emptied))
    assert databases(emptied) == before


async def test_the_spool_has_no_name_and_is_ours_alone(
    taken: tuple[Archive, Manifest], emptied: TestServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[Path], int]] = []
    complete = loading._complete

    def look(file: object, reader: object) -> None:
        status = os.fstat(file.fileno())  # type: ignore[attr-defined]
        seen.append((list(tmp_path.iterdir()), status.st_mode & 0o777))
        complete(file, reader)  # type: ignore[arg-type]

    monkeypatch.setattr(loading, "_complete", look)
    await restore(taken[0], "shop", into=into(emptied, spool=tmp_path))
    assert seen == [([], 0o600)]


async def test_a_database_that_appears_meanwhile_is_not_touched(
    taken: tuple[Archive, Manifest], emptied: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = loading._complete

    def create_meanwhile(file: object, reader: object) -> None:
        ask(emptied, f"create database {quoted(SHOP)}")
        fill_shop(emptied, owner="postgres")
        complete(file, reader)  # type: ignore[arg-type]

    monkeypatch.setattr(loading, "_complete", create_meanwhile)
    with pytest.raises(Refused, match="already exists"):
        await restore(taken[0], "shop", into=into(emptied))
    assert "wner" not in ask(emptied, "select tableowner from pg_tables where tablename = 'odd'", database=inside(SHOP))
    await into(emptied).discard()
    assert SHOP in databases(emptied)


async def test_a_dump_that_does_not_name_its_database_never_reaches_pg_restore(
    taken: tuple[Archive, Manifest], emptied: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Renaming, "__call__", lambda _, entry: entry)
    before = databases(emptied)
    with pytest.raises(Corrupt, match="the dump does not name its database"):
        await restore(taken[0], "shop", into=into(emptied))
    assert databases(emptied) == before


async def test_a_restore_that_lacks_relations_is_not_published(
    taken: tuple[Archive, Manifest], emptied: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_COUNT", "select 3::bigint")
    with pytest.raises(Interrupted, match="has 3 relations after the restore, its dump lists 8"):
        await restore(taken[0], "shop", into=into(emptied))
    assert SHOP not in databases(emptied)
    await into(emptied).discard()


async def test_a_plan_for_another_backup_is_refused(taken: tuple[Archive, Manifest], emptied: TestServer) -> None:
    archive, manifest = taken
    plan = plan_restore([manifest], await into(emptied).survey([manifest]))
    async with archive.open(manifest) as stored:
        with pytest.raises(ValueError, match="the plan restores 20200101"):
            await into(emptied).apply(attrs.evolve(plan, chain=("20200101T000000Z-000000",)), chain=[stored])


async def test_survey_of_a_destination_writes_nothing(taken: tuple[Archive, Manifest], emptied: TestServer) -> None:
    before = databases(emptied)
    facts = await into(emptied).survey([taken[1]])
    assert facts.empty and facts.needed and facts.free
    assert facts.needed == max(part.size for part in taken[1].parts)
    assert databases(emptied) == before


def test_a_destination_shows_no_password() -> None:
    destination = PostgresServer(dsn="host=127.0.0.1 port=5 user=u password=geheim")
    assert destination.name == "127.0.0.1:5"
    assert "geheim" not in repr(destination)


def test_jobs_and_spool_have_sensible_defaults() -> None:
    destination = PostgresServer(dsn="", jobs=None, spool=None)
    assert destination.jobs == os.cpu_count()
    assert destination.spool.is_dir()
    with pytest.raises(ValueError, match="jobs"):
        PostgresServer(dsn="", jobs=0)
