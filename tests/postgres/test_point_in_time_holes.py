"""What lies before a hole of the log can be restored, up to its very edge."""

from __future__ import annotations

from pathlib import Path

import pytest

from resilience import Archive, RecoveryTarget, restore
from resilience.errors import NotRecoverable
from resilience.postgres import PostgresDataDirectory
from resilience.stores import MemoryStore

from ..conftest import NewServer
from .archived import SETTINGS, archive_wal, back_up, insert, rows


async def test_up_to_the_edge_of_a_hole_everything_can_be_restored(new_server: NewServer, tmp_owned: Path) -> None:
    """The slot was lost in the middle of a segment, and what was archived goes on with a later one."""
    server = new_server(17, "--wal-segsize=1", settings={**SETTINGS, "fsync": "off"})
    archive = Archive(MemoryStore())
    server.psql("create table rows (id int); create table filler (text text)")
    manifest = await back_up(server, archive)
    insert(server, 0)
    last = insert(server, 1)
    edge = await archive_wal(server, archive, manifest)
    before = {info.key async for info in archive.store.list("postgresql/")}
    insert(server, 2)
    server.psql("insert into filler select repeat(i::text, 30) from generate_series(1, 30000) i")
    await archive_wal(server, archive, manifest)
    whole = sorted([i.key async for i in archive.store.list("postgresql/") if "/log/" in i.key and i.key not in before])
    await archive.store.delete(whole[0])

    with pytest.raises(NotRecoverable, match="goes on after a hole"):
        await restore(archive, "orders", into=PostgresDataDirectory(tmp_owned / "no", bin_dir=server.bin_dir))
    for name, until in (("time", last), ("lsn", RecoveryTarget.lsn(edge.text))):
        into = PostgresDataDirectory(tmp_owned / name, bin_dir=server.bin_dir)
        await restore(archive, "orders", into=into, until=until)
        assert await rows(into) == [0, 1]
        await into.discard()
