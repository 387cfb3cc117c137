"""A fence is proven of the server that the member's dsn reaches: a data directory of another one proves nothing."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import evolve

from resilience.fencers.mark import FENCE
from resilience.model.errors import FencingUnproven
from resilience.postgres import DroppingProxy, LocalFencer, LocalServer, PostgresMember, PostgresPromoter
from resilience.postgres.processes import processes, send
from resilience.testing.replication import TestGroup, running_group


@pytest.fixture
def group(tmp_owned: Path, postgres_bin: Callable[[int], Path]) -> Iterator[TestGroup]:
    with running_group(tmp_owned / "group", postgres_bin(17), 1) as made:
        yield made


def copied(group: TestGroup, *, without: tuple[str, ...]) -> LocalServer:
    """As after a move of the data to another disk, or a restore: the old folder is still there."""
    old = group.folder / "old"
    group.primary.psql("checkpoint")
    subprocess.run(["cp", "-a", str(group.primary.data), str(old)], check=True)
    for name in without:
        (old / name).unlink()
    return LocalServer(old, bin_dir=group.bin_dir)


def with_server(group: TestGroup, server: LocalServer) -> list[PostgresMember]:
    a, b = group.members()
    return [evolve(a, server=server), b]


async def test_a_directory_of_another_server_is_found_in_peace_and_fences_nobody(group: TestGroup) -> None:
    members = with_server(group, copied(group, without=("postmaster.pid", "postmaster.opts")))
    async with PostgresPromoter("orders", members=members) as promoter:
        (found,) = (await promoter.survey()).findings
        assert (found.severity, found.subject) == ("blocker", "a")
        assert "no process does" in found.text
        send(processes(group.primary.data), signal.SIGSTOP)  # from now on it cannot say who it is
        assert found in (await promoter.survey()).findings
    with pytest.raises(FencingUnproven, match=r"no process does .*nothing was touched"):
        await LocalFencer(members).fence("a", epoch=1)
    assert not (group.folder / "old" / FENCE).exists()
    send(processes(group.primary.data), signal.SIGCONT)


@pytest.mark.parametrize(
    ("without", "why"),
    [(("postmaster.pid", "postmaster.opts"), "ever started"), (("postmaster.pid",), "yet a connection to .* is taken")],
)
async def test_a_directory_of_another_server_proves_nothing_of_one_that_hangs(
    group: TestGroup, without: tuple[str, ...], why: str
) -> None:
    members = with_server(group, copied(group, without=without))
    send(processes(group.primary.data), signal.SIGSTOP)
    with pytest.raises(FencingUnproven, match=why):
        await LocalFencer(members).fence("a", epoch=1)
    send(processes(group.primary.data), signal.SIGCONT)


async def test_two_directories_that_were_mixed_up_end_nobody(group: TestGroup) -> None:
    a, b = group.members()
    mixed = [evolve(a, server=b.server), evolve(b, server=a.server)]
    async with PostgresPromoter("orders", members=mixed) as promoter:
        facts = await promoter.survey()
    assert [each.subject for each in facts.findings] == ["a"]
    assert any("another server" in each.text for member in facts.members for each in member.findings)
    for fresh in (mixed, [evolve(each, server=evolve(each.server)) for each in mixed if each.server]):
        with pytest.raises(FencingUnproven, match="another server"):
            await LocalFencer(fresh).fence("a", epoch=1)
    assert all(processes(server.data) for server in group.servers.values())


async def test_a_directory_of_another_cluster_proves_nothing_of_one_that_is_dead(group: TestGroup) -> None:
    server = copied(group, without=("postmaster.pid",))
    with (server.data / "global" / "pg_control").open("r+b") as file:
        file.write(b"\1\2\3\4\5\6\7\1")
    group.kill("a")
    with pytest.raises(FencingUnproven, match="is not of cluster"):
        await LocalFencer(with_server(group, server)).fence("a", epoch=1)


async def test_behind_a_network_that_is_cut_what_answered_last_is_who_it_is(group: TestGroup) -> None:
    async with DroppingProxy("127.0.0.1", group.primary.port).running() as network:
        a, b = group.members()
        far = evolve(a, dsn=f"host=127.0.0.1 port={network.listens} user=postgres dbname=postgres")
        fresh = evolve(far, server=LocalServer(group.primary.data, bin_dir=group.bin_dir))
        async with PostgresPromoter("orders", members=[far, b]) as promoter:
            assert (await promoter.survey()).findings == ()
        await network.cut()
        with pytest.raises(FencingUnproven, match="listened on port .* the dsn names"):
            await LocalFencer([fresh, b]).fence("a", epoch=1)
        assert processes(group.primary.data)
        assert (await LocalFencer([far, b]).fence("a", epoch=1)).kind == "proven"


async def test_one_that_does_not_let_us_in_is_fenced_all_the_same(group: TestGroup) -> None:
    a, b = group.members()
    locked = evolve(a, dsn=f"host=127.0.0.1 port={group.primary.port} user=nobody_here dbname=postgres")
    assert (await LocalFencer([locked, b]).fence("a", epoch=1)).kind == "proven"
    assert not processes(group.primary.data)
