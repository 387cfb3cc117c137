"""Whatever goes wrong during a replay, nothing half-recovered can be started, and the error says what it was."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest
from attrs import define, field

from resilience import Archive, Conflict, Corrupt, Event, RecoveryTarget, restore
from resilience.errors import StorageFailed, Unreachable
from resilience.model.errors import LogGap
from resilience.postgres import PostgresDataDirectory
from resilience.postgres.lsn import parse_lsn
from resilience.postgres.mark import MARK
from resilience.primitives import ObjectStore
from resilience.stores import LocalStore, MemoryStore
from resilience.testing.cancellation import cancellations, nothing_left_running
from resilience.testing.faults import WatchedStore, change, flipped
from resilience.testing.postgres import TestServer, owned_folder, running_server, starts, unprivileged

from ..conftest import NewServer
from .archived import SETTINGS, archive_wal, back_up, insert, rows

CHECKOUT = Path(__file__).parents[2]
SMALL, SMALLEST = "--wal-segsize=1", 1 << 20
LOGGED = "/log/"


@define
class Source:
    """An archive of a server with small segments: five rows, each with some segments of WAL behind it."""

    server: TestServer
    folder: Path
    moments: list[datetime] = field(factory=list)

    async def happen(self) -> None:
        archive = Archive(LocalStore(self.folder), object_size=1 << 20)
        self.server.psql("create table rows (id int); create table filler (text text)")
        manifest = await back_up(self.server, archive)
        for row in range(5):
            self.moments.append(insert(self.server, row))
            self.server.psql("insert into filler select repeat(i::text, 30) from generate_series(1, 9000) i")
        await archive_wal(self.server, archive, manifest)

    async def archive(self, watched: Callable[[ObjectStore], ObjectStore] = lambda store: store) -> Archive:
        """Return a copy of the archive that may be damaged, or its store watched."""
        original, copy = LocalStore(self.folder), MemoryStore()
        async for info in original.list(""):
            async with original.get(info.key) as chunks:
                await copy.put(info.key, [chunk async for chunk in chunks])
        return Archive(watched(copy))


Tell = Callable[[], Awaitable[Source]]


@pytest.fixture(scope="module")
def told(session_folder: Path, postgres_bin: Callable[[int], Path], tmp_path_factory: pytest.TempPathFactory) -> Tell:
    """`await told()` is the module's source; its server is gone by then."""
    sources: list[Source] = []

    async def source() -> Source:
        if not sources:
            folder = owned_folder(Path(tempfile.mkdtemp(prefix="source-", dir=session_folder)))
            with running_server(folder, postgres_bin(17), SMALL, settings={**SETTINGS, "fsync": "off"}) as server:
                made = Source(server, tmp_path_factory.mktemp("archive"))
                await made.happen()
            sources.append(made)
        return sources[0]

    return source


async def segments(store: ObjectStore) -> list[str]:
    return [info.key async for info in store.list("postgresql/") if LOGGED in info.key]


async def refused_to_start_and_discarded(into: PostgresDataDirectory, bin_dir: Path) -> None:
    assert (into.path / MARK).exists()
    assert not starts(into.path, bin_dir)
    await PostgresDataDirectory(into.path, bin_dir=bin_dir).discard()
    assert list(into.path.iterdir()) == []


async def test_a_damaged_segment_stops_the_restore_and_is_named(told: Tell, tmp_owned: Path) -> None:
    source = await told()
    archive = await source.archive()
    keys = await segments(archive.store)
    assert len(keys) > 5
    victim = keys[len(keys) // 2]
    await change(archive.store, victim, flipped(-5))
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=source.server.bin_dir)
    with pytest.raises(Corrupt, match=victim.replace(".", r"\.")):
        await restore(archive, "orders", into=into, until=source.moments[4])
    await refused_to_start_and_discarded(into, source.server.bin_dir)
    # What lies before it can be had, although it is fetched ahead.
    await restore(archive, "orders", into=into, until=source.moments[0])
    assert await rows(into) == [0]


async def test_damage_that_is_only_read_ahead_of_the_target_does_not_stop_the_restore(
    new_server: NewServer, tmp_owned: Path
) -> None:
    server, archive = new_server(17, SMALL, settings=SETTINGS), Archive(MemoryStore(), object_size=1 << 20)
    server.psql("create table rows (id int)")
    manifest = await back_up(server, archive)
    server.psql("insert into rows values (1)")
    lsn = to_the_end_of_a_segment(server)
    server.psql("select pg_create_restore_point('here')")
    server.psql("insert into rows values (2)")
    for _ in range(3):
        server.psql("select pg_switch_wal(), pg_logical_emit_message(false, 'x', repeat('x', 200000))")
    await archive_wal(server, archive, manifest)
    (victim,) = [key for key in await segments(archive.store) if f"/{(lsn // SMALLEST + 1) * SMALLEST:016X}-" in key]
    await change(archive.store, victim, flipped(-5))
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=server.bin_dir)
    await restore(archive, "orders", into=into, until=RecoveryTarget.name("here"))
    assert await rows(into) == [1]


