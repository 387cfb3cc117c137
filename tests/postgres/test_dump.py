"""A logical backup of a live server: what is in it, and what stands in its way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import asyncpg
import attrs
import pytest

from resilience import Archive, Corrupt, Event, Manifest, Refused, ResilienceError, Unavailable, backup
from resilience.model.errors import ManifestInvalid
from resilience.model.facts import DestinationFacts
from resilience.model.moments import utc_now
from resilience.planning.backup import plan_backup
from resilience.postgres import PostgresDumpTarget, PostgresServer, destination
from resilience.postgres.destination import Destination
from resilience.postgres.dumps.contents import Contents, Database, part_name
from resilience.postgres.dumps.target import _misfits
from resilience.stores import MemoryStore
from resilience.testing.cancellation import nothing_left_running
from resilience.testing.postgres import TestServer, owned_folder

from ..conftest import NewServer
from .dumps import SHOP, ask, drop_shop, make_shop, programs, until_blocked


@pytest.fixture
def shop(postgres17: TestServer) -> Iterator[TestServer]:
    """A server that has the shop; it has it no more afterwards."""
    make_shop(postgres17)
    yield postgres17
    drop_shop(postgres17)


def dump_of(server: TestServer, *names: str, **options: object) -> PostgresDumpTarget:
    """A target for some databases, or all, with the server's own programs."""
    options = {"dsn": server.dsn(), "bin_dir": server.bin_dir, "databases": names or None, **options}
    return PostgresDumpTarget("shop", **options)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def locked(server: TestServer) -> AsyncIterator[None]:
    """Hold a lock that makes pg_dump of the shop wait."""
    connection = await asyncpg.connect(host="127.0.0.1", port=server.port, user="postgres", database=SHOP)
    try:
        await connection.execute("set default_transaction_read_only = off")
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("lock sales.items in access exclusive mode")
        yield
    finally:
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
            await connection.close(timeout=1)


async def test_a_backup_holds_the_globals_and_every_database(shop: TestServer) -> None:
    archive = Archive(MemoryStore())
    report = await backup(dump_of(shop), archive)
    manifest = report.manifest
    contents = Contents.of_manifest(manifest)
    assert manifest.kind == "dump"
    assert [database.name for database in contents.databases] == [SHOP, "postgres"]
    assert {part.name for part in manifest.parts} == {"globals.sql", *(each.part for each in contents.databases)}
    assert contents.major == contents.pg_dump_major == 17
    assert contents.role_passwords and "backup" in contents.roles
    assert report.findings == ()
    async with archive.open(manifest) as stored, stored.read("globals.sql") as chunks:
        assert b"CREATE ROLE" in b"".join([chunk async for chunk in chunks])


async def test_the_recovery_point_is_where_the_server_stood_before(shop: TestServer) -> None:
    where = "select pg_current_wal_lsn() - '0/0'::pg_lsn"
    before, moment = int(ask(shop, where)), utc_now()
    manifest = (await backup(dump_of(shop, SHOP), Archive(MemoryStore()))).manifest
    after = int(ask(shop, where))
    point = manifest.recovery_point
    assert before <= point.position.offset <= after
    assert point.position == manifest.begins
    assert point.position.branch == "1"
    assert point.time is not None
    assert moment - timedelta(seconds=5) <= point.time <= utc_now()
    (database,) = Contents.of_manifest(manifest).databases
    assert database.snapshot_at is not None and database.snapshot_at >= point.time


async def test_a_backup_tells_its_progress(shop: TestServer) -> None:
    events: list[Event] = []
    report = await backup(dump_of(shop, SHOP), Archive(MemoryStore()), observer=events.append)
    assert events[-1].done == report.manifest.size
    assert events[-1].total and events[-1].total > 1 << 20


async def test_the_published_manifest_is_the_one_that_is_read_back(shop: TestServer) -> None:
    archive = Archive(MemoryStore())
    report = await backup(dump_of(shop, SHOP), archive)
    assert [manifest async for manifest in archive.manifests("shop")] == [report.manifest]


