"""PostgresPromoter on real servers: the story of a failover on every major, and what goes wrong on the way."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Protocol

import asyncpg
import pytest
from attrs import evolve

from resilience.model.errors import Interrupted, NotFollowing, Refused
from resilience.model.failover import PromotionOrder
from resilience.postgres import LocalFencer, PostgresMember, PostgresPromoter
from resilience.postgres.processes import processes, send
from resilience.testing.cancellation import nothing_left_running
from resilience.testing.machine import owned_folder
from resilience.testing.replication import TestGroup, running_group

from ..conftest import MAJORS

PATIENCE = 20.0


class NewGroup(Protocol):
    """Makes a group of the test's own; see `new_group`."""

    def __call__(
        self, standbys: int = 1, *, major: int = 16, sync: str = "", settings: Mapping[str, str] | None = None
    ) -> TestGroup: ...


@pytest.fixture
def new_group(tmp_owned: Path, postgres_bin: Callable[[int], Path]) -> Iterator[NewGroup]:
    """`new_group(2, major=17, sync="ANY 1 (b, c)")` is a running primary `a` with standbys `b` and `c`."""
    with ExitStack() as stack:

        def made(
            standbys: int = 1, *, major: int = 16, sync: str = "", settings: Mapping[str, str] | None = None
        ) -> TestGroup:
            entered = running_group(
                tmp_owned / "group", postgres_bin(major), standbys, sync=sync, slots=True, settings=settings
            )
            return stack.enter_context(entered)

        yield made


def promoter_of(group: TestGroup, *members: PostgresMember, seconds: float = 2.0) -> PostgresPromoter:
    return PostgresPromoter("orders", members=members or group.members(), patience=PATIENCE, seconds=seconds)


@pytest.mark.parametrize("major", MAJORS)
@pytest.mark.parametrize("clean", [False, True], ids=["killed", "stopped in order"])
async def test_a_primary_is_replaced_and_comes_back(new_group: NewGroup, major: int, clean: bool) -> None:
    group = new_group(2, major=major, sync="ANY 1 (b, c)")
    group.primary.psql("create table t (i int); insert into t select generate_series(1, 1000)")
    fencer = LocalFencer(group.members())
    async with promoter_of(group) as promoter:
        assert (await promoter.survey()).primary == "a"
        if clean:
            await promoter.prepare("b", epoch=1)
        fence = await fencer.fence("a", epoch=1, clean=clean)
        settled = await promoter.settle(epoch=1)
        ends = {each.name: each.durable.offset for each in settled.members if each.durable}
        assert not clean or (fence.end is not None and ends["b"] > fence.end.offset)
        candidate, other = sorted(("b", "c"), key=lambda name: -ends[name])
        order = PromotionOrder(candidate=candidate, epoch=1, fences=(fence,), sync=(other,), sync_needed=1)
        promoted = await promoter.promote(order)
        assert promoted.forked_at is not None
        assert promoted.forked_at.offset == ends[candidate]
        await promoter.follow(other, primary=candidate, epoch=1)
        await promoter.verify(candidate, epoch=1)
        found = await promoter.divergence("a", primary=candidate)
        assert found.way == "follow"
        await promoter.rejoin(found, epoch=1)
        await fencer.lift("a", epoch=1)
        await promoter.require(candidate, members=("a", other), needed=2, epoch=1)
        await promoter.verify(candidate, epoch=1)
        facts = await promoter.survey()
    assert facts.primary == candidate
    assert {each.name for each in facts.members if each.receiving} == {"a", other}
    assert not facts.findings
    group.caught_up(source=candidate)
    assert [server.psql("select count(*) from t") for server in group.servers.values()] == ["1000"] * 3


@pytest.mark.parametrize("major", MAJORS)
async def test_both_sides_went_on_and_the_old_one_is_rewound_with_its_own_configuration(
    new_group: NewGroup, major: int
) -> None:
    group = new_group(1, major=major)
    port = group.primary.psql("show port")
    async with promoter_of(group) as promoter:
        await promoter.survey()
        await promoter.settle(epoch=1)
        group.primary.psql("create table lost (i int)")
        group.kill("a")
        fence = await LocalFencer(group.members()).fence("a", epoch=1)
        await promoter.promote(PromotionOrder(candidate="b", epoch=1, fences=(fence,)))
        group.servers["b"].psql("create table kept (i int)")
        with pytest.raises(RuntimeError, match="resilience_fenced"):
            group.restart("a")
        found = await promoter.divergence("a", primary="b")
        assert found.way == "rewind"
        assert found.lost
        await promoter.rejoin(found, epoch=1)
    group.caught_up(source="b")
    assert group.primary.psql("select pg_is_in_recovery(), to_regclass('lost') is null, 'kept'::regclass") == "t|t|kept"
    assert group.primary.psql("show port") == port
    assert group.primary.data.stat().st_mode & 0o777 == 0o700
    assert not group.primary.data.with_name("data.resilience").exists()


