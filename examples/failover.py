"""Kill the primary of a real PostgreSQL while it is written to; fail over; lose nothing; bring the old one back.

Takes less than a minute and leaves nothing behind. Clients go through PgBouncer if it is installed; otherwise they know
both servers.

`python3 noxfile.py -s failover` installs what this needs and runs it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path

from attrs import frozen

from resilience import (
    FailoverGroup,
    FailoverPlan,
    FailoverPolicy,
    FailoverReport,
    ResilienceError,
    StateRecorder,
    TrafficSwitch,
    failback,
    failover,
    plan_failback,
    plan_failover,
)
from resilience.concurrency import stop_tasks
from resilience.model.drills import CanaryFacts
from resilience.model.show import as_span
from resilience.pgbouncer import PgBouncerSwitch
from resilience.postgres import KilledPostmaster, LocalFencer, MultiHostRoute, PostgresCanary, PostgresPromoter
from resilience.stores import LocalStore
from resilience.testing.pgbouncer import MissingPgBouncer, running_pgbouncer
from resilience.testing.postgres import MissingServer, find_binaries, reachable_copy
from resilience.testing.replication import TestGroup, running_group

TESTBED = Path(__file__).parent.parent / ".testbed"
MAJORS = (18, 17, 16, 15)
ME = "examples/failover.py"
POLICY = FailoverPolicy(confirmation="FAIL OVER", rto=timedelta(minutes=5))
RETURN = FailoverPolicy(confirmation="BRING BACK")
RECORDED_EVERY = timedelta(seconds=0.5)
NOTICED_WITHIN_SECONDS = 15.0
WRITE_ON_SECONDS = 2.0


@frozen
class Way:
    """The way of the clients: a switch that changes it, and the connection string that takes it."""

    switch: TrafficSwitch
    dsn: str
    words: str


async def tour(folder: Path, servers: TestGroup, way: Way) -> None:
    """Take the tour with two running servers."""
    members = servers.members()
    async with PostgresPromoter("orders", members=members) as promoter:
        group = FailoverGroup(
            "orders",
            promoter=promoter,
            fencers=[LocalFencer(members)],
            switches=[way.switch],
            journal=LocalStore(folder / "journal"),
        )
        async with recorded(group):
            print(f"Two servers; b must have every write before it is acknowledged. Clients go {way.words}.\n")
            print(await promoter.survey())
            await struck(group, servers, way)
        await returned(group)


async def struck(group: FailoverGroup, servers: TestGroup, way: Way) -> None:
    """Write, have the primary killed, fail over, and look what is left of what was acknowledged."""
    primary = servers.servers["a"]
    canary = PostgresCanary(name="writers", dsn=way.dsn, writers=4)
    fault = KilledPostmaster(member="a", data=primary.data, dsn=primary.dsn())
    async with canary.writing() as watching:
        await asyncio.sleep(WRITE_ON_SECONDS)
        print(f"\n{watching.seen.acknowledged:,} writes are acknowledged. Somebody kills the primary:")
        async with fault.inject() as proof:
            print(f"  {proof}\n")
            plan = await noticed(group)
            print(f"What could be done:\n{plan}\n")
            print(f"Somebody reads it, and types: {plan.confirmation}\n")
            report = await failover(
                group, plan, confirm=plan.confirmation, failed_at=proof.at, actor=ME, reason="the primary was killed"
            )
        await asyncio.sleep(WRITE_ON_SECONDS)
    seen = await watching.examine()
    await canary.clean()
    show(report, seen)


async def returned(group: FailoverGroup) -> None:
    """Bring the old primary back behind the new one."""
    plan = await plan_failback(group, policy=RETURN)
    print(f"The old primary may come back, but not as what it was:\n{plan}\n")
    report = await failback(group, plan, confirm=plan.confirmation, actor=ME, reason="the tour is over")
    if report.ending != "completed":
        sys.exit(f"This must not happen: {report.why}")
    print(await group.promoter.survey())


async def noticed(group: FailoverGroup) -> FailoverPlan:
    """Plan until nothing stands in the way; at first nobody knows for sure that the primary is dead."""
    began = time.monotonic()
    while (plan := await plan_failover(group, policy=POLICY)).blockers:
        if time.monotonic() - began > NOTICED_WITHIN_SECONDS:
            sys.exit(f"This must not happen: {plan}")
        await asyncio.sleep(0.02)
    return plan


def show(report: FailoverReport, seen: CanaryFacts) -> None:
    """Show what was done and what the clients saw of it."""
    print(f"What was done:\n{report}")
    if seen.missing != () or seen.two_writers or report.ending != "completed":
        sys.exit(f"\nThis must not happen: {report.why}\n{seen}")
    print(f"""