async def test_a_standby_can_be_dumped(new_server: NewServer, tmp_owned: Path) -> None:
    primary = new_server(17)
    ask(primary, "create table kept as select generate_series(1, 1000) as id")
    standby = TestServer(owned_folder(tmp_owned / "standby"), primary.bin_dir)
    primary.run("pg_basebackup", "-R", "-c", "fast", "-D", str(standby.data), "-d", primary.dsn(database="postgres"))
    with (standby.data / "postgresql.conf").open("a") as conf:
        conf.write(f"port = {standby.port}\nunix_socket_directories = '{standby.folder}'\n")
    standby.start()
    try:
        archive = Archive(MemoryStore())
        manifest = (await backup(dump_of(standby), archive)).manifest
        assert Contents.of_manifest(manifest).from_standby
        assert manifest.recovery_point.position.branch == "1"
        assert manifest.lineage == (await dump_of(primary).survey()).lineage
        facts = await PostgresServer(dsn=standby.dsn(), bin_dir=standby.bin_dir).survey([manifest])
        assert "the server is a standby" in said(facts)
    finally:
        standby.kill()


def said(facts: DestinationFacts) -> str:
    """Return everything a survey found."""
    return "; ".join(map(str, facts.findings))


async def test_databases_that_do_not_exist_are_named(postgres17: TestServer) -> None:
    with pytest.raises(Refused, match=r'there is no database "nope", "nor this" to connect to \(name databases that'):
        await backup(dump_of(postgres17, "postgres", "nor this", "nope"), Archive(MemoryStore()))


def test_a_server_with_nothing_but_templates_is_refused() -> None:
    nothing = Contents(
        version="17.1", major=17, pg_dump_major=17, from_standby=False, bootstrap_role="postgres", role_passwords=True,
        roles=(), databases=(),
    )  # fmt: skip
    (finding,) = PostgresDumpTarget("shop", dsn="")._obstacles(nothing, [])
    assert finding.severity == "blocker" and finding.text == "there is no database but templates"


async def test_templates_are_dumped_only_by_name(postgres17: TestServer) -> None:
    facts = await dump_of(postgres17, "template1").survey()
    assert [database.name for database in Contents.of(facts.details).databases] == ["template1"]
    assert facts.findings == ()


async def test_a_role_without_rights_is_refused_in_one_sentence(shop: TestServer) -> None:
    with pytest.raises(Refused, match='the role may not connect to database "We ird-ü"x"'):
        await backup(dump_of(shop, SHOP, dsn=shop.dsn("backup")), Archive(MemoryStore()))
    ask(shop, "create table secret (id int)")
    try:
        target = dump_of(shop, "postgres", dsn=shop.dsn("backup"))
        assert "without their passwords" in str((await target.survey()).findings)
        archive = Archive(MemoryStore())
        with pytest.raises(Refused, match=r"permission denied for table secret.*pg_read_all_data"):
            await backup(target, archive)
        assert [manifest async for manifest in archive.manifests("shop")] == []
    finally:
        ask(shop, "drop table secret")


async def test_a_role_that_may_not_read_passwords_still_makes_a_backup(postgres17: TestServer) -> None:
    ask(postgres17, "create role reader login password 'unreadable'")
    try:
        archive = Archive(MemoryStore())
        report = await backup(dump_of(postgres17, "postgres", dsn=postgres17.dsn("reader")), archive)
        assert "roles are backed up without their passwords" in str(report.findings)
        async with archive.open(report.manifest) as stored, stored.read("globals.sql") as chunks:
            script = b"".join([chunk async for chunk in chunks])
        assert b'ROLE "reader"' in script and b"PASSWORD" not in script
    finally:
        ask(postgres17, "drop role reader")


async def test_programs_older_than_the_server_are_refused(
    postgres17: TestServer, postgres_bin: Callable[[int], Path]
) -> None:
    with pytest.raises(
        Refused, match=r"is PostgreSQL 17, the pg_dump here is 16 and cannot read it \(name programs of"
    ):
        await backup(dump_of(postgres17, bin_dir=postgres_bin(16)), Archive(MemoryStore()))


async def test_newer_programs_work_and_say_what_it_costs(
    postgres16: TestServer, postgres_bin: Callable[[int], Path]
) -> None:
    report = await backup(dump_of(postgres16, bin_dir=postgres_bin(18)), Archive(MemoryStore()))
    assert Contents.of_manifest(report.manifest).pg_dump_major == 18
    assert "a dump by pg_dump 18 cannot be brought back to a server older than 17" in str(report.findings)


def test_programs_nobody_knows_yet_are_refused() -> None:
    ((severity, text, _),) = _misfits(19, 18)
    assert severity == "blocker" and "the pg_dump here is of PostgreSQL 19, this release knows 18" in text
    assert list(_misfits(18, 17)) == []


