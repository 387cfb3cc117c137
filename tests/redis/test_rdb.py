"""An RDB is walked to its end, whatever is in it and however it is cut; what is damaged or unknown is noticed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from resilience import Archive, backup
from resilience.model.errors import ChecksumMismatch, Corrupt, Unsupported
from resilience.model.findings import Level
from resilience.redis import RedisBackupValidator, RedisTarget, checking
from resilience.redis.rdb import Checksum, read_header
from resilience.redis.target import PART
from resilience.redis.walking import RdbWalker
from resilience.stores import MemoryStore
from resilience.testing.redis import TestRedis

from .conftest import NewRedis
from .data import fill

KEYS = 21
CHANCE = random.Random(7)  # noqa: S311  # the same every time


def saved(server: TestRedis) -> bytes:
    server.ask("SAVE")
    return (server.folder / "dump.rdb").read_bytes()


def walked(data: bytes, piece: int = 1 << 20) -> RdbWalker:
    walker = RdbWalker()
    for at in range(0, len(data), piece):
        walker.feed(data[at : at + piece])
    walker.close()
    return walker


@pytest.fixture
def rdb(redis7: TestRedis) -> bytes:
    fill(redis7)
    return saved(redis7)


def test_every_type_in_every_encoding_is_walked_over(every_redis: TestRedis) -> None:
    fill(every_redis)
    for limit in (None, 0):
        if limit is not None:
            for name in ("hash-max-listpack-entries", "zset-max-listpack-entries", "set-max-intset-entries"):
                every_redis.ask("CONFIG", "SET", name, limit)
            fill_again(every_redis)
        walker = walked(saved(every_redis))
        assert walker.keys == {0: KEYS - 1, 9: 1}
        assert walker.types == {"string": 9, "list": 2, "set": 4, "hash": 2, "sorted set": 2, "stream": 2}
        assert walker.expiring == 2
        assert walker.checked


def fill_again(server: TestRedis) -> None:
    server.ask("FLUSHALL")
    server.ask("FUNCTION", "FLUSH")
    fill(server)


def test_fields_that_expire_and_values_of_modules_are_walked_over(new_redis: NewRedis) -> None:
    server = new_redis(8)
    for key, limit in (("small", 512), ("large", 0)):
        server.ask("CONFIG", "SET", "hash-max-listpack-entries", limit)
        for number in range(9):
            server.ask("HSETEX", key, "EX", 1000, "FIELDS", 1, f"field {number}", "value")
    server.ask("VADD", "vectors", "VALUES", 3, 1, 2, 3, "element")
    assert walked(saved(server)).types == {"hash": 2, "module": 1}


@pytest.mark.parametrize("piece", [1, 2, 31, 33, 1000])
def test_how_an_rdb_is_cut_into_pieces_does_not_matter(rdb: bytes, piece: int) -> None:
    assert walked(rdb, piece).keys.total() == KEYS


def test_an_rdb_that_is_cut_off_anywhere_is_corrupt(rdb: bytes) -> None:
    for size in CHANCE.sample(range(len(rdb)), 200):
        with pytest.raises(Corrupt):
            walked(rdb[:size])


def test_an_rdb_with_a_byte_changed_anywhere_is_not_taken(rdb: bytes) -> None:
    for at in CHANCE.sample(range(len(rdb)), 200):
        damaged = bytearray(rdb)
        damaged[at] ^= 1 << CHANCE.randrange(8)
        with pytest.raises((Corrupt, Unsupported)):
            walked(bytes(damaged), 4096)


def test_an_rdb_that_goes_on_after_its_end_is_corrupt(rdb: bytes) -> None:
    for more in (b"x", b"x" * 100, rdb):
        with pytest.raises(Corrupt):
            walked(rdb + more)


def test_a_value_of_an_unknown_kind_is_named(rdb: bytes) -> None:
    with pytest.raises(Unsupported, match="unknown kind 99"):
        walked(b"REDIS0011" + bytes([99]) + b"\x03key" + b"\0" * 60)


def test_the_checksum_is_redis_own(rdb: bytes) -> None:
    checksum = Checksum()
    for at in range(0, len(rdb), 5):
        checksum.update(rdb[at : at + 5])
    assert checksum.verify()
    checksum = Checksum()
    checksum.update(rdb[:-20] + bytes([rdb[-20] ^ 1]) + rdb[-19:])
    with pytest.raises(ChecksumMismatch):
        checksum.verify()


def test_the_header_says_who_wrote_it_and_when(rdb: bytes) -> None:
    header = read_header(rdb)
    assert header.version == 10
    assert header.fields["redis-ver"].startswith("7.")
    assert header.forked is not None
    with pytest.raises(Corrupt, match="no RDB"):
        read_header(b"not an RDB")


async def test_a_validator_says_how_many_keys_it_has_seen(redis7: TestRedis) -> None:
    fill(redis7)
    archive = Archive(MemoryStore())
    manifest = (await backup(RedisTarget("cache", url=redis7.url), archive)).manifest
    async with archive.open(manifest) as stored:
        verdict = await RedisBackupValidator().check(stored)
        assert verdict.passed
        assert verdict.level == Level.PARSES
        assert verdict.bytes == manifest.part(PART).size
        assert f"{KEYS} keys in 2 databases" in str(verdict)
        verdict = await RedisBackupValidator(keys=KEYS + 1, at_least=1 << 30).check(stored)
        assert not verdict.passed
        assert "less than the floor of 1.0 GiB" in str(verdict)
        assert f"less than the floor of {KEYS + 1}" in str(verdict)


async def test_what_redis_itself_finds_damaged_does_not_pass(
    redis7: TestRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(redis7)
    archive = Archive(MemoryStore())
    manifest = (await backup(RedisTarget("cache", url=redis7.url), archive)).manifest
    async with archive.open(manifest) as stored:
        assert "redis-check-rdb finds it sound" in str(await RedisBackupValidator().check(stored))
        assert "redis-check-rdb" not in str(await RedisBackupValidator(program=False).check(stored))
        assert (await RedisBackupValidator(program="no-such-program").check(stored)).passed
        feed = checking._Check.feed
        monkeypatch.setattr(checking._Check, "feed", lambda check, chunk: feed(check, chunk[:-9] + b"x" * 9))
        verdict = await RedisBackupValidator().check(stored)
    assert not verdict.passed
    assert "redis-check-rdb finds it damaged: [offset" in str(verdict)


async def test_what_is_newer_than_redis_check_rdb_is_said(new_redis: NewRedis) -> None:
    server = new_redis(8)
    fill(server)
    archive = Archive(MemoryStore())
    manifest = (await backup(RedisTarget("cache", url=server.url), archive)).manifest
    async with archive.open(manifest) as stored:
        verdict = await RedisBackupValidator().check(stored)
    assert verdict.passed
    assert "redis-check-rdb could not read it: " in str(verdict)
    assert "RDB format version 12" in str(verdict)


async def test_a_redis_check_rdb_that_is_killed_or_fails_is_said(redis7: TestRedis, tmp_path: Path) -> None:
    redis7.fill(20_000)  # more than a pipe holds
    archive = Archive(MemoryStore())
    manifest = (await backup(RedisTarget("cache", url=redis7.url), archive)).manifest
    for number, script in enumerate(("kill -9 $$", "echo no memory >&2; exit 1")):
        program = tmp_path / f"check-{number}"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        async with archive.open(manifest) as stored:
            verdict = await RedisBackupValidator(program=program).check(stored)
        assert verdict.passed
        assert f"check-{number} could not read it: {'status -9' if number == 0 else 'no memory'}" in str(verdict)


async def test_an_rdb_without_a_checksum_is_taken_with_a_warning(new_redis: NewRedis) -> None:
    server = new_redis(7, rdbchecksum="no")
    fill(server)
    archive = Archive(MemoryStore())
    report = await backup(RedisTarget("cache", url=server.url), archive)
    assert any("no checksum" in finding.text for finding in report.findings)
    async with archive.open(report.manifest) as stored:
        verdict = await RedisBackupValidator().check(stored)
    assert verdict.passed
    assert any("no checksum" in finding.text for finding in verdict.findings)
