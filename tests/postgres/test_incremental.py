"""Incremental backups of real servers: what is in them, what comes back, and when there can be none."""

from __future__ import annotations

import asyncio
import io
import shutil
import stat
import tarfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from attrs import evolve

from resilience import Archive, Manifest, backup, verify
from resilience.concurrency import closing
from resilience.model.errors import Corrupt, NotIncremental, Refused
from resilience.model.findings import Level
from resilience.model.ids import new_id
from resilience.model.moments import utc_now
from resilience.planning.backup import plan_backup
from resilience.postgres import PostgresBackupValidator, PostgresDataDirectory
from resilience.postgres.mark import MARK, Mark
from resilience.postgres.places import places_for
from resilience.postgres.tools import Tools
from resilience.postgres.unpacking import Unpacking
from resilience.testing.archivers import read
from resilience.testing.cancellation import cancellations, nothing_left_running
from resilience.testing.faults import changed, flipped, gone
from resilience.testing.postgres import TestServer, owned_folder

from ..conftest import NewServer
from .chains import SUMMARIES, Chain, archive_in_memory, bring_back, chain_to, orders, value
from .conftest import ATTEMPTS, idle

INSTEAD = "a full backup instead of an incremental one: "
BOTH = pytest.mark.parametrize("major", [17, 18])


async def refused_and_replaced(server: TestServer, archive: Archive, reason: str) -> Manifest:
    """See that an incremental backup is refused for a reason, and that without insisting a full one is taken."""
    known = [each.id async for each in archive.manifests("orders")]
    with pytest.raises(NotIncremental, match=reason):
        await backup(orders(server), archive, incremental="required")
    assert [each.id async for each in archive.manifests("orders")] == known
    report = await backup(orders(server), archive, incremental=True)
    assert (report.manifest.kind, report.manifest.parent) == ("base", None)
    (said,) = [finding.text for finding in report.findings if finding.text.startswith(INSTEAD)]
    assert reason in said
    assert await idle(server)
    return report.manifest


async def summarized(server: TestServer, *, up_to: str) -> bool:
    """Wait until the summaries of a server reach an LSN."""
    reached = f"select summarized_lsn >= '{up_to}' from pg_get_wal_summarizer_state()"
    for _ in range(ATTEMPTS):
        if await asyncio.to_thread(server.psql, reached) == "t":
            return True
        await asyncio.sleep(0.01)
    return False


@BOTH
async def test_a_chain_comes_back_as_the_server_was(new_server: NewServer, tmp_owned: Path, major: int) -> None:
    server, archive = new_server(major, settings=SUMMARIES), archive_in_memory()
    places = {name: owned_folder(server.folder / name) for name in ("kept", "dropped", "late=r")}
    server.psql(f"create tablespace kept location '{places['kept']}'")
    server.psql(f"create tablespace dropped location '{places['dropped']}'")
    server.psql("create table same as select i, md5(i::text) from generate_series(1, 9000) i")
    server.psql("create table changing tablespace kept as select i, md5(i::text) from generate_series(1, 9000) i")
    server.psql("create table truncated as select i from generate_series(1, 5000) i")
    server.psql("create table gone tablespace dropped as select i from generate_series(1, 5000) i")
    server.psql("create unlogged table unlogged as select i from generate_series(1, 50) i")
    full = await backup(orders(server), archive, incremental=True)

    server.psql("update changing set md5 = 'first' where i % 100 = 0")
    server.psql("drop table gone")
    server.psql("drop tablespace dropped")
    server.psql("truncate truncated")
    server.psql("create database other")
    first = await backup(orders(server), archive, incremental=True)
    assert first.findings == ()

    server.psql(f"create tablespace later location '{places['late=r']}'")
    server.psql("create table made tablespace later as select i, md5(i::text) from generate_series(1, 700) i")
    server.psql("insert into truncated select i from generate_series(1, 3) i")
    server.psql("delete from changing where i % 7 = 0")
    server.psql("vacuum changing")
    server.psql("create table made as select 1", database="other")
    last = await backup(orders(server), archive, incremental="required")
    server.psql("delete from same")  # comes too late

    manifests = [each.manifest for each in (full, first, last)]
    assert [each.kind for each in manifests] == ["base", "incremental", "incremental"]
    assert [each.parent for each in manifests] == [None, manifests[0].id, manifests[1].id]
    assert await chain_to(archive, manifests[2]) == tuple(manifests)
    # A replay begins where the last of the chain begins, and that lies behind what it builds on.
    offsets = [offset for each in manifests for offset in (each.begins.offset, each.recovery_point.position.offset)]
    assert offsets == sorted(offsets)

    moved = {str(places["kept"]): tmp_owned / "ke=pt", str(places["late=r"]): tmp_owned / "later"}
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=server.bin_dir, tablespaces=moved)
    restored = await bring_back(archive, manifests, into)
    assert restored.reached.position.offset >= manifests[2].recovery_point.position.offset
    async with into.live() as live:
        for table in ("changing", "made", "truncated"):
            rows = f"select count(*) || ' ' || sum(hashtext(t::text)::bigint) from {table} t"
            assert await value(live.dsn, rows) == server.psql(rows)
        assert await value(live.dsn, "select count(*) from same") == "9000"
        assert await value(live.dsn, "select to_regclass('gone')") == "None"
        assert await value(live.dsn, "select count(*) from unlogged") == "0"
        query = "select string_agg(spcname || pg_tablespace_location(oid), ',' order by spcname) from pg_tablespace"
        assert await value(live.dsn, query) == (
            f"kept{tmp_owned / 'ke=pt'},later{tmp_owned / 'later'},pg_default,pg_global"
        )
    said = server.run("pg_checksums", "--check", "-D", str(into.path)).stdout
    assert "Bad checksums:  0" in said
    owner = tmp_owned.stat().st_uid
    for path in tmp_owned.rglob("*"):
        assert path.lstat().st_uid == owner, path
        assert not path.name.startswith("resilience"), path
        assert path.is_symlink() or stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    await into.discard()
    assert {path.name for path in tmp_owned.iterdir()} == {"data", "ke=pt", "later"}
    assert not any(list(path.iterdir()) for path in tmp_owned.iterdir())