async def test_missing_programs_are_refused(postgres17: TestServer, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"pg_dump is not in .* \(install PostgreSQL's programs"):
        await backup(dump_of(postgres17, bin_dir=tmp_path), Archive(MemoryStore()))


async def test_a_wrong_password_is_refused_and_never_shown(new_server: NewServer) -> None:
    server = new_server(17)
    ask(server, "create role guarded login superuser password 'the right one'")
    hba = server.data / "pg_hba.conf"
    hba.write_text("host all guarded 127.0.0.1/32 scram-sha-256\n" + hba.read_text())
    ask(server, "select pg_reload_conf()")
    archive = Archive(MemoryStore())
    right = dump_of(server, dsn=server.dsn("guarded", password="'the right one'"))
    report = await backup(right, archive)
    wrong = dump_of(server, dsn=server.dsn("guarded", password="geheim"))
    for attempt in (
        backup(wrong, archive),
        PostgresServer(dsn=wrong.dsn, bin_dir=server.bin_dir).survey([report.manifest]),
    ):
        with pytest.raises(Refused, match=r"password authentication failed.*check the user, the password") as failed:
            await attempt
        assert "geheim" not in str(failed.value)
    # A password that changes between the survey and the dump: the program's own words.
    plan = plan_backup(await right.survey(), id="20260101T000000.000Z-000000", now=utc_now())
    ask(server, "alter role guarded password 'another'")
    with pytest.raises(ResilienceError, match="password authentication failed"):
        async with right.capture(plan):
            pass
    assert "geheim" not in repr(wrong) and "the right one" not in repr(right)


async def test_a_password_is_in_no_argument_no_message_and_no_record(shop: TestServer) -> None:
    store = MemoryStore()
    target = dump_of(shop, SHOP, dsn=shop.dsn(password="geheim"))
    async with locked(shop):
        running = asyncio.create_task(backup(target, Archive(store)))
        await until_blocked(shop, "lock table")
        seen = programs("pg_dump")
        assert len(seen) == 1
        assert "geheim" not in str(seen)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert not programs("pg_dump", "pg_dumpall")
    kept = b"".join([await whole(store, info.key) async for info in store.list("")])
    assert b"geheim" not in kept and b"geheim" not in repr(target).encode()


async def whole(store: MemoryStore, key: str) -> bytes:
    """Read an object."""
    async with store.get(key) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def test_a_cancelled_backup_leaves_no_program_and_no_backup(shop: TestServer) -> None:
    archive = Archive(MemoryStore())
    async with nothing_left_running():
        async with locked(shop):
            running = asyncio.create_task(backup(dump_of(shop, SHOP), archive))
            await until_blocked(shop, "lock table")
            began = time.monotonic()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert time.monotonic() - began < 5, "pg_dump was not stopped politely"
        assert not programs("pg_dump", "pg_dumpall")
        assert [manifest async for manifest in archive.manifests("shop")] == []
    assert (await backup(dump_of(shop, SHOP), archive)).manifest


async def test_a_server_that_dies_in_the_middle_fails_the_backup(new_server: NewServer) -> None:
    server = new_server(17)
    make_shop(server)
    archive = Archive(MemoryStore())
    async with locked(server):
        running = asyncio.create_task(backup(dump_of(server, SHOP), archive))
        await until_blocked(server, "lock table")
        server.stop()
        with pytest.raises(Unavailable, match=r"pg_dump failed with status 1: .*(terminat|closed)"):
            await running
    assert [manifest async for manifest in archive.manifests("shop")] == []
    assert not programs("pg_dump")


async def test_a_damaged_page_makes_the_backup_fail_as_corrupt(new_server: NewServer) -> None:
    server = new_server(17)
    ask(server, "create table broken as select generate_series(1, 5000) as id; checkpoint")
    file = server.data / ask(server, "select pg_relation_filepath('broken')")
    server.stop()
    data = bytearray(file.read_bytes())
    data[8192 + 4000] ^= 0xFF
    file.write_bytes(data)
    server.start()
    archive = Archive(MemoryStore())
    with pytest.raises(Corrupt, match=r"invalid page in block 1 .*keep older backups"):
        await backup(dump_of(server), archive)
    assert [manifest async for manifest in archive.manifests("shop")] == []