Every acknowledged write is there: {seen.acknowledged:,} of {seen.acknowledged:,}.

  clients   {as_span(round(seen.longest, 3))} without an acknowledgement, noticing and deciding included
  writers   one at a time: {len(seen.served)} servers in turn
""")


@asynccontextmanager
async def recorded(group: FailoverGroup) -> AsyncIterator[None]:
    """Record the group's state until leaving; entered once it can be told who has every write."""
    recorder = StateRecorder(group, every=RECORDED_EVERY)
    running = asyncio.create_task(recorder.run())
    try:
        async with asyncio.timeout(NOTICED_WITHIN_SECONDS):
            while recorder.last is None or recorder.last.sync is None:  # noqa: ASYNC110  # nobody tells us
                await asyncio.sleep(0.02)
        yield
    finally:
        await stop_tasks([running])


@contextmanager
def clients(servers: TestGroup, *, pooled: bool) -> Iterator[Way]:
    """Make the way of the clients: a PgBouncer if there is one, or all servers by name."""
    places = {name: f"127.0.0.1:{server.port}" for name, server in servers.servers.items()}
    databases = {"orders": f"host=127.0.0.1 port={servers.primary.port} dbname=postgres"}
    with ExitStack() as stack, suppress(MissingPgBouncer):
        if pooled:
            pool = stack.enter_context(running_pgbouncer(databases))
            dsn = pool.dsn("orders")
            switch = PgBouncerSwitch("pool", console=pool.console(), through=dsn, databases=["orders"], members=places)
            yield Way(switch, dsn, "through PgBouncer")
            return
    ports = ",".join(str(server.port) for server in servers.servers.values())
    hosts = ",".join("127.0.0.1" for _ in servers.servers)
    dsn = f"host={hosts} port={ports} user=postgres dbname=postgres target_session_attrs=read-write connect_timeout=2"
    yield Way(MultiHostRoute("clients", dsn=dsn, members=places), dsn, "to whichever server takes writes")


def programs(folder: Path) -> Path:
    """Return the programs of the newest PostgreSQL in the testbed, where the server's account can run them."""
    for major in MAJORS:
        with suppress(MissingServer):
            return reachable_copy(find_binaries(TESTBED, major), folder)
    sys.exit("There is no PostgreSQL here: `python3 noxfile.py -s failover` brings one.")


def main() -> None:
    """Make room, take the tour, clean up."""
    parser = argparse.ArgumentParser(description="Kill a primary that is written to, fail over, lose nothing.")
    parser.add_argument("--without-pgbouncer", action="store_true", help="let the clients know both servers instead")
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="resilience-failover-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        try:
            with (
                running_group(folder / "servers", programs(folder), sync="FIRST 1 (b)") as servers,
                clients(servers, pooled=not arguments.without_pgbouncer) as way,
            ):
                asyncio.run(tour(folder, servers, way))
        except ResilienceError as error:
            sys.exit(str(error))
        except KeyboardInterrupt:
            sys.exit("Stopped, and cleaned up.")
    print(f"\n{time.monotonic() - began:.0f} s in all, and nothing is left behind. What it did: {ME}")


if __name__ == "__main__":
    main()
