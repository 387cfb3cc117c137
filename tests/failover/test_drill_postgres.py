"""Drills on real servers: the primary fails, clients are served by another, nothing is lost, all is put back."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from attrs import evolve

from resilience.concurrency import stop_tasks
from resilience.model.drills import DrillReport
from resilience.model.json import to_json
from resilience.operations.drill import drill, drills
from resilience.operations.drill_clean_up import resume_drill
from resilience.operations.group import FailoverGroup
from resilience.operations.recorder import StateRecorder
from resilience.pgbouncer import PgBouncerSwitch
from resilience.postgres import CutNetwork, DroppingProxy, PostgresCanary
from resilience.postgres.processes import processes
from resilience.testing.replication import TestGroup, running_group

from .conftest import NewPgBouncer
from .killed_drill import CRITERION, Place

ROOT = Path(__file__).parents[2]
EVERY = timedelta(milliseconds=200)


@pytest.fixture
def servers(session_folder: Path, tmp_path: Path, postgres_bin: Callable[[int], Path]) -> Iterator[TestGroup]:
    """A primary, and a standby that has every acknowledged write."""
    folder = session_folder / f"drill-{tmp_path.name}"
    with running_group(folder, postgres_bin(17), sync="FIRST 1 (b)") as group:
        yield group


@pytest.fixture
def place(servers: TestGroup, tmp_path: Path) -> Place:
    """Where they are."""
    return Place(
        ports={name: each.port for name, each in servers.servers.items()},
        data={name: str(each.data) for name, each in servers.servers.items()},
        bin_dir=str(servers.bin_dir),
        journal=str(tmp_path / "journal"),
    )


@asynccontextmanager
async def recorded(group: FailoverGroup) -> AsyncIterator[None]:
    """Record until left, as another process would."""
    recorder = StateRecorder(group, every=EVERY)
    task = asyncio.create_task(recorder.run())
    try:
        while recorder.last is None or recorder.last.sync is None:
            await asyncio.sleep(0.02)
        yield
    finally:
        await stop_tasks([task])


async def whole(group: FailoverGroup, *, primary: str) -> None:
    """Check that one takes writes, and the other receives from it."""
    facts = await group.promoter.survey()
    (other,) = [each for each in facts.members if each.name != primary]
    assert facts.primary == primary
    assert other.role == "standby" and other.receiving and other.upstream == primary, str(facts)


def passed(report: DrillReport) -> None:
    """Check what a drill has to show."""
    assert report.passed, str(report)
    assert report.canary is not None and report.canary.missing == () and not report.canary.two_writers
    assert [each.writes > 0 for each in report.canary.served] == [True, True]
    assert report.rto is not None and report.rpo == timedelta(0)
    assert {"detection", "decision", "promotion"} <= set(dict(report.phases))
    assert len(report.cleaned) == 3


async def test_the_primary_is_killed_and_clients_of_pgbouncer_go_on(
    place: Place, servers: TestGroup, new_pgbouncer: NewPgBouncer
) -> None:
    pool = new_pgbouncer({"postgres": f"host=127.0.0.1 port={place.ports['a']} dbname=postgres"})
    addresses = {name: f"127.0.0.1:{port}" for name, port in place.ports.items()}
    through = pool.dsn("postgres")
    switch = PgBouncerSwitch("pool", console=pool.console(), through=through, databases=["postgres"], members=addresses)
    async with place.group() as made:
        group = evolve(made, switches=[switch])
        async with recorded(group):
            report = await drill(
                group,
                fault=place.fault("killed"),
                canary=PostgresCanary(dsn=through),
                criterion=CRITERION,
                watch_seconds=0.5,
            )
        passed(report)
        await whole(group, primary="b")
        assert await drills(group) == (report,)
    assert servers.servers["b"].psql("select to_regclass('resilience_canary')") == ""


async def test_a_primary_that_hung_wakes_up_and_can_write_no_more(place: Place) -> None:
    async with place.group() as group, recorded(group):
        report = await drill(
            group, fault=place.fault("hung"), canary=place.canary(), criterion=CRITERION, watch_seconds=0.5
        )
        passed(report)
        await whole(group, primary="b")
    assert report.proof is not None and "state T" in report.proof.evidence


async def test_a_primary_that_the_network_has_lost_can_write_no_more_when_it_is_back(
    place: Place, servers: TestGroup
) -> None:
    """Everybody reaches it through a network of ours: the operator, the standby, the clients."""
    async with DroppingProxy("127.0.0.1", place.ports["a"]).running() as network:
        lost = evolve(place, ports={**place.ports, "a": network.listens})
        receives = servers.primary.dsn(application_name="b", port=str(network.listens))
        servers.servers["b"].psql(f"alter system set primary_conninfo = '{receives}'")
        servers.servers["b"].psql("select pg_reload_conf()")
        fault = CutNetwork(member="a", network=network, dsn=lost.dsn("a"))
        async with lost.group() as group, recorded(group):
            report = await drill(group, fault=fault, canary=lost.canary(), criterion=CRITERION, watch_seconds=0.5)
            passed(report)
            await whole(group, primary="b")
    assert report.proof is not None and "lead nowhere" in report.proof.evidence


@pytest.mark.parametrize(
    ("fault", "word", "primary"),
    [("hung", "SIGSTOP of a", "a"), ("killed", "promote b", "b")],
    ids=["after the fault", "before the promotion"],
)
async def test_the_process_of_the_drill_is_killed_and_another_one_cleans_up(
    place: Place, servers: TestGroup, tmp_path: Path, fault: str, word: str, primary: str
) -> None:
    where = tmp_path / "place.json"
    where.write_bytes(to_json(place))
    async with place.group() as group, recorded(group):
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.failover.killed_drill", fault, word, str(where), cwd=ROOT
        )
        assert await child.wait() == -signal.SIGKILL
        if fault == "hung":
            assert all(each.stopped for each in processes(servers.servers["a"].data))
        (report,) = await resume_drill(group, fault=place.fault(fault), canary=place.canary(), actor="Grace")
        assert report.ending == "abandoned" and report.actor == "Grace"
        assert (report.failover is not None) == (primary == "b"), str(report)
        await whole(group, primary=primary)
        assert await resume_drill(group, fault=place.fault(fault), canary=place.canary()) == ()
    assert servers.servers[primary].psql("select to_regclass('resilience_canary')") == ""