async def test_a_plan_for_another_server_is_refused(postgres16: TestServer, postgres17: TestServer) -> None:
    plan = plan_backup(await dump_of(postgres16).survey(), id="20260101T000000.000Z-000000", now=utc_now())
    with pytest.raises(Refused, match=r"the server is now of lineage \d+, the plan was made for \d+"):
        async with dump_of(postgres17).capture(plan):
            pass


async def test_a_killed_pg_dump_fails_the_backup(shop: TestServer) -> None:
    async with locked(shop):
        running = asyncio.create_task(backup(dump_of(shop, SHOP), Archive(MemoryStore())))
        await until_blocked(shop, "lock table")
        (pid,) = programs("pg_dump")
        os.kill(pid, 9)
        with pytest.raises(Unavailable, match="pg_dump failed with status -9: it said nothing"):
            await running


def test_databases_are_a_list_of_names() -> None:
    with pytest.raises(TypeError, match="not one name"):
        PostgresDumpTarget("shop", dsn="", databases="orders")
    with pytest.raises(ValueError, match="leave it out"):
        PostgresDumpTarget("shop", dsn="", databases=[])
    assert PostgresDumpTarget("shop", dsn="", databases=["b", "a", "b"]).databases == ("b", "a")


def database(name: str = "orders", **more: object) -> Database:
    """A database as a manifest tells of it."""
    details = {"oid": "16384", "encoding": "UTF8", "collate": "C.UTF-8", "ctype": "C", "provider": "c", **more}
    return Database(name=name, **details)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("orders", "orders-16384.dump"),
        ('We ird-ü"x', "we-ird-x-16384.dump"),
        ("../../etc", "etc-16384.dump"),
        ("日本", "database-16384.dump"),
        ("a" * 63, "a" * 40 + "-16384.dump"),
    ],
)
def test_the_name_of_a_part_can_be_part_of_a_key(name: str, part: str) -> None:
    assert part_name(database(name)) == part


async def test_a_manifest_that_does_not_say_what_it_holds_is_invalid(shop: TestServer) -> None:
    manifest: Manifest = (await backup(dump_of(shop, SHOP), Archive(MemoryStore()))).manifest
    with pytest.raises(ManifestInvalid, match="which databases it holds"):
        Contents.of_manifest(attrs.evolve(manifest, details={}))
    with pytest.raises(ManifestInvalid, match="which databases it holds"):
        Contents.of_manifest(attrs.evolve(manifest, parts=manifest.parts[:1]))
    with pytest.raises(ValueError, match="is a base, not a dump"):
        Contents.of_manifest(attrs.evolve(manifest, kind="base"))


def a_server(**more: object) -> Destination:
    """A destination as a survey found it: PostgreSQL 17 with nothing of the backup in it."""
    found = {
        "where": "db:5432", "version": "17.1", "version_num": 170001, "bootstrap_role": "postgres", "standby": False,
        "databases": {}, "unreachable": frozenset(), "templates": frozenset(), "present": {}, "roles": frozenset(),
        "tablespaces": frozenset(), "collations": {}, **more,
    }  # fmt: skip
    return Destination(**found)  # type: ignore[arg-type]


def told(here: Destination, *, pg_restore: int = 17, replace: bool = False, **more: object) -> list[str]:
    """What is said about a backup of PostgreSQL 17 and a destination."""
    backed_up = {
        "version": "17.1", "major": 17, "pg_dump_major": 17, "from_standby": False, "bootstrap_role": "postgres",
        "role_passwords": True, "roles": ("app", "postgres"), "databases": (database(collation_version="2.36"),),
        **more,
    }  # fmt: skip
    contents = Contents(**backed_up)  # type: ignore[arg-type]
    return [str(each) for each in destination.findings(contents, here, replace=replace, pg_restore=pg_restore)]


def test_nothing_is_said_about_a_server_that_fits() -> None:
    assert told(a_server()) == []
    assert told(a_server(version_num=180000), pg_restore=18) == []


def test_differing_collation_versions_are_a_warning() -> None:
    (text,) = told(a_server(collations={("c", "c.utf8"): "2.41"}))
    assert "warning" in text and "C.UTF-8 of version 2.36, this server has 2.41" in text
    assert told(a_server(collations={("c", "c.utf8"): "2.36"})) == []
    assert told(a_server(collations={("i", "c.utf8"): "153"})) == []


def test_what_a_role_in_both_is_called_is_said() -> None:
    (text,) = told(a_server(roles=frozenset({"postgres", "app", "other"})))
    assert text.endswith("roles that are there are left as they are: app")