async def test_pg_verifybackup_agrees_with_what_was_combined(chain: Chain, tmp_owned: Path) -> None:
    server, archive, made = chain
    folders = []
    for manifest in made:
        folders.append(folder := owned_folder(tmp_owned / manifest.id))
        async with archive.open(manifest) as stored:
            with tarfile.open(fileobj=io.BytesIO(await read(stored, "base.tar"))) as tar:
                tar.extractall(folder, filter="tar")
            (folder / "backup_manifest").write_bytes(await read(stored, "backup_manifest"))
    for path in tmp_owned.rglob("*"):
        shutil.chown(path, *(tmp_owned.stat()[4:6]))
    whole, data = tmp_owned / "whole", tmp_owned / "data"
    server.run("pg_combinebackup", "--no-sync", "-o", str(whole), *map(str, folders))
    assert server.run("pg_verifybackup", str(whole)).returncode == 0

    places = places_for(made[-1], data, tablespaces={}, owner=None)
    async with AsyncExitStack() as opened:
        stored_chain = [await opened.enter_async_context(archive.open(each)) for each in made]
        await Unpacking(places, Mark(data, places.account), Tools.at(server.bin_dir)).unpack(stored_chain)
    shutil.copy(whole / "backup_manifest", data)
    shutil.chown(data / "backup_manifest", *(tmp_owned.stat()[4:6]))
    assert server.run("pg_verifybackup", "-i", MARK, str(data)).returncode == 0


async def test_a_cluster_without_checksums_comes_back_from_a_chain(new_server: NewServer, tmp_owned: Path) -> None:
    server, archive = new_server(17, settings=SUMMARIES), archive_in_memory()
    server.stop()
    server.run("pg_checksums", "--disable", "--no-sync", "-D", str(server.data))
    server.start()
    server.psql("create table trips as select i from generate_series(1, 3000) i")
    full = (await backup(orders(server), archive)).manifest
    assert full.details["data_checksums"] == "off"
    server.psql("delete from trips where i > 2000")
    last = (await backup(orders(server), archive, incremental="required")).manifest
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=server.bin_dir)
    await bring_back(archive, [full, last], into)
    async with into.live() as live:
        assert await value(live.dsn, "select count(*) from trips") == "2000"

    # Enabling them rewrites every page, and the WAL knows nothing of it.
    server.stop()
    server.run("pg_checksums", "--enable", "--no-sync", "-D", str(server.data))
    server.start()
    await refused_and_replaced(server, archive, "data checksums have been switched on or off since then")


