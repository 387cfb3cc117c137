"""The operator's process is killed with -9 before and after each of its effects, on real servers; somebody resumes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from attrs import define, field

from resilience.testing.pgbouncer import TestPgBouncer
from resilience.testing.postgres import TestServer
from resilience.testing.replication import TestGroup, running_group

from .conftest import NewPgBouncer

PAUSE = 0.05
pytestmark = pytest.mark.timeout(900)  # dozens of failovers, one after the other
ROOT = Path(__file__).parents[2]


@define
class Trials:
    """Two servers behind a PgBouncer, and operators that may be killed; the servers change their roles every time."""

    helper: subprocess.Popen[str]
    servers: TestGroup
    pool: TestPgBouncer
    journal: Path
    primary: str = "a"
    written: list[int] = field(factory=list)

    @property
    def standby(self) -> str:
        return "b" if self.primary == "a" else "a"

    def server(self, name: str) -> TestServer:
        return self.servers.servers[name]

    def ask(self, verb: str, *, at: int = -1, to: str = "", hangs: bool = False) -> dict[str, Any]:
        """Have an operator do something, who dies (or hangs) at point number `at`."""
        assert self.helper.stdin is not None and self.helper.stdout is not None
        members = {name: (server.dsn(), str(server.data)) for name, server in self.servers.servers.items()}
        pool = {
            "console": self.pool.console(),
            "through": self.pool.dsn("orders"),
            "databases": ["orders"],
            "members": {name: f"127.0.0.1:{server.port}" for name, server in self.servers.servers.items()},
        }
        group = {"members": members, "bin": str(self.servers.bin_dir), "pool": pool, "journal": str(self.journal)}
        self.helper.stdin.write(json.dumps({"group": group, "verb": verb, "at": at, "to": to, "hangs": hangs}) + "\n")
        self.helper.stdin.flush()
        told: dict[str, Any] = json.loads(self.helper.stdout.readline())
        return told

    def write(self) -> None:
        """Write through the pool; what returns is acknowledged."""
        with psycopg.connect(self.pool.dsn("orders"), autocommit=True, connect_timeout=5) as connection:
            number = len(self.written)
            connection.execute("insert into written values (%s)", [number])
            self.written.append(number)

    def synchronous(self) -> None:
        """Have the primary wait for its standby, and a recorder write that down."""
        primary = self.server(self.primary)
        primary.psql(f"alter system set synchronous_standby_names = '{self.standby}'")
        primary.psql("select pg_reload_conf()")
        self.servers.caught_up(source=self.primary)
        while self.ask("record")["ending"] != "recorded":
            time.sleep(PAUSE)

    def kill(self, name: str) -> None:
        """End a server with kill -9; who started it, or inherited it, takes note of its end."""
        self.servers.kill(name)
        self.ask("reap")

    def timeline(self, name: str) -> int:
        return int(self.server(name).psql("select timeline_id from pg_control_checkpoint()"))

    def assert_moved(self, timeline: int) -> None:
        """One promotion, clients are there and write, nothing acknowledged is missing; then the roles are changed."""
        self.primary = self.standby
        primary = self.server(self.primary)
        primary.psql("checkpoint")
        assert self.timeline(self.primary) == timeline + 1
        assert primary.psql("select pg_is_in_recovery()") == "f"
        self.write()
        assert primary.psql("select count(*) from written") == str(len(self.written))


@pytest.fixture
def trials(
    session_folder: Path,
    tmp_path: Path,
    postgres_bin: Callable[[int], Path],
    new_pgbouncer: NewPgBouncer,
    request: pytest.FixtureRequest,
) -> Iterator[Trials]:
    folder = session_folder / f"group-{abs(hash(request.node.name))}"
    with running_group(folder, postgres_bin(17)) as servers, operators() as helper:
        primary = servers.primary
        primary.psql("create table written (number int primary key)")
        pool = new_pgbouncer({"orders": f"host=127.0.0.1 port={primary.port} dbname=postgres"})
        yield Trials(helper, servers, pool, tmp_path / "journal")


@contextmanager
def operators() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.failover.killed_operator"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def boundaries() -> Iterator[int]:
    """Yield the points to die at: after an effect is before its record, after a record before the next effect."""
    yield 1
    yield from count(2, 2)


def test_a_switchover_is_finished_by_whoever_comes_next(trials: Trials) -> None:
    for at in boundaries():
        trials.write()
        timeline = trials.timeline(trials.primary)
        ended = trials.ask("switchover", at=at, to=trials.standby)
        killed = ended["ending"] == "killed"
        if killed:
            ended = trials.ask("resume")
        if at == 1:
            assert "nothing was ever begun" in ended["ending"]
            continue
        assert ended["ending"] == "completed", ended["ending"]
        trials.assert_moved(timeline)
        assert trials.server(trials.standby).psql("select status from pg_stat_wal_receiver") == "streaming"
        if not killed:
            break
    assert at > 30


def test_a_failover_is_finished_by_whoever_comes_next(trials: Trials) -> None:
    for at in boundaries():
        trials.synchronous()
        trials.write()
        timeline = trials.timeline(trials.primary)
        trials.kill(trials.primary)
        ended = trials.ask("failover", at=at)
        killed = ended["ending"] == "killed"
        if killed:
            ended = trials.ask("resume" if at > 1 else "failover")
        assert ended["ending"] == "completed", ended["ending"]
        trials.assert_moved(timeline)
        back = trials.ask("failback")
        assert back["ending"] == "completed", back["why"]
        if not killed:
            break
    assert at > 20


@pytest.mark.parametrize("at", [3, 7, 11, 15, 19, 23])
def test_an_operator_who_wakes_up_after_another_has_finished_changes_nothing(trials: Trials, at: int) -> None:
    trials.write()
    timeline = trials.timeline("a")
    assert trials.ask("switchover", at=at, to="b", hangs=True)["ending"] == "hangs"
    assert trials.ask("resume")["ending"] == "completed"
    trials.assert_moved(timeline)
    ended = trials.ask("wake")["ending"]
    assert "JournalConflict" in ended or "FencedOff" in ended, ended
    trials.write()
    trials.primary = "a"
    trials.assert_moved(timeline)
    assert trials.server("a").psql("select pg_is_in_recovery()") == "t"
