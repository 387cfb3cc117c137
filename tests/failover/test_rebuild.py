"""A fresh base for a member whose data is not all in its data directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import evolve, frozen

from resilience.model.errors import Refused, Unavailable
from resilience.model.failover import Divergence
from resilience.postgres import PostgresPromoter
from resilience.testing.machine import owned_folder
from resilience.testing.replication import TestGroup, running_group

FOUND = Divergence(member="b", primary="a", way="rebuild", why="a test says so")


@frozen
class Spread:
    """A primary `a` with a tablespace, its standby `b` with its own folders for that and for its WAL."""

    group: TestGroup
    theirs: Path
    own: Path
    wal: Path

    @property
    def links(self) -> set[Path]:
        data = self.group.servers["b"].data
        return {each.readlink() for each in (data / "pg_wal", *(data / "pg_tblspc").iterdir())}


@pytest.fixture
def spread(tmp_owned: Path, postgres_bin: Callable[[int], Path]) -> Iterator[Spread]:
    with running_group(tmp_owned / "group", postgres_bin(17), 0) as group:
        theirs, own = owned_folder(tmp_owned / "theirs=1"), owned_folder(tmp_owned / "own=1")
        wal = owned_folder(tmp_owned / "wal")
        group.primary.psql(f"create tablespace fast location '{theirs}'")
        group.primary.psql("create table t tablespace fast as select 1 as i")
        old, new = (str(each).replace("=", r"\=") for each in (theirs, own))
        group.add("b", more=["--tablespace-mapping", f"{old}={new}", "--waldir", str(wal)])
        group.caught_up()
        yield Spread(group, theirs, own, wal)


def promoter_of(group: TestGroup, *, bin_dir: Path | None = None) -> PostgresPromoter:
    members = group.members()
    if bin_dir is not None:
        members = tuple(evolve(each, server=evolve(each.server, bin_dir=bin_dir)) for each in members if each.server)
    return PostgresPromoter("orders", members=members, patience=20.0)


def dying(group: TestGroup) -> Path:
    """Return programs of which pg_basebackup makes its folders, writes something there, and dies."""
    folder = owned_folder(group.folder / "dying") / "bin"
    folder.mkdir()
    for path in (folder.parent, folder):
        path.chmod(0o755)
    for program in group.bin_dir.iterdir():
        (folder / program.name).symlink_to(program)
    for name in ("lib", "share"):
        (folder.parent / name).symlink_to(group.bin_dir.parent / name)
    real = folder / "pg_basebackup"
    real.unlink()
    real.write_text(f'#!/bin/sh\n{group.bin_dir}/pg_basebackup "$@" --no-clean && exit 1\nexit 2\n')
    real.chmod(0o755)
    return folder


async def test_a_tablespace_and_the_wal_go_where_the_member_had_them(spread: Spread) -> None:
    group = spread.group
    group.servers["b"].stop()
    group.primary.psql("insert into t values (2)")
    async with promoter_of(group) as promoter:
        await promoter.survey()
        await promoter.rejoin(FOUND, epoch=1)
    group.caught_up()
    assert spread.links == {spread.own, spread.wal}
    assert group.servers["b"].psql("select sum(i) from t") == "3"
    assert group.primary.psql("select sum(i) from t") == "3"


async def test_who_dies_half_way_is_followed_by_one_who_knows_the_folders(spread: Spread) -> None:
    group = spread.group
    group.servers["b"].stop()
    async with promoter_of(group, bin_dir=dying(group)) as promoter:
        await promoter.survey()
        with pytest.raises(Unavailable):
            await promoter.rejoin(FOUND, epoch=1)
    async with promoter_of(group) as promoter:
        await promoter.survey()
        found = await promoter.divergence("b", primary="a")
        assert found.way == "rebuild"
        await promoter.rejoin(found, epoch=1)
    group.caught_up()
    assert spread.links == {spread.own, spread.wal}


async def test_a_folder_that_holds_something_else_is_never_emptied(spread: Spread) -> None:
    group = spread.group
    group.servers["b"].stop()
    note = spread.own / "note"
    note.write_text("not PostgreSQL's")
    async with promoter_of(group) as promoter:
        await promoter.survey()
        with pytest.raises(Refused, match="holds note: that is not b's"):
            await promoter.rejoin(FOUND, epoch=1)
        assert note.exists()
        assert {each.name for each in spread.own.iterdir()} > {"note"}, "nothing was begun"
        note.unlink()
        note = spread.wal / "note"
        note.write_text("not PostgreSQL's")
        with pytest.raises(Refused, match="its WAL is to be in .* holds note: that is not b's"):
            await promoter.rejoin(FOUND, epoch=1)
        assert note.exists()
        assert len(list(spread.wal.iterdir())) > 1, "nothing was begun"
        note.unlink()
        other = owned_folder(spread.own.parent / "other")
        group.primary.psql(f"create tablespace other location '{other}'")
        with pytest.raises(Refused, match="which holds PG_17"):
            await promoter.rejoin(FOUND, epoch=1)
        group.primary.psql("create table u tablespace other as select 1 as i")


async def test_a_folder_that_another_server_on_this_machine_uses_is_never_emptied(spread: Spread) -> None:
    group = spread.group
    group.servers["b"].stop()
    (link,) = (group.servers["b"].data / "pg_tblspc").iterdir()
    other = spread.own.parent / "by another name"
    other.symlink_to(spread.theirs)
    link.unlink()
    link.symlink_to(other)
    async with promoter_of(group) as promoter:
        await promoter.survey()
        with pytest.raises(Refused, match="by another name, which holds PG_17"):
            await promoter.rejoin(FOUND, epoch=1)
    assert group.primary.psql("select sum(i) from t") == "1"


async def test_a_tablespace_that_is_no_more_leaves_what_else_is_in_its_folder(spread: Spread) -> None:
    group = spread.group
    group.servers["b"].stop()
    (spread.own / "note").write_text("not PostgreSQL's")
    group.primary.psql("drop table t")
    group.primary.psql("drop tablespace fast")
    async with promoter_of(group) as promoter:
        await promoter.survey()
        await promoter.rejoin(FOUND, epoch=1)
    group.caught_up()
    assert [each.name for each in spread.own.iterdir()] == ["note"]
    assert spread.links == {spread.wal}
