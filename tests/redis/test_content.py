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
from resilience.redis import digests as digests_module
from resilience.redis.isolation import LiveRedis
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
    assert sample.keys == {"0": 18, "9": 1}  # two expire
    assert len(sample.digests["0"]) == 18
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


async def test_keys_are_chosen_by_chance_and_the_largest_ones_compared_by_their_length(
    redis7: TestRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests_module, "MOST", 10)
    redis7.ask("SADD", "set", *range(11))
    before = await take_sample(redis7.url, most=1)
    redis7.ask("SREM", "set", 0)
    redis7.ask("SADD", "set", "another")
    assert await take_sample(redis7.url, most=1) == before
    verdict = await RedisContentValidator(sample=before).check(LiveRedis(redis7.url))
    assert verdict.passed
    assert "1 of the values were compared by their type and length alone" in str(verdict)
    redis7.ask("SADD", "set", "one more")
    assert await take_sample(redis7.url, most=1) != before


async def test_a_change_anywhere_in_a_large_value_is_seen(redis7: TestRedis) -> None:
    with redis7.client() as client:
        client.set("string", bytes(3 << 20))
        client.rpush("list", *range(2500))
        client.sadd("set", *range(2500))
        client.hset("hash", mapping={str(number): number for number in range(2500)})
        client.zadd("sorted", {str(number): number for number in range(2500)})
        with client.pipeline(transaction=False) as pipe:
            for number in range(1, 2501):
                pipe.xadd("stream", {"number": number}, id=f"1-{number}")
            pipe.execute()
    sample = await take_sample(redis7.url, match="*")
    validator = RedisContentValidator(sample=sample)
    assert (await validator.check(LiveRedis(redis7.url))).passed
    redis7.ask("SETRANGE", "string", (3 << 20) - 1, b"x")
    redis7.ask("LSET", "list", -1, "x")
    redis7.ask("SREM", "set", 2499)
    redis7.ask("SADD", "set", "x")
    redis7.ask("HSET", "hash", "2499", "x")
    redis7.ask("ZADD", "sorted", "2498.5", "2499")
    redis7.ask("XDEL", "stream", "1-2500")
    redis7.ask("XADD", "stream", "1-2501", "number", "x")
    verdict = await validator.check(LiveRedis(redis7.url))
    assert str(verdict).count("holds something else") == 6


async def test_of_a_modules_value_the_type_is_compared_and_that_is_said(new_redis: NewRedis) -> None:
    server = new_redis(8)
    server.ask("VADD", "vectors", "VALUES", 2, 1, 1, "element")
    sample = await take_sample(server.url)
    verdict = await RedisContentValidator(sample=sample).check(LiveRedis(server.url))
    assert verdict.passed
    assert "1 of the values were compared by their type" in str(verdict)
    server.ask("DEL", "vectors")
    server.ask("SET", "vectors", "text")
    assert not (await RedisContentValidator(sample=sample).check(LiveRedis(server.url))).passed


async def test_a_value_of_another_type_is_something_else(redis7: TestRedis) -> None:
    redis7.ask("RPUSH", "key", "value")
    sample = await take_sample(redis7.url)
    redis7.ask("DEL", "key")
    redis7.ask("SADD", "key", "value")
    assert not (await RedisContentValidator(sample=sample).check(LiveRedis(redis7.url))).passed


async def test_the_numbers_of_keys_are_compared_but_for_those_that_expire(redis7: TestRedis) -> None:
    for number in range(10):
        redis7.ask("SET", f"key:{number}", number)
        redis7.ask("SET", f"session:{number}", number, "EX", 1000)
    sample = await take_sample(redis7.url, match="key:0")
    strict, loose = RedisContentValidator(sample=sample), RedisContentValidator(sample=sample, tolerance=0.5)
    redis7.ask("DEL", "key:9", *(f"session:{number}" for number in range(10)))
    assert (await strict.check(LiveRedis(redis7.url))).passed
    redis7.ask("DEL", "key:8")
    verdict = await strict.check(LiveRedis(redis7.url))
    assert "has 8 keys that do not expire, and had 10" in str(verdict)
    assert (await loose.check(LiveRedis(redis7.url))).passed


async def test_nothing_to_compare_proves_nothing(redis7: TestRedis) -> None:
    redis7.ask("SET", "key", "value")
    nothing = await take_sample(redis7.url, match="typo:*")
    for validator in (
        RedisContentValidator(),
        RedisContentValidator(at_least={0: 0}),
        RedisContentValidator(sample=nothing),
        RedisContentValidator(sample=nothing, at_least={0: 1}),
    ):
        verdict = await validator.check(LiveRedis(redis7.url))
        assert not verdict.passed
        assert "there is nothing to compare" in str(verdict)
    assert (await RedisContentValidator(at_least={0: 1}).check(LiveRedis(redis7.url))).passed