@pytest.mark.parametrize("crashed", [False, True], ids=["stopped", "crashed"])
async def test_one_whose_wal_is_gone_is_rebuilt_only_once_that_was_said(new_group: NewGroup, crashed: bool) -> None:
    group = new_group(1)
    async with promoter_of(group) as promoter:
        await promoter.survey()
        await promoter.settle(epoch=1)
        group.primary.psql("create table lost (i int)")
        group.primary.psql("select pg_switch_wal(); create table lost_too (i int)")
        group.primary.psql("checkpoint")
        (group.kill("a") if crashed else group.primary.stop())
        fence = await LocalFencer(group.members()).fence("a", epoch=1)
        await promoter.promote(PromotionOrder(candidate="b", epoch=1, fences=(fence,)))
        found = await promoter.divergence("a", primary="b")
        assert found.way == "rewind"
        without_wal(group, keep_last=crashed)
        with pytest.raises(Refused, match="cannot be rewound"):
            await promoter.rejoin(found, epoch=1)
        assert group.primary.data.stat().st_mode & 0o777 == 0o700, "nothing was begun"
        again = await promoter.divergence("a", primary="b")
        assert again.way == "rebuild"
        assert "cannot be rewound" in again.why
        await promoter.rejoin(again, epoch=1)
    group.caught_up(source="b")
    assert group.primary.psql("select to_regclass('lost') is null") == "t"


@pytest.mark.parametrize("crashed", [False, True], ids=["stopped", "crashed"])
async def test_wal_that_is_gone_comes_from_the_archive(new_group: NewGroup, crashed: bool) -> None:
    group = new_group(1)
    archive = owned_folder(group.folder / "archive")
    command = f"cp {archive}/%f %p"
    async with PostgresPromoter(
        "orders", members=group.members(), patience=PATIENCE, restore_command=command
    ) as promoter:
        await promoter.survey()
        await promoter.settle(epoch=1)
        group.primary.psql("create table lost (i int)")
        group.primary.psql("select pg_switch_wal(); create table lost_too (i int)")
        group.primary.psql("checkpoint")
        (group.kill("a") if crashed else group.primary.stop())
        fence = await LocalFencer(group.members()).fence("a", epoch=1)
        await promoter.promote(PromotionOrder(candidate="b", epoch=1, fences=(fence,)))
        without_wal(group, keep_last=crashed, to=archive)
        found = await promoter.divergence("a", primary="b")
        assert found.way == "rewind", found
        await promoter.rejoin(found, epoch=1)
    group.caught_up(source="b")
    assert group.primary.psql("select to_regclass('lost') is null") == "t"
    assert group.primary.psql("show restore_command") == command


def without_wal(group: TestGroup, *, keep_last: bool, to: Path | None = None) -> None:
    """Take the primary's WAL away, but for what it needs to recover."""
    segments = sorted((group.primary.data / "pg_wal").glob("0000*"))
    control = subprocess.run(
        [group.bin_dir / "pg_controldata", group.primary.data], check=True, capture_output=True, text=True
    ).stdout
    needed = re.search(r"REDO WAL file:\s+(\S+)", control)
    assert needed
    for segment in segments:
        if not keep_last or segment.name < needed[1]:
            if to is not None:
                shutil.copyfile(segment, to / segment.name)
                (to / segment.name).chmod(0o644)
            segment.unlink()


async def test_who_dies_while_rewinding_leaves_what_nobody_can_start_and_the_next_one_rebuilds(
    new_group: NewGroup,
) -> None:
    group = new_group(1)
    async with promoter_of(group) as promoter:
        await promoter.survey()
        await promoter.settle(epoch=1)
        group.primary.psql("create table lost (i int)")
        fence = await LocalFencer(group.members()).fence("a", epoch=1)
        await promoter.promote(PromotionOrder(candidate="b", epoch=1, fences=(fence,)))
        found = await promoter.divergence("a", primary="b")
        half = _half(group)
        members = [evolve(each, server=evolve(each.server, bin_dir=half)) for each in group.members() if each.server]
        async with promoter_of(group, *members) as dying:
            await dying.survey()
            with pytest.raises(Exception, match="pg_rewind failed"):
                await dying.rejoin(found, epoch=1)
        with pytest.raises(RuntimeError, match="invalid permissions"):
            group.restart("a")
        again = await promoter.divergence("a", primary="b")
        assert again.way == "rebuild"
        await promoter.rejoin(again, epoch=1)
    group.caught_up(source="b")


