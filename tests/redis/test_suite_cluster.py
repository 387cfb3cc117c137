"""The target for clusters, and the data directories of a new one, keep what targets and destinations promise."""

# ruff: noqa: ARG002  # the cluster is the tests' own, whatever target or destination is asked about

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from resilience.primitives import BackupTarget, RestoreDestination
from resilience.redis import RedisClusterDirectories, RedisClusterTarget
from resilience.redis.client import Url, ask, commands
from resilience.redis.cluster.directory import LiveCluster
from resilience.testing.machine import owned_folder
from resilience.testing.redis import TestRedis
from resilience.testing.systems import RoundTripSuite

from .data import runs_on


async def keys(urls: list[str]) -> list[set[bytes]]:
    """Return the keys of each of several servers."""
    found = []
    for url in urls:
        async with commands(Url.parse(url), operation="look") as asked:
            found.append(set(await ask(asked, "KEYS", "*")))
    return found


class TestRedisCluster(RoundTripSuite[LiveCluster]):
    capture_step = 23
    apply_step = 149

    @pytest.fixture(autouse=True)
    def _cluster(self, cluster7: list[TestRedis]) -> None:
        self.nodes = cluster7

    @pytest.fixture
    def target(self) -> BackupTarget:
        return RedisClusterTarget("cache", url=self.nodes[0].url)

    @pytest.fixture
    def destination(self, tmp_owned: Path) -> RestoreDestination[LiveCluster]:
        addresses = [f"127.0.0.1:{7000 + number}" for number in range(len(self.nodes))]
        return RedisClusterDirectories(tmp_owned / "data", addresses=addresses, program=self.nodes[0].binary)

    async def state(self, target: BackupTarget) -> object:
        names = ("connected_slaves", "rdb_bgsave_in_progress", "connected_clients", "cluster_enabled")
        return [[node.info(name) for name in names] for node in self.nodes]

    async def check(self, target: BackupTarget, live: LiveCluster) -> None:
        assert await keys([shard.url for shard in live.shards]) == await keys([node.url for node in self.nodes])

    async def content(self, destination: RestoreDestination[LiveCluster]) -> object:
        return sorted(str(path) for path in Path(destination.name).parent.rglob("*"))

    async def occupy(self, destination: RestoreDestination[LiveCluster]) -> None:
        (owned_folder(Path(destination.name)) / "theirs").write_text("data")

    async def startable(self, destination: RestoreDestination[LiveCluster]) -> bool:
        folders = sorted(Path(destination.name).glob("shard-*"))
        started = [
            await asyncio.to_thread(runs_on, node, folder) for node, folder in zip(self.nodes, folders, strict=False)
        ]
        assert all(started) or not any(started)
        return len(started) == len(self.nodes) and all(started)
