"""The oldest Redis that is supported: one INFO section at a time, no functions, an append-only file in one piece."""

from __future__ import annotations

from pathlib import Path

import pytest

from resilience import Archive, backup, verify
from resilience.model.errors import Refused
from resilience.model.findings import Level
from resilience.redis import RedisAofTarget, RedisBackupValidator, RedisScratch, RedisTarget
from resilience.stores import MemoryStore

from .conftest import NewRedis
from .data import assert_comes_back, fill


@pytest.mark.parametrize("how", ["diskless", "by disk", "saved"])
async def test_a_redis_6_comes_back(new_redis: NewRedis, tmp_owned: Path, how: str) -> None:
    server, other, archive = new_redis(6), new_redis(6), Archive(MemoryStore())
    fill(server)
    file = server.folder / "dump.rdb" if how == "saved" else None
    manifest = (await backup(RedisTarget("cache", url=server.url, disk=how == "by disk", file=file), archive)).manifest
    scratch = RedisScratch(program=server.binary, within=tmp_owned)
    verdict = await verify(archive, manifest, validators=[RedisBackupValidator(keys=10)], scratch=scratch)
    assert verdict.level == Level.STARTS, str(verdict)
    await assert_comes_back(archive, server, other, tmp_owned)


async def test_its_append_only_file_is_refused_and_something_else_offered(new_redis: NewRedis) -> None:
    server = new_redis(6, appendonly="yes")
    with pytest.raises(Refused, match="in one piece.*RedisTarget"):
        await backup(RedisAofTarget("cache", url=server.url), Archive(MemoryStore()))
