"""PostgresDumpTarget and PostgresServer keep what every target and every destination promises."""

# ruff: noqa: ARG002  # the servers are the test's own, whatever target or destination is asked about

from __future__ import annotations

from collections.abc import Iterator

import asyncpg
import pytest

from resilience.postgres import PostgresDumpTarget, PostgresServer
from resilience.postgres.dumps.server import RunningServer
from resilience.primitives import BackupTarget, RestoreDestination
from resilience.testing.postgres import TestServer
from resilience.testing.systems import RoundTripSuite

from .dumps import ask, databases, programs


@pytest.fixture(scope="module")
def orders(postgres17: TestServer) -> Iterator[TestServer]:
    """A server that has something to back up; nobody writes to it."""
    ask(postgres17, "create database orders")
    ask(postgres17, "create table items as select generate_series(1, 1000) as id", database="orders")
    yield postgres17
    ask(postgres17, "drop database orders with (force)")


class TestPostgresDump(RoundTripSuite[RunningServer]):
    """From one server into another."""

    capture_step = 23
    apply_step = 37

    @pytest.fixture(autouse=True)
    def servers(self, orders: TestServer, postgres18: TestServer) -> Iterator[None]:
        self.source, self.other = orders, postgres18
        yield
        ask(self.other, "drop database if exists orders with (force)")

    @pytest.fixture
    def target(self) -> BackupTarget:
        return PostgresDumpTarget("orders", dsn=self.source.dsn(), databases=["orders"], bin_dir=self.source.bin_dir)

    @pytest.fixture
    def destination(self) -> RestoreDestination[RunningServer]:
        return PostgresServer(dsn=self.other.dsn(), bin_dir=self.other.bin_dir)

    async def state(self, target: BackupTarget) -> object:
        clients = "select count(*) from pg_stat_activity where application_name like 'pg\\_dump%'"
        return ask(self.source, clients), databases(self.source), programs("pg_dump", "pg_dumpall")

    async def content(self, destination: RestoreDestination[RunningServer]) -> object:
        return databases(self.other), ask(self.other, "select rolname from pg_roles order by 1"), programs("pg_restore")

    async def occupy(self, destination: RestoreDestination[RunningServer]) -> None:
        ask(self.other, "create database orders")
        ask(self.other, "create table theirs (id int)", database="orders")

    async def startable(self, destination: RestoreDestination[RunningServer]) -> bool:
        return "orders" in databases(self.other)

    async def check(self, target: BackupTarget, live: RunningServer) -> None:
        connection = await asyncpg.connect(live.dsn, database="orders")
        try:
            assert await connection.fetchval("select sum(id) from items") == 500_500
        finally:
            await connection.close()
