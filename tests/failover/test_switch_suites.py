"""Routes keep what TrafficSwitch promises: PgBouncer's and that of clients which know every host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from resilience.pgbouncer import PgBouncerSwitch
from resilience.postgres import MultiHostRoute
from resilience.primitives import TrafficSwitch
from resilience.testing import SwitchSuite
from resilience.testing.postgres import TestServer

from .conftest import NewPgBouncer
from .routes import at, instance, line, switch_of, wrote


class TestPgBouncerSwitch(SwitchSuite):
    cancel_step = 5

    @pytest.fixture
    def switch(
        self, new_pgbouncer: NewPgBouncer, postgres16: TestServer, postgres17: TestServer
    ) -> Iterator[TrafficSwitch]:
        self.servers = {"a": postgres16, "b": postgres17}
        bouncer = new_pgbouncer({"orders": line(postgres16), "orders_reports": line(postgres16)})
        yield switch_of(bouncer, self.servers)
        assert not list(bouncer.folder.glob(".*")), "nothing is left beside the file"

    def instances(self) -> Mapping[str, str]:
        return {name: instance(server) for name, server in self.servers.items()}

    async def client(self, switch: TrafficSwitch) -> str:
        assert isinstance(switch, PgBouncerSwitch)
        return await wrote(str(switch.through))


class TestMultiHostRoute(SwitchSuite):
    cancel_step = 3

    @pytest.fixture
    def switch(self, postgres16: TestServer, postgres17: TestServer) -> Iterator[TrafficSwitch]:
        self.servers = {"a": postgres16, "b": postgres17}
        hosts = f"host=127.0.0.1,127.0.0.1 port={postgres16.port},{postgres17.port} user=postgres connect_timeout=2"
        members = {name: at(server) for name, server in self.servers.items()}
        yield MultiHostRoute("orders", dsn=f"{hosts} target_session_attrs=read-write", members=members)
        self._writes("a", "b")

    def instances(self) -> Mapping[str, str]:
        return {name: instance(server) for name, server in self.servers.items()}

    async def client(self, switch: TrafficSwitch) -> str:
        assert isinstance(switch, MultiHostRoute)
        return await wrote(str(switch.dsn))

    def lead(self, to: str) -> None:
        self._writes(to)

    def _writes(self, *names: str) -> None:
        """Have only these take writes; the others look like standbys to clients."""
        for name, server in self.servers.items():
            server.psql(f"alter system set default_transaction_read_only = {'off' if name in names else 'on'}")
            server.psql("select pg_reload_conf()")