def _half(group: TestGroup) -> Path:
    """Return programs of which pg_rewind looks first, and then dies half-way, having replaced the configuration."""
    folder = group.folder / "half" / "bin"
    folder.mkdir(parents=True)
    folder.parent.chmod(0o755)
    folder.chmod(0o755)
    for program in group.bin_dir.iterdir():
        (folder / program.name).symlink_to(program)
    (folder.parent / "lib").symlink_to(group.bin_dir.parent / "lib")
    (folder.parent / "share").symlink_to(group.bin_dir.parent / "share")
    fake = folder / "pg_rewind"
    fake.unlink()
    data = group.primary.data
    half = f"rm -f {data}/postgresql.auto.conf {data}/resilience.fence"
    fake.write_text(f'#!/bin/sh\ncase "$*" in *--dry-run*) exit 0;; esac\n{half}\nexit 1\n')
    fake.chmod(0o755)
    return folder


async def test_a_candidate_that_dies_while_it_is_promoted_leaves_nobody_in_the_dark(new_group: NewGroup) -> None:
    group = new_group(2)
    async with promoter_of(group) as promoter:
        await promoter.survey()
        fence = await LocalFencer(group.members()).fence("a", epoch=1)
        await promoter.settle(epoch=1)
        # Stopped, it does not come to end its recovery; then it is gone.
        send([each for each in processes(group.servers["b"].data) if "startup" in _title(each.pid)], signal.SIGSTOP)
        promoting = asyncio.create_task(promoter.promote(PromotionOrder(candidate="b", epoch=1, fences=(fence,))))
        await asyncio.sleep(0.3)
        group.kill("b")
        with pytest.raises(Interrupted, match="told to become the primary"):
            await promoting
        promoted = await promoter.promote(PromotionOrder(candidate="c", epoch=2, fences=(evolve(fence, epoch=2),)))
        assert promoted.primary == "c"


def _title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")


async def test_a_member_that_hangs_costs_its_deadline_once_and_beside_the_others(new_group: NewGroup) -> None:
    group = new_group(2)
    async with promoter_of(group, seconds=1.0) as promoter:
        await promoter.survey()
        for name in ("a", "c"):
            send(processes(group.servers[name].data), signal.SIGSTOP)
        began = monotonic()
        facts = await promoter.survey()
        surveyed = monotonic() - began
        assert [each.name for each in facts.members if each.problem] == ["a", "c"]
        assert facts.primary == "a"
        assert [each.alive for each in facts.sightings] == [False, False]
        assert surveyed < 6.0
        await promoter.survey()
        await promoter.settle(epoch=1)
        assert monotonic() - began - surveyed < 2.0


async def test_while_a_standby_knocks_for_one_operator_another_looks_at_it(new_group: NewGroup) -> None:
    group = new_group(1)
    async with promoter_of(group, seconds=0.5) as promoter:
        await promoter.survey()
        send(processes(group.primary.data), signal.SIGSTOP)
        surveying = asyncio.create_task(promoter.survey())
        knocking = "select count(*) from pg_stat_activity where query like 'copy (select) to program%'"
        while await asyncio.to_thread(group.servers["b"].psql, f"{knocking} and pid <> pg_backend_pid()") == "0":
            assert not surveying.done()
        frozen = await promoter.settle(epoch=1)
        assert not surveying.done()
        standby = frozen.member("b")
        assert standby is not None
        assert standby.reachable
        assert [each.alive for each in (await surveying).sightings] == [False, False]


async def test_who_lets_nobody_in_is_alive_all_the_same(new_group: NewGroup) -> None:
    group = new_group(1)
    group.primary.psql("create role stranger login")
    (group.primary.data / "pg_hba.conf").write_text("host all postgres all trust\nhost replication all all trust\n")
    group.primary.psql("select pg_reload_conf()")
    a, b = group.members()
    stranger = evolve(a, dsn=group.primary.dsn("stranger", password="hunter2"))
    async with promoter_of(group, stranger, b) as promoter:
        facts = await promoter.survey()
    assert facts.primary == "a"
    here = next(each for each in facts.sightings if each.vantage == "here")
    assert here.alive
    assert "does not let us in" in here.text
    assert "hunter2" not in f"{facts}{facts!r}{facts.to_json()}{promoter!r}{stranger!r}"