def to_the_end_of_a_segment(server: TestServer) -> int:
    """Write WAL until a few records only fit into the segment, and return the LSN."""
    while (
        room := SMALLEST - 6000 - (lsn := parse_lsn(server.psql("select pg_current_wal_insert_lsn()"))) % SMALLEST
    ) > 0:
        server.psql(f"select pg_logical_emit_message(false, 'x', repeat('x', {min(room, 100000)}))")
    return lsn


async def test_a_segment_that_goes_missing_stops_the_restore_and_is_named(told: Tell, tmp_owned: Path) -> None:
    source = await told()
    victims: list[str] = []

    async def lose(operation: str, key: str) -> None:
        if operation == "get" and "/base/" in key and not victims:
            keys = await segments(inner[0])
            victims.append(keys[len(keys) // 2])
            await inner[0].delete(victims[0])

    inner: list[ObjectStore] = []

    def watched(store: ObjectStore) -> ObjectStore:
        inner.append(store)
        return WatchedStore(store, lose)

    archive = await source.archive(watched)
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=source.server.bin_dir)
    with pytest.raises(LogGap) as failure:
        await restore(archive, "orders", into=into, until=source.moments[4])
    begins = int(victims[0].rpartition("/")[2].partition("-")[0], 16)
    assert f"{begins >> 32:X}/{begins & 0xFFFFFFFF:X}" in str(failure.value)
    await refused_to_start_and_discarded(into, source.server.bin_dir)


@pytest.mark.parametrize("failures", [6, None], ids=["for a while", "for good"])
async def test_a_store_that_is_away_is_waited_for_and_never_taken_for_the_end(
    told: Tell, tmp_owned: Path, failures: int | None
) -> None:
    source = await told()
    failed = 0

    async def fail(operation: str, key: str) -> None:
        nonlocal failed
        if unpacked and operation in ("get", "list") and (failures is None or failed < failures):
            failed += 1
            raise Unreachable("the network is away", operation=operation, subject=key)

    unpacked: list[bool] = []

    def watch(event: Event) -> None:
        if event.done >= 1 << 20:
            unpacked.append(True)

    async def settle(operation: str, key: str) -> None:
        if LOGGED in key or "/slices/" in key or "/history/" in key:
            await fail(operation, key)

    archive = await source.archive(lambda store: WatchedStore(store, settle))
    patience = 60.0 if failures else 0.3
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=source.server.bin_dir, patience=patience)
    restoring = restore(archive, "orders", into=into, until=source.moments[3], observer=watch)
    if failures:
        await restoring
        assert failed == failures
        assert await rows(into) == [0, 1, 2, 3]
    else:
        with pytest.raises(Unreachable, match="the network is away"):
            await restoring
        await refused_to_start_and_discarded(into, source.server.bin_dir)


async def test_killed_while_it_replays_it_cannot_start_and_can_be_discarded(told: Tell, tmp_owned: Path) -> None:
    source = await told()
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=source.server.bin_dir)
    command = [sys.executable, "-m", "tests.postgres.killed_replay", source.folder, into.path, source.server.bin_dir]
    done = subprocess.run([str(word) for word in command], cwd=CHECKOUT, check=False, timeout=120)
    assert done.returncode == -9
    for _ in range(500):
        if not (into.path / "postmaster.pid").exists():
            break
        with suppress(Conflict):  # it is still stopping, or it has stopped between the two looks
            await into.discard()
            return
        await asyncio.sleep(0.02)
    await refused_to_start_and_discarded(into, source.server.bin_dir)


async def test_a_replay_cancelled_anywhere_leaves_nothing_that_starts(told: Tell, tmp_owned: Path) -> None:
    source = await told()
    archive = await source.archive()
    async with nothing_left_running():
        for number, attempt in enumerate(cancellations(step=701)):
            into = PostgresDataDirectory(tmp_owned / str(number), bin_dir=source.server.bin_dir)
            completed = await attempt(restore(archive, "orders", into=into, until=source.moments[1]))
            done = starts(into.path, source.server.bin_dir)
            assert done or not completed
            assert not (done and (into.path / MARK).exists())
            await into.discard()
            assert not into.path.exists() or list(into.path.iterdir()) == []


@pytest.mark.skipif(unprivileged() is None, reason="only root can mount a small disk")
async def test_a_disk_that_fills_up_while_it_replays_says_so(told: Tell, tmp_owned: Path) -> None:
    source = await told()
    archive = await source.archive()
    manifest = await anext(archive.manifests("orders"))
    account, small = unprivileged(), owned_folder(tmp_owned / "small")
    assert account is not None
    room = f"size={manifest.size + (8 << 20)},mode=700,uid={account.uid},gid={account.gid}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", room, "tmpfs", str(small)], check=True)
    try:
        into = PostgresDataDirectory(small / "data", bin_dir=source.server.bin_dir)
        with pytest.raises(StorageFailed, match="No space left on device"):
            await restore(archive, "orders", into=into)
        await refused_to_start_and_discarded(into, source.server.bin_dir)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
