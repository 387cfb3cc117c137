"""What was restored is compared with what the server held: numbers of keys, and values by their digests."""

from __future__ import annotations

from pathlib import Path

import pytest

from resilience import Archive, backup, verify
from resilience.model.findings import Level, Verdict
from resilience.model.json import from_json, to_json
from resilience.redis import (
    RedisBackupValidator,
    RedisContentValidator,
    RedisSample,
    RedisScratch,
    RedisTarget,
    take_sample,
)
from resilience.redis import content as content_module
from resilience.stores import MemoryStore
from resilience.testing.redis import TestRedis

from .conftest import NewRedis
from .data import fill


async def proven(server: TestRedis, within: Path, validator: RedisContentValidator) -> Verdict:
    archive = Archive(MemoryStore())
    manifest = (await backup(RedisTarget("cache", url=server.url), archive)).manifest
    scratch = RedisScratch(program=server.binary, within=within)
    return await verify(archive, manifest, validators=[RedisBackupValidator()], scratch=scratch, assertions=[validator])


async def test_a_sample_of_every_type_is_there_and_the_same(every_redis: TestRedis, tmp_owned: Path) -> None:
    fill(every_redis)
    sample = await take_sample(every_redis.url, match="*")
    assert sample.keys == {"0": 20, "9": 1}
    assert len(sample.digests["0"]) == 18  # two of them expire
    assert from_json(to_json(sample), RedisSample) == sample
    verdict = await proven(every_redis, tmp_owned, RedisContentValidator(at_least={0: 20, 9: 1}, sample=sample))
    assert verdict.passed
    assert verdict.level == Level.ASSERTIONS
    assert "21 keys in 2 databases, 19 values compared" in str(verdict)


async def test_values_that_changed_or_are_missing_are_named(redis7: TestRedis, tmp_owned: Path) -> None:
    fill(redis7)
    sample = await take_sample(redis7.url, match="small:*")
    assert len(sample.digests["0"]) == 8
    redis7.ask("HSET", "small:hash", "field 1", "another value")
    redis7.ask("DEL", "small:list")
    verdict = await proven(redis7, tmp_owned, RedisContentValidator(at_least={0: 99, 3: 1}, sample=sample))
    assert not verdict.passed
    assert verdict.level == Level.STARTS
    assert "b'small:hash' of database 0 holds something else" in str(verdict)
    assert "b'small:list' of database 0 is missing" in str(verdict)
    assert "database 0 has 19 keys, and has to have 99" in str(verdict)
    assert "database 3 has 0 keys" in str(verdict)


async def test_values_are_the_same_however_they_are_stored(new_redis: NewRedis) -> None:
    samples = []
    for more in (
        {},
        {"hash_max_listpack_entries": "0", "set_max_intset_entries": "0", "zset_max_listpack_entries": "0"},
    ):
        server = new_redis(**dict[str, str](more))
        fill(server)
        samples.append(await take_sample(server.url, match="*"))
    assert samples[0] == samples[1]


async def test_keys_are_chosen_by_chance_and_very_large_ones_by_their_length(
    redis7: TestRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content_module, "MOST", 10)
    redis7.ask("RPUSH", "list", *range(11))
    before = await take_sample(redis7.url, most=1)
    redis7.ask("LSET", "list", 0, "another")
    assert await take_sample(redis7.url, most=1) == before
    redis7.ask("RPUSH", "list", "one more")
    assert await take_sample(redis7.url, most=1) != before
