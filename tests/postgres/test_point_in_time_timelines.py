"""A restored server that is archived on makes a second timeline; afterwards both can be restored to."""

from __future__ import annotations

from pathlib import Path

from resilience import Archive, restore
from resilience.model.targets import RecoveryTarget
from resilience.postgres import PostgresDataDirectory, PostgresScratch
from resilience.stores import MemoryStore
from resilience.testing.postgres import TestServer

from ..conftest import NewServer
from .archived import SETTINGS, archive_wal, ask, back_up, insert, rows


def started(folder: Path, bin_dir: Path) -> TestServer:
    """Start a server on what was restored, with a port of its own."""
    server = TestServer(folder, bin_dir)
    with (folder / "data" / "postgresql.conf").open("a") as file:
        file.write(f"port = {server.port}\nunix_socket_directories = '{folder}'\n")
    server.start()
    return server


async def test_both_timelines_can_be_restored_to_after_a_restore_was_archived_on(
    new_server: NewServer, tmp_owned: Path
) -> None:
    source = new_server(17, settings=SETTINGS)
    archive = Archive(MemoryStore(), object_size=1 << 20)
    source.psql("create table rows (id int)")
    manifest = await back_up(source, archive)
    before = insert(source, 1)
    mistake = insert(source, 2)
    await archive_wal(source, archive, manifest)

    first = PostgresDataDirectory(tmp_owned / "data", bin_dir=source.bin_dir)
    await restore(archive, "orders", into=first, until=before)
    again = started(tmp_owned, source.bin_dir)
    try:
        source.stop()
        after = insert(again, 3)
        insert(again, 4)
        await archive_wal(again, archive, manifest)
    finally:
        again.kill()

    wanted = [
        (RecoveryTarget.time(before, timeline="2"), [1], "1"),
        (RecoveryTarget.time(mistake), [1, 2], "1"),
        (RecoveryTarget.time(after), [1, 3], "2"),
        (RecoveryTarget.latest(timeline="2"), [1, 3, 4], "2"),
        (RecoveryTarget.backup(manifest.id), None, "1"),
    ]
    for target, held, branch in wanted:
        into = PostgresScratch(bin_dir=source.bin_dir, within=tmp_owned)
        report = await restore(archive, "orders", into=into, until=target)
        try:
            assert await rows(into) == held, target
            assert report.reached.position.branch == branch, target
            # Timeline 2 is taken, whichever this one left.
            assert await ask(into, "select timeline_id from pg_control_checkpoint()") == 3
        finally:
            await into.discard()
