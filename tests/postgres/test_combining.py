"""A chain on its way back: whatever happens meanwhile, nothing can be started before all of it is there."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from attrs import evolve

from resilience import Archive, Manifest, backup, plan_restore, restore, verify
from resilience.model.errors import (
    ChecksumMismatch,
    Corrupt,
    DiskTooSmall,
    NotRecoverable,
    Refused,
    StorageFailed,
)
from resilience.model.findings import Level
from resilience.model.targets import RecoveryTarget
from resilience.postgres import PostgresBackupValidator, PostgresDataDirectory, PostgresScratch
from resilience.postgres.combining import Combination, disarmed
from resilience.postgres.mark import MARK, unfinished
from resilience.postgres.places import COMBINING, places_for
from resilience.stores import LocalStore
from resilience.testing.archivers import read
from resilience.testing.cancellation import cancellations, nothing_left_running
from resilience.testing.faults import changed, flipped, gone
from resilience.testing.postgres import TestServer, owned_folder, starts, unprivileged

from ..conftest import NewServer
from .archived import archive_wal
from .chains import SUMMARIES, Chain, archive_in_memory, bring_back, nothing_starts, orders, value
from .test_base_backup_wal import rewritten, store_parts
from .test_restore_killed import killed

ROWS = "select count(*) from trips where text ~ 'round'"
ONLY_ROOT = pytest.mark.skipif(unprivileged() is None, reason="only root can mount a small disk")


def destination(chain: Chain, folder: Path) -> PostgresDataDirectory:
    return PostgresDataDirectory(folder / "data", bin_dir=chain[0].bin_dir)


async def check(into: PostgresDataDirectory) -> None:
    """See that what the last backup of the shared chain holds is there."""
    async with into.live() as live:
        assert await value(live.dsn, ROWS) == "20"


async def copied(archive: Archive, into: Archive) -> Archive:
    """Copy an archive, so that it can be spoilt, or read by another process."""
    async for info in archive.store.list(""):
        async with archive.store.get(info.key) as chunks:
            await into.store.put(info.key, [b"".join([chunk async for chunk in chunks])])
    return into


@contextmanager
def disk(folder: Path, size: int) -> Iterator[Path]:
    """Mount a disk of so many bytes at a folder."""
    owned_folder(folder)
    account = unprivileged()
    assert account is not None
    own = f"uid={account.uid},gid={account.gid},mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},{own}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def estimate(manifest: Manifest, oid: str) -> int:
    """What the server said a tablespace has."""
    sizes = manifest.details["sizes"]
    assert isinstance(sizes, dict)
    size = sizes[oid]
    assert isinstance(size, int)
    return size


def programs(real: Path, folder: Path, **scripts: str) -> Path:
    """Make a folder with the programs of another, some of them replaced by scripts, or left out where that is empty."""
    bin_dir = folder / "postgres" / "bin"
    bin_dir.mkdir(parents=True)
    folder.chmod(0o711)
    for name in ("lib", "share"):
        (bin_dir.parent / name).symlink_to(real.parent / name)
    for program in real.iterdir():
        if program.name not in scripts:
            (bin_dir / program.name).symlink_to(program)
    for name, script in scripts.items():
        if script:
            (bin_dir / name).write_text(f"#!/bin/sh\n{script}\n")
            (bin_dir / name).chmod(0o755)
    return bin_dir


def second(made: Sequence[Manifest]) -> RecoveryTarget:
    return RecoveryTarget.backup(made[1].id)


async def test_restore_finds_the_chain_itself(chain: Chain, tmp_owned: Path) -> None:
    _, archive, made = chain
    into = destination(chain, tmp_owned)
    report = await restore(archive, "orders", into=into)
    assert report.chain == tuple(each.id for each in made)
    await check(into)
    middle = await plan_restore(archive, "orders", into=destination(chain, tmp_owned / "other"), until=second(made))
    assert middle.chain == tuple(each.id for each in made[:2])
    assert (middle.read, middle.written) == (made[0].stored + made[1].stored, made[0].size + made[1].size)


async def test_the_log_is_replayed_from_where_the_last_of_the_chain_ends(
    new_server: NewServer, tmp_owned: Path
) -> None:
    settings = {**SUMMARIES, "wal_keep_size": "64MB"}
    server, archive = new_server(17, "--allow-group-access", settings=settings), archive_in_memory()
    server.psql("create table trips (i int)")
    made = []
    for number in range(2):
        server.psql(f"insert into trips values ({number})")
        made.append((await backup(orders(server), archive, incremental=True)).manifest)
    server.psql("insert into trips values (2)")
    there = server.psql("select pg_current_wal_insert_lsn()")
    server.psql("insert into trips values (3)")
    await archive_wal(server, archive, made[1])
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=server.bin_dir)
    report = await restore(archive, "orders", into=into, until=RecoveryTarget.lsn(there))
    assert report.chain == (made[0].id, made[1].id)
    async with into.live() as live:
        assert await value(live.dsn, "select string_agg(i::text, ' ' order by i) from trips") == "0 1 2"
    # And the modes of files and folders are those of a cluster with group access.
    for path in (into.path, into.path / "base"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o750
    for path in (into.path / "PG_VERSION", into.path / "global" / "pg_control", into.path / "global" / "1262"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


async def test_a_scratch_server_starts_on_an_incremental_backup(chain: Chain, tmp_owned: Path) -> None:
    server, archive, made = chain
    scratch = PostgresScratch(bin_dir=server.bin_dir, within=tmp_owned)
    verdict = await verify(archive, made[2], validators=[PostgresBackupValidator()], scratch=scratch)
    assert (verdict.passed, verdict.level) == (True, Level.STARTS)
    assert list(tmp_owned.iterdir()) == []


async def test_a_chain_with_a_backup_missing_is_refused_and_fails_its_verdict(chain: Chain, tmp_owned: Path) -> None:
    _, archive, made = chain
    key = f"postgresql/orders/manifests/{made[1].id}.json"
    into = destination(chain, tmp_owned)
    async with changed(archive.store, key, gone):
        with pytest.raises(NotRecoverable, match=f"{made[2].id} builds on {made[1].id}, which the archive does not"):
            await restore(archive, "orders", into=into, until=RecoveryTarget.backup(made[2].id))
        verdict = await verify(archive, made[2])
        assert (verdict.passed, verdict.level) == (False, None)
        assert made[1].id in str(verdict)
    assert not into.path.exists()
    # A parent that is listed but has lost an object fails at the lowest level.
    key = made[0].part("base.tar").objects[0].key
    async with changed(archive.store, key, gone):
        verdict = await verify(archive, made[2])
        assert (verdict.passed, verdict.level) == (False, None)
        assert key in str(verdict)


async def test_an_incremental_backup_is_not_unpacked_without_what_it_builds_on(chain: Chain, tmp_owned: Path) -> None:
    _, archive, made = chain
    into = destination(chain, tmp_owned)
    for some in (made[2:], made[1:], [made[0], made[2]], made[::-1]):
        with pytest.raises(Refused, match=r"builds on .* here it would follow|builds on nothing"):
            await bring_back(archive, some, into)
        assert not into.path.exists()


@pytest.mark.parametrize("number", [0, 1, 2], ids=["full", "middle", "last"])
async def test_damage_anywhere_in_a_chain_is_named_and_leaves_nothing_that_starts(
    chain: Chain, tmp_owned: Path, number: int
) -> None:
    server, archive, made = chain
    into = destination(chain, tmp_owned)
    for part, how in [("base.tar", flipped(-1)), ("base.tar", gone), ("backup_manifest", flipped(-1))][number:]:
        key = made[number].part(part).objects[-1].key
        async with changed(archive.store, key, how):
            with pytest.raises(Corrupt, match=key):
                await restore(archive, "orders", into=into)
            assert await nothing_starts(into.path, server.bin_dir)
        await into.discard()
        assert list(into.path.iterdir()) == []


async def test_a_file_that_is_not_what_the_server_sent_is_found_while_it_is_unpacked(
    chain: Chain, tmp_owned: Path
) -> None:
    server, archive, made = chain
    spoilt = await copied(archive, archive_in_memory())
    async with spoilt.open(made[1]) as stored:
        parts = {part.name: await read(stored, part.name) for part in made[1].parts}
    # Whole as far as the archive can tell: only the server's own checksums know better.
    parts["base.tar"] = rewritten(
        parts["base.tar"], lambda member, body: body[:-1] + b"?" if member.name.endswith("PG_VERSION") else body
    )
    await spoilt.store.delete(f"postgresql/orders/manifests/{made[1].id}.json")
    async for info in spoilt.store.list(f"postgresql/orders/incremental/{made[1].id}/"):
        await spoilt.store.delete(info.key)
    for moment in ("started", "ended"):
        await spoilt.store.delete(f"postgresql/orders/runs/{made[1].id}/{moment}.json")
    middle = await store_parts(spoilt, made[1], parts)
    into = destination(chain, tmp_owned)
    with pytest.raises(ChecksumMismatch, match=f"{made[1].id}: .*PG_VERSION has another checksum"):
        await bring_back(spoilt, [made[0], middle, made[2]], into)
    assert await nothing_starts(into.path, server.bin_dir)


async def test_a_chain_needs_room_for_its_backups_and_what_they_become(
    chain: Chain, tmp_owned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, made = chain
    tars = [manifest.part("base.tar").size for manifest in made]
    said = estimate(made[2], "")
    into = destination(chain, tmp_owned)
    facts = await into.survey(made)
    assert facts.needed == sum(tars) + said + tars[2]
    # Of a backup that does not say how large the cluster was, no more can be made than all of it together.
    silent = [*made[:2], evolve(made[2], details={**made[2].details, "sizes": None})]
    assert (await into.survey(silent)).needed == 2 * sum(tars)

    class Small:
        f_bavail, f_frsize = sum(tars) + said, 1

    monkeypatch.setattr(os, "statvfs", lambda _: Small)
    with pytest.raises(DiskTooSmall):
        await restore(chain[1], "orders", into=into)
    assert not into.path.exists()


@ONLY_ROOT
@pytest.mark.parametrize("more", [-(8 << 20), 4 << 20], ids=["while unpacking", "while combining"])
async def test_a_disk_that_fills_up_says_so_and_leaves_nothing_that_starts(
    chain: Chain, tmp_owned: Path, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    server, archive, made = chain
    # WAL is unpacked of the last one only.
    inputs = sum(manifest.part("base.tar").size for manifest in made) - 2 * (16 << 20)
    monkeypatch.setattr("resilience.postgres.places.Places.tightest", lambda *_: (0, 0))
    monkeypatch.setattr(Combination, "_way", lambda *_: [])
    with disk(tmp_owned / "small", inputs + more) as small:
        into = destination(chain, small)
        with pytest.raises(StorageFailed, match=r"No space left on device|wrote \d+ of \d+ .*make room"):
            await restore(archive, "orders", into=into)
        assert await nothing_starts(into.path, server.bin_dir)
        await into.discard()
        assert list(into.path.iterdir()) == []


async def test_without_pg_combinebackup_a_chain_is_refused_beforehand(chain: Chain, tmp_owned: Path) -> None:
    server, archive, made = chain
    bin_dir = programs(server.bin_dir, tmp_owned, pg_combinebackup="")
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=bin_dir)
    with pytest.raises(Refused, match="pg_combinebackup is not in"):
        await restore(archive, "orders", into=into)
    assert not into.path.exists()
    await restore(archive, "orders", into=into, until=RecoveryTarget.backup(made[0].id))
    assert starts(into.path, server.bin_dir)


async def test_a_pg_combinebackup_that_fails_is_quoted(chain: Chain, tmp_owned: Path) -> None:
    server, archive, _ = chain
    bin_dir = programs(server.bin_dir, tmp_owned, pg_combinebackup="echo the chain is bent >&2; exit 3")
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=bin_dir)
    with pytest.raises(Corrupt, match="pg_combinebackup failed with status 3: the chain is bent"):
        await restore(archive, "orders", into=into)
    assert not starts(into.path, server.bin_dir)


async def test_nothing_in_the_folder_can_be_started_while_a_chain_is_combined(chain: Chain, tmp_owned: Path) -> None:
    server, archive, _ = chain
    there = tmp_owned / "combined"
    # The output is complete, all inputs are still there: this is when most could be started.
    script = f'"{server.bin_dir}/pg_combinebackup" "$@" && touch "{there}" && exec sleep 60'
    into = PostgresDataDirectory(
        tmp_owned / "data", bin_dir=programs(server.bin_dir, tmp_owned, pg_combinebackup=script)
    )
    async with nothing_left_running():
        restoring = asyncio.create_task(restore(archive, "orders", into=into))
        while not there.exists():
            assert not restoring.done(), await restoring
            await asyncio.sleep(0.02)
        nested = into.path / COMBINING
        assert {path.name for path in nested.iterdir()} == {"0", "1", "2", "output"}
        for name in ("0", "output"):
            # All that a server needs is there, and the server knows better.
            assert (nested / name / "base" / "1" / "PG_VERSION").exists()
            said = server.run("postgres", "-D", str(nested / name), check=False)
            assert said.returncode != 0 and "incompatible with server" in said.stderr
        assert await nothing_starts(into.path, server.bin_dir)
        restoring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await restoring
    assert not starts(into.path, server.bin_dir)
    await into.discard()
    assert list(into.path.iterdir()) == []
    again = destination(chain, tmp_owned)
    await restore(archive, "orders", into=again)
    await check(again)


async def test_a_chain_cancelled_anywhere_leaves_nothing_that_starts(chain: Chain, tmp_owned: Path) -> None:
    server, archive, _ = chain
    for number, attempt in enumerate(cancellations(step=120)):
        into = destination(chain, owned_folder(tmp_owned / str(number)))
        completed = await attempt(restore(archive, "orders", into=into))
        done = await asyncio.to_thread(starts, into.path, server.bin_dir)
        assert done or not completed
        assert not (done and (into.path / MARK).exists())
        if not done:
            assert await nothing_starts(into.path, server.bin_dir)
        await into.discard()
        assert not into.path.exists() or list(into.path.iterdir()) == []


async def test_a_chain_killed_at_any_stage_leaves_nothing_that_starts(
    chain: Chain, tmp_owned: Path, tmp_path: Path
) -> None:
    server, archive, _ = chain
    here = await copied(archive, Archive(LocalStore(tmp_path / "archive")))
    calls = int(killed(tmp_path / "archive", server.bin_dir, tmp_owned, [0]))
    # While backups are unpacked, while they are removed, while what was combined takes its place, and shortly after.
    numbers = [calls // 4, calls * 3 // 4, calls - 71, calls - 56]
    killed(tmp_path / "archive", server.bin_dir, tmp_owned, numbers)
    for number in numbers:
        into = PostgresDataDirectory(tmp_owned / str(number), bin_dir=server.bin_dir)
        assert unfinished(into.path)
        assert await nothing_starts(into.path, server.bin_dir)
        await into.discard()
        assert list(into.path.iterdir()) == []
    await restore(here, "orders", into=into)
    await check(into)


@ONLY_ROOT
async def test_tablespaces_on_other_disks_and_inside_the_data_directory_come_back(
    new_server: NewServer, tmp_owned: Path
) -> None:
    server, archive = new_server(18, settings={**SUMMARIES, "allow_in_place_tablespaces": "on"}), archive_in_memory()
    where = owned_folder(server.folder / "space")
    server.psql(f"create tablespace apart location '{where}'")
    server.psql("create tablespace inside location ''")
    for space in ("apart", "inside"):
        server.psql(
            f"create table {space} tablespace {space} as select i, md5(i::text) from generate_series(1, 9000) i"
        )
    made: list[Manifest] = []
    for number in range(2):
        made.append((await backup(orders(server), archive, incremental=True)).manifest)
        server.psql(f"update apart set md5 = '{number}' where i = 1")
        server.psql(f"update inside set md5 = '{number}' where i = 1")
    with disk(tmp_owned / "disk", 64 << 20) as small:
        into = PostgresDataDirectory(
            tmp_owned / "data", bin_dir=server.bin_dir, tablespaces={str(where): small / "space"}
        )
        oid = next(
            oid
            for oid, location in places_for(
                made[1], into.path, tablespaces=into.tablespaces, owner=None
            ).locations.items()
            if location == small / "space"
        )
        facts = await into.survey(made)
        tars = sum(each.part(f"{oid}.tar").size for each in made)
        assert facts.needed == tars + min(estimate(made[1], oid) + made[1].part(f"{oid}.tar").size, tars)
        await restore(archive, "orders", into=into)
        async with into.live() as live:
            for space in ("apart", "inside"):
                query = f"select count(*) || ' ' || (select md5 from {space} where i = 1) from {space}"
                assert await value(live.dsn, query) == "9000 0"
        assert [path.name for path in (small / "space").iterdir()] == [f"PG_18_{catalog_version(server)}"]
        assert not (into.path / COMBINING).exists()
        await into.discard()
        assert list((small / "space").iterdir()) == []


def catalog_version(server: TestServer) -> str:
    return server.psql("select catalog_version_no from pg_control_system()")


def test_a_pg_control_that_is_damaged_is_not_disarmed() -> None:
    with pytest.raises(Corrupt, match="global/pg_control does not match its own checksum"):
        disarmed(b"x" * 8192)
