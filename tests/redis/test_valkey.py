"""Valkey is backed up and restored as Redis is, and the two are kept apart where they do not understand one another."""

from __future__ import annotations

from pathlib import Path

import pytest

from resilience import Archive, backup, restore, verify
from resilience.model.errors import Refused
from resilience.model.findings import Level
from resilience.redis import RedisBackupValidator, RedisDataDirectory, RedisScratch, RedisTarget
from resilience.stores import MemoryStore
from resilience.testing.redis import TestRedis

from .conftest import NewRedis
from .data import assert_comes_back, contents, fill


@pytest.fixture
def valkey(new_redis: NewRedis) -> TestRedis:
    server = new_redis(9)
    fill(server)
    for key, count in (("few", 1), ("many", 600)):  # fields that expire are of a kind of their own
        for number in range(count):
            server.ask("HSETEX", key, "EX", 10_000, "FIELDS", 1, f"field {number}", "value")
    return server


@pytest.mark.parametrize("how", ["diskless", "by disk", "saved"])
async def test_a_valkey_comes_back(valkey: TestRedis, new_redis: NewRedis, tmp_owned: Path, how: str) -> None:
    archive = Archive(MemoryStore())
    file = valkey.folder / "dump.rdb" if how == "saved" else None
    target = RedisTarget("cache", url=valkey.url, disk=how == "by disk", file=file)
    manifest = (await backup(target, archive)).manifest
    assert manifest.details["product"] == "valkey"
    scratch = RedisScratch(program=valkey.binary, within=tmp_owned)
    async with archive.open(manifest) as stored:
        verdict = await RedisBackupValidator(program="redis-check-rdb").check(stored)  # which knows nothing of Valkey 9
    assert verdict.passed
    assert "redis-check-rdb could not read it" in str(verdict)
    verdict = await verify(archive, manifest, validators=[RedisBackupValidator(keys=23)], scratch=scratch)
    assert verdict.level == Level.STARTS
    await assert_comes_back(archive, valkey, new_redis(9), tmp_owned)


async def test_redis_and_valkey_do_not_read_what_the_other_writes_now(
    valkey: TestRedis, new_redis: NewRedis, tmp_owned: Path
) -> None:
    redis8 = new_redis(8)
    for one, other in ((valkey, redis8), (redis8, valkey)):
        archive = Archive(MemoryStore())
        await backup(RedisTarget("cache", url=one.url), archive)
        with pytest.raises(Refused, match="may not read it"):
            await restore(archive, "cache", into=RedisDataDirectory(tmp_owned / "data", program=other.binary))


async def test_valkey_reads_what_redis_wrote_before_they_parted(
    redis7: TestRedis, new_redis: NewRedis, tmp_owned: Path
) -> None:
    fill(redis7)
    archive = Archive(MemoryStore())
    await backup(RedisTarget("cache", url=redis7.url), archive)
    into = RedisDataDirectory(tmp_owned / "data", program=new_redis(9).binary)
    await restore(archive, "cache", into=into)
    async with into.live() as live:
        assert await contents(live.url) == await contents(redis7.url)