async def test_names_of_standbys_that_are_gone_are_told_and_no_commit_waits_for_them(new_group: NewGroup) -> None:
    group = new_group(1, sync="ANY 1 (b)")
    group.servers["b"].psql("alter system set synchronous_standby_names = 'gone'")
    group.servers["b"].psql("select pg_reload_conf()")
    async with promoter_of(group) as promoter:
        await promoter.survey()
        fence = await LocalFencer(group.members()).fence("a", epoch=1)
        await promoter.settle(epoch=1)
        await promoter.promote(PromotionOrder(candidate="b", epoch=1, fences=(fence,)))
        await promoter.verify("b", epoch=1)
        assert group.servers["b"].psql("show synchronous_standby_names") == ""
        await promoter.require("b", members=("gone",), needed=1, epoch=1)
        facts = await promoter.survey()
    assert any("commits hang" in each.text for each in facts.findings)


async def test_two_that_take_writes_are_a_split_brain(new_group: NewGroup) -> None:
    group = new_group(1)
    group.servers["b"].psql("select pg_promote()")
    async with promoter_of(group) as promoter:
        facts = await promoter.survey()
        assert facts.primary == "b"
        assert [each.subject for each in facts.findings if each.severity == "blocker"] == ["two primaries"]
        with pytest.raises(NotFollowing, match="it takes writes itself"):
            await promoter.follow("a", primary="b", epoch=1)
        found = await promoter.divergence("a", primary="b")
        with pytest.raises(Refused, match="it takes writes"):
            await promoter.rejoin(found, epoch=1)


async def test_a_manager_that_fails_the_group_over_itself_is_named(new_group: NewGroup) -> None:
    group = new_group(0)
    connection = await asyncpg.connect(group.primary.uri(), server_settings={"application_name": "Patroni heartbeat"})
    try:
        async with promoter_of(group) as promoter:
            assert (await promoter.survey()).owner == "Patroni"
    finally:
        await connection.close()


async def test_a_standby_that_somebody_froze_and_died_is_seen_and_put_back_by_another(new_group: NewGroup) -> None:
    group = new_group(1)
    async with promoter_of(group) as first:
        await first.settle(epoch=7)
    async with promoter_of(group) as second:
        facts = await second.survey()
        (found,) = [each for each in facts.members if each.name == "b"]
        assert found.upstream == "a"
        assert found.details["frozen"]
        assert any("it is frozen" in each.text for each in found.findings)
        await second.follow("b", primary="a", epoch=7)
        assert not [each for member in (await second.survey()).members for each in member.findings]
    group.primary.psql("create table t (i int)")
    group.caught_up()


async def test_a_full_disk_ends_a_promotion_with_a_word(new_group: NewGroup) -> None:
    group = new_group(1)
    async with promoter_of(group) as promoter:
        await promoter.survey()
        fence = await LocalFencer(group.members()).fence("a", epoch=1)
        await promoter.settle(epoch=1)
        # Whoever can write no new file in pg_wal is in the place of one whose disk is full.
        wal = group.servers["b"].data / "pg_wal"
        mode = wal.stat().st_mode
        wal.chmod(0o500)
        try:
            with pytest.raises(Interrupted, match="told to become the primary"):
                await promoter.promote(PromotionOrder(candidate="b", epoch=1, fences=(fence,)))
        finally:
            wal.chmod(mode)
        group.restart("b")
        facts = await promoter.survey()
        assert [each.role for each in facts.members] == ["unknown", "standby"]
        promoted = await promoter.promote(PromotionOrder(candidate="b", epoch=2, fences=(evolve(fence, epoch=2),)))
        assert promoted.primary == "b"


async def test_a_promotion_that_was_begun_is_finished_though_cancelled(new_group: NewGroup) -> None:
    group = new_group(1)
    async with promoter_of(group) as promoter:
        await promoter.survey()
        fence = await LocalFencer(group.members()).fence("a", epoch=1)
        await promoter.settle(epoch=1)
        order = PromotionOrder(candidate="b", epoch=1, fences=(fence,))
        async with nothing_left_running():
            promoting = asyncio.create_task(promoter.promote(order))
            await asyncio.sleep(0.001)
            promoting.cancel()
            await asyncio.wait([promoting])
        assert promoting.cancelled()
        assert group.servers["b"].psql("select pg_is_in_recovery()") == "f"
