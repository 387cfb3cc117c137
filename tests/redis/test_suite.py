"""The target and the destinations keep what targets and destinations promise."""

# ruff: noqa: ARG002  # the servers are the test's own, whatever target or destination is asked about

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from resilience import Archive, backup, restore
from resilience.model.errors import Refused
from resilience.primitives import BackupTarget, RestoreDestination
from resilience.redis import RedisDataDirectory, RedisScratch, RedisServer, RedisTarget
from resilience.redis.isolation import LiveRedis
from resilience.testing.machine import owned_folder
from resilience.testing.redis import TestRedis
from resilience.testing.systems import RoundTripSuite

from .conftest import NewRedis
from .data import contents, fill, runs_on


class OfOneServer(RoundTripSuite[LiveRedis]):
    capture_step = 5
    server: TestRedis

    @pytest.fixture
    def target(self, every_redis: TestRedis) -> BackupTarget:
        self.server = every_redis
        fill(every_redis)
        return RedisTarget("cache", url=every_redis.url)

    async def state(self, target: BackupTarget) -> object:
        names = ("connected_slaves", "rdb_bgsave_in_progress", "connected_clients", "rdb_changes_since_last_save")
        said = [self.server.info(name) for name in names]
        return said, self.server.ask("CONFIG", "GET", "*"), sorted(path.name for path in self.server.folder.iterdir())

    async def check(self, target: BackupTarget, live: LiveRedis) -> None:
        assert await contents(live.url) == await contents(self.server.url)


class TestRedisDirectory(OfOneServer):
    apply_step = 29
    appendonly = False

    @pytest.fixture
    def destination(self, every_redis: TestRedis, tmp_owned: Path) -> RestoreDestination[LiveRedis]:
        return RedisDataDirectory(tmp_owned / "data", program=every_redis.binary, appendonly=self.appendonly)

    async def content(self, destination: RestoreDestination[LiveRedis]) -> object:
        return sorted(str(path) for path in Path(destination.name).rglob("*"))

    async def occupy(self, destination: RestoreDestination[LiveRedis]) -> None:
        (owned_folder(Path(destination.name)) / "theirs").write_text("data")

    async def startable(self, destination: RestoreDestination[LiveRedis]) -> bool:
        return await asyncio.to_thread(runs_on, self.server, Path(destination.name), appendonly=self.appendonly)


class TestRedisDirectoryOfAnAppendOnlyServer(TestRedisDirectory):
    apply_step = 23
    appendonly = True

    @pytest.fixture
    def every_redis(self, redis7: TestRedis) -> TestRedis:
        return redis7


class TestRedisSavedFile(TestRedisDirectory):
    """Of what the server saves to its own disk; a save that was begun is ended by the server, and left there."""

    capture_step = 2
    apply_step = 1000

    @pytest.fixture
    def every_redis(self, redis7: TestRedis) -> TestRedis:
        return redis7

    @pytest.fixture
    def target(self, every_redis: TestRedis) -> BackupTarget:
        self.server = every_redis
        fill(every_redis)
        return RedisTarget("cache", url=every_redis.url, file=every_redis.folder / "dump.rdb")

    async def state(self, target: BackupTarget) -> object:
        names = ("connected_slaves", "rdb_bgsave_in_progress", "connected_clients", "rdb_last_bgsave_status")
        return [self.server.info(name) for name in names], self.server.ask("CONFIG", "GET", "*")


class TestRedisServer(OfOneServer):
    apply_step = 47

    @pytest.fixture(autouse=True)
    def other_server(self, every_redis: TestRedis, new_redis: NewRedis) -> None:
        self.other = new_redis(int(every_redis.info("redis_version").partition(".")[0]))

    @pytest.fixture
    def destination(self, every_redis: TestRedis) -> RestoreDestination[LiveRedis]:
        return RedisServer(url=self.other.url, program=every_redis.binary)

    async def content(self, destination: RestoreDestination[LiveRedis]) -> object:
        settings = self.other.ask("CONFIG", "GET", "*")
        return await contents(self.other.url), settings, self.other.info("role")

    async def occupy(self, destination: RestoreDestination[LiveRedis]) -> None:
        self.other.ask("SET", "theirs", "data")

    async def startable(self, destination: RestoreDestination[LiveRedis]) -> bool:
        assert self.other.info("role") == "master"
        return bool(await contents(self.other.url))

    async def whole(self, destination: RestoreDestination[LiveRedis]) -> bool:
        return await contents(self.other.url) == await contents(self.server.url)


class TestRedisScratch(OfOneServer):
    apply_step = 41

    @pytest.fixture
    def every_redis(self, redis7: TestRedis) -> TestRedis:
        return redis7

    @pytest.fixture
    def destination(self, every_redis: TestRedis, tmp_owned: Path) -> RestoreDestination[LiveRedis]:
        self.within = tmp_owned
        return RedisScratch(program=every_redis.binary, within=tmp_owned)

    async def content(self, destination: RestoreDestination[LiveRedis]) -> object:
        return sorted(str(path) for path in self.within.rglob("*"))

    async def startable(self, destination: RestoreDestination[LiveRedis]) -> bool:
        folders = list(self.within.glob("*/data"))
        return any([await asyncio.to_thread(runs_on, self.server, folder) for folder in folders])

    async def test_surveying_a_destination_writes_nothing(
        self, target: BackupTarget, destination: RestoreDestination[LiveRedis], archive: Archive
    ) -> None:
        manifest = (await backup(target, archive)).manifest
        assert (await destination.survey([manifest])).empty
        assert not await self.content(destination)

    async def test_a_destination_that_is_not_empty_is_refused_and_not_touched(
        self, target: BackupTarget, destination: RestoreDestination[LiveRedis], archive: Archive
    ) -> None:
        await backup(target, archive)
        await restore(archive, target.name, into=destination)
        before = await self.content(destination)
        with pytest.raises(Refused, match="in use"):
            await restore(archive, target.name, into=destination)
        assert await self.content(destination) == before
