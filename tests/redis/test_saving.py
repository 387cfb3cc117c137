"""A save to the server's own disk is taken only when it is proven to be newer than the wish for it, and successful."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from resilience import Archive, backup
from resilience.model.errors import Conflict, Corrupt, Refused, TimedOut, Unavailable
from resilience.redis import RedisTarget
from resilience.redis.client import Url
from resilience.redis.saving import SavedRdb
from resilience.stores import MemoryStore
from resilience.testing.redis import TestRedis

from .conftest import NewRedis
from .data import fill
from .middle import middle
from .test_target import comes_back, no_more_processes


@pytest.fixture
def archive() -> Archive:
    return Archive(MemoryStore())


def target(server: TestRedis, name: str = "dump.rdb") -> RedisTarget:
    return RedisTarget("cache", url=server.url, file=server.folder / name)


async def test_what_the_server_saves_is_read_from_its_folder(
    every_redis: TestRedis, archive: Archive, tmp_owned: Path
) -> None:
    fill(every_redis)
    every_redis.ask("SAVE")
    for _ in range(3):  # also within the second of the last save
        every_redis.ask("INCR", "counter")
        manifest = (await backup(target(every_redis), archive)).manifest
        assert manifest.recovery_point.time is not None
        await comes_back(archive, every_redis, tmp_owned)


async def test_a_save_that_had_begun_before_is_waited_for_and_not_taken(
    new_redis: NewRedis, archive: Archive, tmp_owned: Path
) -> None:
    server = new_redis(rdb_key_save_delay="30000")
    fill(server)
    server.ask("BGSAVE")
    server.ask("SET", "after", "the save had begun")
    await backup(target(server), archive)
    await comes_back(archive, server, tmp_owned)


async def test_yesterdays_file_is_never_taken_for_todays(redis7: TestRedis, archive: Archive) -> None:
    fill(redis7)
    redis7.ask("SAVE")
    no_more_processes(redis7)
    with pytest.raises(Unavailable, match="cannot begin to save"):
        await backup(target(redis7), archive)
    assert [manifest async for manifest in archive.manifests("cache")] == []


async def test_a_copy_of_todays_file_under_another_name_is_not_taken(redis7: TestRedis, archive: Archive) -> None:
    fill(redis7)
    redis7.ask("ACL", "SETUSER", "backup", "on", ">secret", "+info", "+bgsave")  # no +time
    url = f"redis://backup:secret@127.0.0.1:{redis7.port}"
    redis7.ask("SAVE")
    shutil.copy(redis7.folder / "dump.rdb", redis7.folder / "copy.rdb")
    with pytest.raises(Conflict, match="not what it has saved"):
        await backup(RedisTarget("cache", url=url, file=redis7.folder / "copy.rdb"), archive)
    manifest = (await backup(RedisTarget("cache", url=url, file=redis7.folder / "dump.rdb"), archive)).manifest
    assert manifest.recovery_point.time is not None


async def test_without_a_clock_nothing_is_taken(redis7: TestRedis, archive: Archive) -> None:
    redis7.ask("ACL", "SETUSER", "backup", "on", ">secret", "+info", "+bgsave")
    said = redis7.ask("INFO", "everything")
    assert isinstance(said, dict)
    old = "".join(f"{name}:{said[name]}\r\n" for name in ("redis_version", "redis_mode", "role")).encode()  # 6.0
    async with middle(redis7, answers={b"INFO": b"$%d\r\n%b\r\n" % (len(old), old)}) as proxy:
        target = RedisTarget("cache", url=proxy.url.replace("//", "//backup:secret@"), file=redis7.folder / "dump.rdb")
        with pytest.raises(Refused, match=r"tell a new save from an old one.*\+time"):
            await backup(target, archive)


async def test_a_save_that_gets_no_further_is_not_waited_for(new_redis: NewRedis) -> None:
    server = new_redis(rdb_key_save_delay="1000000")
    server.fill(20)
    server.ask("BGSAVE")
    with pytest.raises(TimedOut, match=r"no further for 0.2 s"):
        await SavedRdb(Url.parse(server.url), server.folder / "dump.rdb", patience=0.2).save()


async def test_a_save_that_fails_is_no_backup(redis7: TestRedis, archive: Archive) -> None:
    fill(redis7)
    redis7.ask("SAVE")
    (redis7.folder / "dump.rdb").unlink()
    (redis7.folder / "dump.rdb" / "in its way").mkdir(parents=True)
    with pytest.raises(Unavailable, match="the save failed"):
        await backup(target(redis7), archive)


async def test_a_save_waits_for_a_rewrite_of_the_append_only_file(
    new_redis: NewRedis, archive: Archive, tmp_owned: Path
) -> None:
    server = new_redis(appendonly="yes", rdb_key_save_delay="30000")
    fill(server)
    server.ask("BGREWRITEAOF")
    await backup(target(server), archive)
    await comes_back(archive, server, tmp_owned)


async def test_a_file_that_is_not_the_servers_is_not_taken(new_redis: NewRedis, archive: Archive) -> None:
    server, other = new_redis(), new_redis()
    fill(server)
    with pytest.raises(Refused, match="cannot be read.*CONFIG GET dir"):
        await backup(target(server, "other.rdb"), archive)
    other.ask("SAVE")
    await asyncio.sleep(1.1)  # a header knows whole seconds
    with pytest.raises(Conflict, match="not what it has saved"):
        await backup(RedisTarget("cache", url=server.url, file=other.folder / "dump.rdb"), archive)
    (server.folder / "text").write_text("not an RDB")
    with pytest.raises(Corrupt, match="no RDB"):
        await backup(target(server, "text"), archive)