@BOTH
async def test_an_incremental_backup_is_small_and_says_what_it_is(new_server: NewServer, major: int) -> None:
    server, archive = new_server(major, settings=SUMMARIES), archive_in_memory()
    server.psql("create table large as select i, repeat(md5(i::text), 20) from generate_series(1, 30000) i")
    server.psql("vacuum freeze large")
    full = (await backup(orders(server), archive)).manifest
    server.psql("insert into large values (0, 'one more')")
    events: list[int | None] = []
    report = await backup(
        orders(server), archive, incremental="required", observer=lambda event: events.append(event.total)
    )
    manifest = report.manifest
    assert manifest.size < full.size / 2  # most of it is a whole segment of WAL
    assert manifest.stored < full.stored / 5
    assert set(events) == {None}, "nobody knows beforehand how much has changed"
    sizes = manifest.details["sizes"]
    assert isinstance(sizes, dict) and isinstance(sizes[""], int)
    assert sizes[""] > 20 << 20, "it is what the server says of the whole cluster"
    verdict = await verify(archive, manifest, validators=[PostgresBackupValidator()])
    assert (verdict.passed, verdict.level) == (True, Level.PARSES)
    keys = {stored.key for part in manifest.parts for stored in part.objects}
    assert all(key.startswith(f"postgresql/orders/incremental/{manifest.id}/") for key in keys)
    await archive.retire(manifest)


async def test_the_survey_says_what_later_plans_want_to_know(every_postgres: TestServer) -> None:
    facts = await orders(every_postgres).survey()
    assert facts.branch == "1"
    assert str(facts.details["next_xid"]).isdigit()
    assert str(facts.details["server_time"]).endswith("Z")
    if facts.details["major"] in (15, 16):
        assert "has no incremental backups, 17 and newer have" in facts.only_full
    else:
        assert facts.only_full.startswith("summarize_wal is off")


async def test_a_server_that_is_too_old_gives_a_full_backup_and_says_so(postgres16: TestServer) -> None:
    archive = archive_in_memory()
    await backup(orders(postgres16), archive)
    await refused_and_replaced(postgres16, archive, "has no incremental backups, 17 and newer have")


async def test_one_that_is_too_old_all_the_same_says_so_itself(postgres16: TestServer) -> None:
    archive = archive_in_memory()
    full = (await backup(orders(postgres16), archive)).manifest
    now = utc_now()
    facts = evolve(await orders(postgres16).survey(), only_full="")
    plan = plan_backup(facts, id=new_id(now), now=now, incremental="required", known=[full])
    async with archive.open(full) as stored:
        with pytest.raises(NotIncremental, match="cannot execute SQL commands in WAL sender"):
            async with orders(postgres16).capture(plan, parent=stored):
                pytest.fail("it began")
    assert await idle(postgres16)


async def test_without_summaries_there_are_full_backups_only(new_server: NewServer) -> None:
    server, archive = new_server(17), archive_in_memory()
    full = (await backup(orders(server), archive)).manifest
    await refused_and_replaced(server, archive, "summarize_wal is off")
    # Switched off between the survey and the backup, the server says so itself.
    now = utc_now()
    facts = evolve(await orders(server).survey(), only_full="")
    plan = plan_backup(facts, id=new_id(now), now=now, incremental="required", known=[full])
    async with archive.open(full) as stored:
        with pytest.raises(NotIncremental, match="unless WAL summarization is enabled"):
            async with orders(server).capture(plan, parent=stored):
                pytest.fail("it began")
    assert await idle(server)


async def test_summaries_that_are_gone_need_a_full_backup_once(new_server: NewServer) -> None:
    server, archive = new_server(18, settings=SUMMARIES), archive_in_memory()
    await backup(orders(server), archive)
    server.psql("checkpoint")
    # The summarizer works behind the checkpoints: what it writes after the files are gone would serve as well.
    assert await summarized(server, up_to=server.psql("select redo_lsn from pg_control_checkpoint()"))
    for path in (server.data / "pg_wal" / "summaries").iterdir():
        path.unlink()
    full = await refused_and_replaced(server, archive, "WAL summaries are required on timeline 1")
    report = await backup(orders(server), archive, incremental="required")
    assert report.manifest.parent == full.id


async def test_a_promoted_standby_needs_a_full_backup_once(
    new_server: NewServer, standby_of: Callable[[TestServer], TestServer]
) -> None:
    server, archive = new_server(17, settings=SUMMARIES), archive_in_memory()
    standby = standby_of(server)
    await backup(orders(server), archive)
    before = await orders(standby).survey()
    assert (before.branch, before.only_full) == ("1", "")
    server.stop()
    assert standby.psql("select pg_promote()") == "t"
    assert (await orders(standby).survey()).branch == "2"
    full = await refused_and_replaced(standby, archive, "its history is on branch 2 now, and no backup is")
    report = await backup(orders(standby), archive, incremental="required")
    assert report.manifest.parent == full.id


