"""The conformance suites of promoters and fencers on real PostgreSQL servers, and on programs of one's own."""

# ruff: noqa: ARG002  # what the suites hand over, the tests know already

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from resilience.fencers import CommandFencer, FenceCommand
from resilience.postgres import LocalFencer, PostgresPromoter
from resilience.postgres.processes import processes, send
from resilience.primitives import Fencer, Promoter
from resilience.testing.fencers import FencerSuite
from resilience.testing.promoters import PromoterSuite
from resilience.testing.replication import TestGroup, running_group

COUNT = "select count(*) from written"


class TestPostgresPromoter(PromoterSuite):
    @pytest.fixture
    async def promoter(self, group_of_three: TestGroup) -> AsyncIterator[Promoter]:
        self.group = group_of_three
        async with PostgresPromoter("orders", members=group_of_three.members(), patience=20) as promoter:
            yield promoter

    async def state(self, promoter: Promoter) -> object:
        query = "select pg_current_wal_insert_lsn(), (select array_agg(slot_name) from pg_replication_slots)"
        files = sorted((path.name, path.stat().st_mtime) for path in self.group.primary.data.glob("*.conf"))
        return self.group.primary.psql(query), files

    async def write(self, promoter: Promoter, member: str) -> bool:
        # No timeout of the server's own ends a commit that waits for a synchronous standby.
        connection = await asyncpg.connect(self.group.servers[member].uri())
        try:
            await connection.execute("insert into written default values", timeout=0.5)
        except TimeoutError:
            return False
        finally:
            await connection.close()
        return True

    async def count(self, promoter: Promoter, member: str) -> int:
        if member != (primary := (await promoter.survey()).primary):
            self.group.caught_up(source=primary, names=[member])
        return int(self.group.servers[member].psql(COUNT))

    async def kill(self, promoter: Promoter, member: str) -> None:
        self.group.kill(member)

    async def revive(self, promoter: Promoter, member: str) -> None:
        self.group.restart(member)


class TestLocalFencer(FencerSuite):
    @pytest.fixture
    def fencer(self, group_of_one: TestGroup) -> Fencer:
        self.group = group_of_one
        return LocalFencer(group_of_one.members())

    async def writes(self, fencer: Fencer) -> bool:
        tried = self.group.primary.run(
            "psql", "-XAtqc", "create table if not exists t ()", "-d", self.group.primary.dsn(), check=False
        )
        return tried.returncode == 0

    async def restart(self, fencer: Fencer) -> None:
        with pytest.raises(RuntimeError, match="resilience_fenced"):
            self.group.restart("a")

    async def hang(self, fencer: Fencer) -> None:
        send(processes(self.group.primary.data), signal.SIGSTOP)


class TestCommandFencer(FencerSuite):
    @pytest.fixture
    def fencer(self, tmp_path: Path) -> Fencer:
        self.switch = tmp_path / "off"
        command = FenceCommand(
            fence=["touch", str(self.switch)], proof=["ls", str(self.switch)], lift=["rm", "-f", str(self.switch)]
        )
        return CommandFencer({"a": command})

    async def writes(self, fencer: Fencer) -> bool:
        return not self.switch.exists()

    async def restart(self, fencer: Fencer) -> None:
        """Who starts again behind a switch that is off stays off."""


@pytest.fixture
def group_of_one(tmp_owned: Path, postgres_bin: Callable[[int], Path]) -> Iterator[TestGroup]:
    with running_group(tmp_owned / "group", postgres_bin(17), 0) as group:
        yield group


@pytest.fixture
def group_of_three(tmp_owned: Path, postgres_bin: Callable[[int], Path]) -> Iterator[TestGroup]:
    with running_group(tmp_owned / "group", postgres_bin(17), 2, sync="ANY 1 (b, c)", slots=True) as group:
        group.primary.psql("create table written (id bigint generated always as identity)")
        group.caught_up()
        yield group
