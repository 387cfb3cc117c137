"""The conformance suites on real Redis servers: promotions by hand, fences on this machine, the clients' own route."""

# ruff: noqa: ARG002  # what the suites hand over, the tests know already

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest
import redis

from resilience.primitives import Fencer, Promoter, TrafficSwitch
from resilience.redis.fencer import LocalFencer
from resilience.redis.master import connect_master
from resilience.redis.promoter import SentinelPromoter
from resilience.redis.route import SentinelRoute
from resilience.testing import SwitchSuite
from resilience.testing.fencers import FencerSuite
from resilience.testing.machine import free_port
from resilience.testing.promoters import PromoterSuite
from resilience.testing.sentinels import TestSentinels, running_sentinels

ANSWERS_SECONDS = 5.0


class TestPromotionByHand(PromoterSuite):
    """Nobody listens where the Sentinels were: the members have to do without."""

    waits: ClassVar[bool] = False

    @pytest.fixture
    def running(self, tmp_owned: Path, redis_program: Callable[[int], Path]) -> Iterator[TestSentinels]:
        with running_sentinels(tmp_owned / "group", redis_program(7), 2, 0) as group:
            yield group

    @pytest.fixture
    async def promoter(self, running: TestSentinels) -> AsyncIterator[Promoter]:
        self.group = group = running
        gone = [f"redis://127.0.0.1:{free_port()}"]
        async with SentinelPromoter("orders", members=group.members(), sentinels=gone, patience=20) as promoter:
            yield promoter

    async def state(self, promoter: Promoter) -> object:
        servers = self.group.servers.values()
        files = [(path.name, path.stat().st_mtime) for each in servers for path in each.folder.glob("*.conf")]
        return [each.ask("CONFIG", "GET", "*") for each in servers], [each.ask("DBSIZE") for each in servers], files

    async def write(self, promoter: Promoter, member: str) -> bool:
        """A write counts once the replicas that receive have it: Redis itself acknowledges it before."""
        try:
            with self.group.servers[member].client(socket_connect_timeout=1) as client:
                await asyncio.to_thread(client.rpush, "written", "x")
                online = client.info("replication")["connected_slaves"]
                return bool(client.wait(online, 2000) >= online)
        except redis.RedisError:
            return False

    async def count(self, promoter: Promoter, member: str) -> int:
        if member != (primary := (await promoter.survey()).primary):
            await asyncio.to_thread(self.group.caught_up, primary, names=[member])
        return int(str(self.group.servers[member].ask("LLEN", "written")))

    async def kill(self, promoter: Promoter, member: str) -> None:
        self.group.kill(member)

    async def revive(self, promoter: Promoter, member: str) -> None:
        self.group.restart(member)


class TestLocalFencer(FencerSuite):
    @pytest.fixture
    def fencer(self, tmp_owned: Path, redis_program: Callable[[int], Path]) -> Iterator[Fencer]:
        with running_sentinels(tmp_owned / "group", redis_program(7), 0, 0) as self.group:
            yield LocalFencer(self.group.members())

    async def writes(self, fencer: Fencer) -> bool:
        server = self.group.members()[0].server
        assert server is not None
        deadline = time.monotonic() + ANSWERS_SECONDS
        while await server.running() and time.monotonic() < deadline:  # it may have just been started
            try:
                with self.group.master.client(socket_connect_timeout=1) as client:
                    return bool(client.set("x", "y"))
            except redis.RedisError:
                await asyncio.sleep(0.01)
        return False

    async def restart(self, fencer: Fencer) -> None:
        with pytest.raises(RuntimeError, match="resilience-fenced"):
            self.group.restart("a")

    async def hang(self, fencer: Fencer) -> None:
        self.group.master.pause()


class TestSentinelRoute(SwitchSuite):
    """One Sentinel, which is told whom to watch; both servers take writes."""

    cancel_step = 7

    @pytest.fixture
    def switch(self, tmp_owned: Path, redis_program: Callable[[int], Path]) -> Iterator[TrafficSwitch]:
        with running_sentinels(tmp_owned / "group", redis_program(7), 1, 0) as self.group:
            self.group.servers["b"].ask("REPLICAOF", "NO", "ONE")
            self.sentinel = self.group.add_sentinel("s1", quorum=1)
            places = {member.name: member.address for member in self.group.members()}
            yield SentinelRoute("clients", sentinels=[self.sentinel.url], members=places, watched="orders")

    def instances(self) -> Mapping[str, str]:
        return {name: server.info("run_id") for name, server in self.group.servers.items()}

    async def client(self, switch: TrafficSwitch) -> str:
        client = connect_master([self.sentinel.url], "orders")
        try:
            await client.set("x", "y")
            return str((await client.info("server"))["run_id"])
        finally:
            await client.aclose()

    def lead(self, to: str) -> None:
        self.sentinel.ask("SENTINEL", "REMOVE", "orders")
        self.sentinel.ask("SENTINEL", "MONITOR", "orders", "127.0.0.1", self.group.servers[to].port, 1)