async def test_one_promoted_after_it_was_looked_at_says_so_itself(
    new_server: NewServer, standby_of: Callable[[TestServer], TestServer]
) -> None:
    server, archive = new_server(17, settings=SUMMARIES), archive_in_memory()
    standby = standby_of(server)
    full = (await backup(orders(server), archive)).manifest
    now = utc_now()
    plan = plan_backup(await orders(standby).survey(), id=new_id(now), now=now, incremental="required", known=[full])
    standby.psql("select pg_promote()")
    async with archive.open(full) as stored:
        with pytest.raises(NotIncremental, match="on timeline 2 now, the parent ended on 1"):
            async with orders(standby).capture(plan, parent=stored):
                pytest.fail("it began")


async def test_a_standby_gives_incremental_backups_too(
    new_server: NewServer, standby_of: Callable[[TestServer], TestServer], tmp_owned: Path
) -> None:
    server, archive = new_server(18, settings=SUMMARIES), archive_in_memory()
    standby = standby_of(server)
    server.psql("create table trips as select i from generate_series(1, 3000) i")
    full = (await backup(orders(server), archive)).manifest
    server.psql("insert into trips values (0)")
    server.psql("checkpoint")
    await replayed(server, standby)
    standby.psql("checkpoint")
    report = await backup(orders(standby), archive, incremental="required")
    assert report.manifest.parent == full.id
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=server.bin_dir)
    await bring_back(archive, [full, report.manifest], into)
    async with into.live() as live:
        assert await value(live.dsn, "select count(*) from trips") == "3001"
    # Without a restart point in between there is nothing that another one could begin at.
    await refused_and_replaced(standby, archive, "but this backup starts at")


async def replayed(server: TestServer, standby: TestServer) -> None:
    """Wait until a standby has replayed everything."""
    until = server.psql("select pg_current_wal_lsn()")
    deadline = time.monotonic() + 30
    while standby.psql(f"select pg_last_wal_replay_lsn() >= '{until}'") != "t":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_a_parent_of_another_server_is_of_no_use(new_server: NewServer, postgres17: TestServer) -> None:
    server, archive = new_server(17, settings=SUMMARIES), archive_in_memory()
    stranger = (await backup(orders(postgres17), archive)).manifest
    await refused_and_replaced(server, archive, "no backup is of its lineage")
    now = utc_now()
    plan = plan_backup(await orders(server).survey(), id=new_id(now), now=now)
    async with archive.open(stranger) as stored:
        with pytest.raises(NotIncremental, match=f"{stranger.id} cannot be built on: it is of lineage"):
            async with orders(server).capture(plan, parent=stored):
                pytest.fail("it began")
    with pytest.raises(Refused, match="the plan was made for 1"):
        async with orders(server).capture(evolve(plan, lineage="1")):
            pytest.fail("it began")


@pytest.mark.parametrize("how", [flipped(-1), gone], ids=["flipped", "gone"])
async def test_a_parent_whose_manifest_is_damaged_is_not_built_on(
    chain: Chain, how: Callable[[bytes], bytes | None]
) -> None:
    server, archive, made = chain
    key = made[-1].part("backup_manifest").objects[-1].key
    async with changed(archive.store, key, how):
        full = await refused_and_replaced(server, archive, f"{made[-1].id} cannot be built on: its manifest is damaged")
        await archive.retire(full)


async def test_bytes_that_are_not_what_the_server_sent_are_found_in_an_incremental_backup_too(
    chain: Chain,
) -> None:
    _, archive, made = chain
    key = made[1].part("base.tar").objects[0].key
    async with changed(archive.store, key, flipped(1000)):
        verdict = await verify(archive, made[1], validators=[PostgresBackupValidator()])
        assert not verdict.passed and key in str(verdict)
        with pytest.raises(Corrupt, match=key):
            async with archive.open(made[1]) as stored:
                await read(stored, "base.tar")


async def test_an_incremental_capture_can_be_cancelled_anywhere(
    chain: Chain,
) -> None:
    server, archive, made = chain

    async def capture() -> None:
        now = utc_now()
        plan = plan_backup(await orders(server).survey(), id=new_id(now), now=now, incremental="required", known=made)
        async with archive.open(made[-1]) as stored, orders(server).capture(plan, parent=stored) as capturing:
            async with closing(capturing.parts()) as parts:
                async for part in parts:
                    async for _ in part.chunks:
                        pass
            await capturing.finish()

    async with nothing_left_running():
        for attempt in cancellations(step=9):
            await attempt(capture())
            assert await idle(server)
