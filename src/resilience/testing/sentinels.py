"""A group of real Redis servers and the Sentinels that watch it, for tests, drills and benches: ready in seconds."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import redis
from attrs import define, field

from resilience.redis.failover.server import LocalRedis
from resilience.redis.members import RedisMember

from .machine import owned_folder
from .redis import TestRedis, reachable_program

NAMES = ("a", "b", "c", "d", "e")
READY_SECONDS = 30.0
LOOK_SECONDS = 0.02
GREETING_MS, USUAL_GREETING_MS = 50, 2000
SETTINGS = {
    "repl-diskless-sync-delay": "0",
    "repl-ping-replica-period": "1",
    "repl-backlog-size": "16mb",
    "min-replicas-max-lag": "2",
}


@define
class TestSentinels:
    """Servers by the names of their members, `a` the first master, and Sentinels that call the group `watched`.

    Synchronous on purpose, like `TestRedis`. The Sentinels take a server for dead after `down_after` milliseconds; with
    less than a second they do so with servers that are well. Where `tls` says with which certificate, all speak nothing
    else.
    """

    __test__ = False

    folder: Path
    binary: Path
    watched: str = field(default="orders", kw_only=True)
    down_after: int = field(default=1500, kw_only=True)
    failover_timeout: int = field(default=10_000, kw_only=True)
    settings: Mapping[str, str] = field(factory=dict, kw_only=True)
    tls: Mapping[str, str] = field(factory=dict, kw_only=True)
    servers: dict[str, TestRedis] = field(factory=dict, init=False)
    sentinels: dict[str, TestRedis] = field(factory=dict, init=False)

    @property
    def master(self) -> TestRedis:
        """The first master, whoever is it now."""
        return self.servers["a"]

    def create(self, replicas: int = 2, sentinels: int = 3) -> None:
        """Start a master, its replicas and then the Sentinels, and wait until all of these know each other."""
        owned_folder(self.folder)
        for name in NAMES[: replicas + 1]:
            follow = {} if name == "a" else {"replicaof": f"127.0.0.1 {self.master.port}"}
            self.servers[name] = TestRedis(
                self.folder / name, self.binary, settings={**SETTINGS, **self.settings, **follow}, tls=self.tls
            )
            self.servers[name].start()
        for number in range(1, sentinels + 1):
            self.add_sentinel(f"s{number}", quorum=sentinels // 2 + 1)
        self._greet_every(GREETING_MS)
        self.caught_up()
        self.known()
        self._greet_every(USUAL_GREETING_MS)
        if sentinels:
            self.until(self._heard, "the replicas did not report what they have")

    def add_sentinel(self, name: str, *, quorum: int = 2, port: int | None = None) -> TestRedis:
        """Start one more Sentinel, which watches the first master."""
        monitor = (
            f"monitor {self.watched} 127.0.0.1 {port or self.master.port} {quorum}\n"
            f"sentinel down-after-milliseconds {self.watched} {self.down_after}\n"
            f"sentinel failover-timeout {self.watched} {self.failover_timeout}\n"
            f"sentinel parallel-syncs {self.watched} 1"
        )
        sentinel = TestRedis(
            self.folder / name, self.binary, settings={"sentinel": monitor}, tls=self.tls, sentinel=True
        )
        self.sentinels[name] = sentinel
        sentinel.start()
        return sentinel

    def caught_up(self, source: str = "a", *, names: Sequence[str] = ()) -> None:
        """Wait until all other servers that run, or those named, have what `source` has. Raises TimeoutError."""
        others = [each for name, each in self.servers.items() if name != source and each.alive]
        if names:
            others = [self.servers[name] for name in names]

        def all_there() -> bool:
            here = int(self.servers[source].info("master_repl_offset"))
            return all(
                each.info("master_link_status") == "up" and int(each.info("slave_repl_offset")) >= here
                for each in others
            )

        self.until(all_there, "the replicas did not catch up")

    def known(self) -> None:
        """Wait until every Sentinel knows the others and all replicas, and could fail over. Raises TimeoutError."""

        def all_known() -> bool:
            return all(
                self._quorum(each)
                and self._count(each, "num-slaves") == len(self.servers) - 1
                and self._count(each, "num-other-sentinels") == len(self.sentinels) - 1
                for each in self.sentinels.values()
            )

        self.until(all_known, "the Sentinels did not find each other")

    def named(self, sentinel: str) -> str:
        """Return the member that a Sentinel says is the master; empty if it is none of ours."""
        found = self.sentinels[sentinel].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.watched)
        port = int(found[1]) if isinstance(found, list) else 0
        return next((name for name, each in self.servers.items() if each.port == port), "")

    def until(self, condition: Callable[[], bool], otherwise: str, *, seconds: float = READY_SECONDS) -> None:
        """Look until something is so. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while True:
            with suppress(redis.RedisError, ValueError):
                if condition():
                    return
            if time.monotonic() > deadline:
                raise TimeoutError(otherwise)
            time.sleep(LOOK_SECONDS)

    def members(self) -> tuple[RedisMember, ...]:
        """The members, for a promoter and fencers on this machine."""
        return tuple(
            RedisMember(name, url=server.url, server=LocalRedis(server.folder, server.config, program=server.binary))
            for name, server in self.servers.items()
        )

    def addresses(self) -> tuple[str, ...]:
        """Where the Sentinels are."""
        return tuple(each.url for each in self.sentinels.values())

    def kill(self, *names: str) -> None:
        """End members or Sentinels with kill -9."""
        for name in names:
            (self.servers.get(name) or self.sentinels[name]).kill()

    def restart(self, *names: str) -> None:
        """Start again what died, with its configuration as it was left."""
        for name in names:
            each = self.servers.get(name) or self.sentinels[name]
            each.kill()
            each.start()

    def close(self) -> None:
        """End everything, and remove it."""
        for each in (*self.sentinels.values(), *self.servers.values()):
            each.kill()
        for server in self.servers.values():
            LocalRedis(server.folder, server.config).end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _greet_every(self, milliseconds: int) -> None:
        """Set how often Sentinels tell each other that they are there; one before 7 does not let itself be told."""
        for each in self.sentinels.values():
            with suppress(redis.ResponseError):
                each.ask("SENTINEL", "DEBUG", "PUBLISH-PERIOD", milliseconds)

    def _heard(self) -> bool:
        """Tell whether all replicas have told the master how far they are: before that a loss is not bounded."""
        with self.master.client() as client:
            said = client.info("replication")
        return all(said.get(f"slave{number}", {}).get("offset") for number in range(len(self.servers) - 1))

    def _quorum(self, sentinel: TestRedis) -> bool:
        return b"OK" in bytes(str(sentinel.ask("SENTINEL", "CKQUORUM", self.watched)), "ascii")

    def _count(self, sentinel: TestRedis, name: str) -> int:
        with sentinel.client() as client:
            return int(client.sentinel_master(self.watched)[name])


@contextmanager
def running_sentinels(
    folder: Path,
    binary: Path,
    replicas: int = 2,
    sentinels: int = 3,
    *,
    down_after: int = 1500,
    settings: Mapping[str, str] | None = None,
    tls: Mapping[str, str] | None = None,
) -> Iterator[TestSentinels]:
    """Start a group and its Sentinels; ended and removed on leaving."""
    group = TestSentinels(
        folder,
        reachable_program(binary, folder.parent),
        down_after=down_after,
        settings=settings or {},
        tls=tls or {},
    )
    try:
        group.create(replicas, sentinels)
        yield group
    finally:
        group.close()
