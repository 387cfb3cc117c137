"""The target for append-only files keeps what targets promise, and what it takes comes back in every form."""

# ruff: noqa: ARG002  # the servers are the test's own, whatever target or destination is asked about

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from resilience.primitives import BackupTarget, RestoreDestination
from resilience.redis import RedisAofTarget, RedisDataDirectory
from resilience.redis.isolation import LiveRedis
from resilience.testing.machine import owned_folder
from resilience.testing.redis import TestRedis
from resilience.testing.systems import RoundTripSuite

from .aof_data import rewrite
from .conftest import MAJORS, NewRedis
from .data import contents, fill, runs_on


class TestRedisAof(RoundTripSuite[LiveRedis]):
    capture_step = 7
    apply_step = 97
    server: TestRedis

    @pytest.fixture(params=MAJORS, ids=lambda major: f"redis{major}")
    def every_redis(self, request: pytest.FixtureRequest, new_redis: NewRedis) -> TestRedis:
        major: int = request.param
        return new_redis(major, appendonly="yes")

    @pytest.fixture
    def target(self, every_redis: TestRedis) -> BackupTarget:
        self.server = every_redis
        every_redis.ask("SET", "before", "the rewrite")
        rewrite(every_redis)
        fill(every_redis)
        return RedisAofTarget("cache", url=every_redis.url)

    @pytest.fixture
    def destination(self, every_redis: TestRedis, tmp_owned: Path) -> RestoreDestination[LiveRedis]:
        return RedisDataDirectory(tmp_owned / "data", program=every_redis.binary, appendonly=True)

    async def state(self, target: BackupTarget) -> object:
        said = [self.server.info(name) for name in ("connected_clients", "aof_rewrites")]
        files = sorted(path.name for path in self.server.folder.rglob("*"))
        return said, self.server.ask("CONFIG", "GET", "*"), files

    async def check(self, target: BackupTarget, live: LiveRedis) -> None:
        assert await contents(live.url) == await contents(self.server.url)

    async def content(self, destination: RestoreDestination[LiveRedis]) -> object:
        return sorted(str(path) for path in Path(destination.name).rglob("*"))

    async def occupy(self, destination: RestoreDestination[LiveRedis]) -> None:
        (owned_folder(Path(destination.name)) / "theirs").write_text("data")

    async def startable(self, destination: RestoreDestination[LiveRedis]) -> bool:
        return await asyncio.to_thread(runs_on, self.server, Path(destination.name), appendonly=True)
