"""`python -m tests.failover.killed_drill FAULT WORD SERVERS`: a drill that is killed -9 when it tells of WORD.

SERVERS is a file of JSON: where the members, the route and the journal are (see `Place`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from attrs import frozen

from resilience.model.drills import Criterion
from resilience.model.events import Event
from resilience.model.json import from_json
from resilience.operations.drill import drill
from resilience.operations.group import FailoverGroup
from resilience.postgres import (
    HungServer,
    KilledPostmaster,
    LocalFencer,
    LocalServer,
    MultiHostRoute,
    PostgresCanary,
    PostgresMember,
    PostgresPromoter,
)
from resilience.primitives import Canary, Fault
from resilience.stores import LocalStore

CRITERION = Criterion(rto=timedelta(seconds=60))


@frozen
class Place:
    """Where everything is: ports and data directories by the names of members."""

    ports: dict[str, int]
    data: dict[str, str]
    bin_dir: str
    journal: str

    @property
    def clients(self) -> str:
        """The connection string of clients that know every host."""
        hosts, ports = ",".join("127.0.0.1" for _ in self.ports), ",".join(map(str, self.ports.values()))
        return f"host={hosts} port={ports} user=postgres dbname=postgres target_session_attrs=read-write"

    def dsn(self, name: str) -> str:
        """How a member is reached itself."""
        return f"host=127.0.0.1 port={self.ports[name]} user=postgres dbname=postgres"

    def fault(self, kind: str) -> Fault:
        """What strikes the first member."""
        data, dsn = Path(self.data["a"]), self.dsn("a")
        if kind == "hung":
            return HungServer(member="a", data=data, dsn=dsn)
        return KilledPostmaster(member="a", data=data, dsn=dsn)

    def canary(self) -> Canary:
        """Who watches it."""
        return PostgresCanary(dsn=self.clients, patience=1.0)

    @asynccontextmanager
    async def group(self) -> AsyncIterator[FailoverGroup]:
        """Make the group, as every process does that has to do with it."""
        servers = {name: LocalServer(data, bin_dir=self.bin_dir) for name, data in self.data.items()}
        members = [PostgresMember(name, dsn=self.dsn(name), server=server) for name, server in servers.items()]
        async with PostgresPromoter("orders", members=members) as promoter:
            places = {name: f"127.0.0.1:{port}" for name, port in self.ports.items()}
            yield FailoverGroup(
                "orders",
                promoter=promoter,
                fencers=[LocalFencer(members)],
                switches=[MultiHostRoute("clients", dsn=self.clients, members=places)],
                journal=LocalStore(self.journal),
            )


async def main(kind: str, word: str, file: str) -> None:
    """Drill, and die at the word."""
    place = from_json(Path(file).read_bytes(), Place)

    def dying(event: Event) -> None:
        if event.text.startswith(word):
            os.kill(os.getpid(), signal.SIGKILL)

    async with place.group() as group:
        report = await drill(group, fault=place.fault(kind), canary=place.canary(), criterion=CRITERION, observer=dying)
    sys.exit(f"it never came to {word}: {report}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
