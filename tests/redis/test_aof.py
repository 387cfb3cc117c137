"""An append-only file is backed up whole whatever the server does meanwhile, and nothing of the server is changed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from resilience.archive import Archive
from resilience.model.errors import Corrupt, Interrupted, Refused, Unavailable
from resilience.model.findings import Level
from resilience.model.manifests import Manifest
from resilience.model.moments import utc_now
from resilience.operations.backup import backup
from resilience.operations.restore import restore
from resilience.operations.verify import verify
from resilience.planning.backup import plan_backup
from resilience.redis import RedisAofTarget, RedisAofValidator, RedisDataDirectory, RedisScratch, RedisServer
from resilience.redis.aof import holding
from resilience.redis.aof.surveying import obstacles
from resilience.redis.client import Url, ask, commands
from resilience.redis.isolation import LiveRedis
from resilience.redis.survey import Info, ask_info
from resilience.stores import MemoryStore
from resilience.testing.redis import TestRedis

from .aof_data import files, rewrite, rewritten, slowly
from .conftest import MAJORS, NewRedis
from .data import contents, fill


@pytest.fixture(params=MAJORS, ids=lambda major: f"redis{major}")
def server(request: pytest.FixtureRequest, new_redis: NewRedis) -> TestRedis:
    major: int = request.param
    return new_redis(major, appendonly="yes")


@pytest.fixture
def server7(new_redis: NewRedis) -> TestRedis:
    return new_redis(7, appendonly="yes")


@pytest.fixture
def archive() -> Archive:
    return Archive(MemoryStore())


def target(server: TestRedis, **more: object) -> RedisAofTarget:
    return RedisAofTarget("cache", url=server.url, **more)  # type: ignore[arg-type]


@asynccontextmanager
async def living(server: TestRedis, archive: Archive, tmp_owned: Path) -> AsyncIterator[LiveRedis]:
    scratch = RedisScratch(program=server.binary, within=tmp_owned)
    await restore(archive, "cache", into=scratch)
    try:
        async with scratch.live() as live:
            yield live
    finally:
        await scratch.discard()


async def found(server: TestRedis, archive: Archive, tmp_owned: Path) -> dict[tuple[int, bytes], object]:
    async with living(server, archive, tmp_owned) as live:
        return await contents(live.url)


async def taken(server: TestRedis, archive: Archive) -> Manifest:
    return (await backup(target(server), archive)).manifest


async def test_a_backup_verifies_to_a_server_that_starts(server: TestRedis, archive: Archive, tmp_owned: Path) -> None:
    fill(server)
    rewrite(server)
    with server.client() as client:
        client.pipeline().set("in", "a transaction").incr("counter").execute()
        client.set("large", b"\r\n*1\r\n" * 400_000)
    manifest = await taken(server, archive)
    scratch = RedisScratch(program=server.binary, within=tmp_owned)
    verdict = await verify(archive, manifest, validators=[RedisAofValidator()], scratch=scratch)
    assert verdict.passed, verdict
    assert verdict.level == Level.STARTS
    assert await found(server, archive, tmp_owned) == await contents(server.url)


async def test_it_comes_back_for_a_server_without_an_append_only_file(
    server7: TestRedis, archive: Archive, tmp_owned: Path
) -> None:
    fill(server7)
    await taken(server7, archive)
    directory = RedisDataDirectory(tmp_owned / "data", program=server7.binary)
    await restore(archive, "cache", into=directory)
    assert sorted(path.name for path in directory.path.rglob("*")) == ["dump.rdb"]
    async with directory.live() as live:
        assert await contents(live.url) == await contents(server7.url)


async def test_it_comes_back_in_a_server_that_runs(
    server7: TestRedis, new_redis: NewRedis, archive: Archive, tmp_owned: Path
) -> None:
    fill(server7)
    await taken(server7, archive)
    other = new_redis(7)
    await restore(archive, "cache", into=RedisServer(url=other.url, program=other.binary, within=tmp_owned))
    assert await contents(other.url) == await contents(server7.url)


async def test_the_append_only_file_of_a_valkey_comes_back(
    new_redis: NewRedis, archive: Archive, tmp_owned: Path
) -> None:
    valkey = new_redis(9, appendonly="yes")
    fill(valkey)
    rewrite(valkey)
    valkey.fill(10)
    manifest = await taken(valkey, archive)
    assert manifest.details["product"] == "valkey"
    assert (await verify(archive, manifest, validators=[RedisAofValidator()])).passed
    assert await found(valkey, archive, tmp_owned) == await contents(valkey.url)


async def test_what_was_acknowledged_before_the_backup_began_is_in_it_under_load(
    server: TestRedis, archive: Archive, tmp_owned: Path
) -> None:
    acknowledged, stop = 0, False

    def write() -> None:
        nonlocal acknowledged
        with server.client() as client:
            while not stop:
                pipe = client.pipeline()
                for number in range(acknowledged, acknowledged + 50):
                    pipe.set(f"key:{number}", number)
                pipe.execute()
                acknowledged += 50
                time.sleep(0.002)

    writing = asyncio.create_task(asyncio.to_thread(write))
    try:
        for _ in range(3):
            await asyncio.sleep(0.05)
            known = acknowledged
            manifest = await taken(server, archive)
            verdict = await verify(archive, manifest, validators=[RedisAofValidator()])
            assert verdict.passed, verdict
            async with (
                living(server, archive, tmp_owned) as live,
                commands(Url.parse(live.url), operation="look") as asked,
            ):
                keys = set(await ask(asked, "KEYS", "*"))
            assert {f"key:{number}".encode() for number in range(known)} <= keys
            assert len(keys) % 50 == 0, "a transaction is there whole or not at all"
    finally:
        stop = True
        await writing


async def test_a_rewrite_may_run_and_end_while_it_is_read(server: TestRedis, archive: Archive, tmp_owned: Path) -> None:
    server.fill(200)
    rewrite(server)
    slowly(server, 5_000)
    server.ask("SET", "before", "the rewrite")
    server.ask("SET", "during", "the rewrite")
    before = await contents(server.url)
    plan = plan_backup(await target(server).survey(), id="20260101T000000.000Z-aaaaaa", now=utc_now())
    server.ask("DEL", "during")
    server.ask("BGREWRITEAOF")
    server.ask("SET", "during", "the rewrite")
    async with target(server).capture(plan) as capture, archive.draft(plan) as draft:
        assert len(files(server)) == 4, "the base, two increments, the manifest: the rewrite runs"
        slowly(server, 0)
        rewritten(server)
        server.ask("SET", "after", "the rewrite")
        rewrite(server)
        async for part in capture.parts():
            await draft.store(part)
        await draft.publish(await capture.finish())
    assert await found(server, archive, tmp_owned) == before


async def test_a_rewrite_that_begins_while_the_files_are_opened_is_noticed(
    server7: TestRedis, archive: Archive, tmp_owned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(server7)
    opened = holding.Holding.open
    times = 0

    def open_late(self: holding.Holding) -> bool:
        nonlocal times
        times += 1
        done = opened(self)
        if times in (2, 3):
            server7.ask("SET", f"written {times}", "meanwhile")
            rewrite(server7)
        return done

    monkeypatch.setattr(holding.Holding, "open", open_late)
    await taken(server7, archive)
    assert times == 4
    assert await found(server7, archive, tmp_owned) == await contents(server7.url)


async def test_an_older_append_only_file_is_not_taken_for_the_one_that_is_being_made(
    server: TestRedis, archive: Archive, tmp_owned: Path
) -> None:
    server.fill(200)
    server.ask("CONFIG", "SET", "appendonly", "no")
    server.ask("SET", "since", "then")
    slowly(server, 5_000)
    server.ask("CONFIG", "SET", "appendonly", "yes")
    with pytest.raises(Unavailable, match="not come to rest within 0.2 s"):
        await backup(target(server, patience=0.2), archive)
    await taken(server, archive)
    assert await found(server, archive, tmp_owned) == await contents(server.url)


async def test_writes_that_a_slow_disk_holds_back_are_waited_for(
    server7: TestRedis, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    async def held_back(client: Redis, *sections: str) -> Info:
        nonlocal asked
        asked += 1
        info = await ask_info(client, *sections)
        return Info({**info.lines, "aof_buffer_length": "10"}) if asked == 1 else info

    monkeypatch.setattr(holding, "ask_info", held_back)

    async def write() -> None:
        await asyncio.sleep(0.2)
        server7.ask("SET", "more than", "ten bytes")

    server7.ask("SET", "a", "b")
    _, manifest = await asyncio.gather(write(), taken(server7, archive))
    assert asked > 4
    assert manifest.details["files"]


STARTED = """
import asyncio, os, sys
from resilience.planning.backup import plan_backup
from resilience.model.moments import utc_now
from resilience.redis import RedisAofTarget
async def main():
    target = RedisAofTarget("cache", url=sys.argv[1])
    plan = plan_backup(await target.survey(), id="20260101T000000.000Z-aaaaaa", now=utc_now())
    async with target.capture(plan):
        print("captured", flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["killed", "cancelled", "failed"])
async def test_nothing_of_the_server_is_changed_however_the_backup_ends(
    server: TestRedis, archive: Archive, how: str
) -> None:
    fill(server)
    settings, there = server.ask("CONFIG", "GET", "*"), files(server)
    plan = plan_backup(await target(server).survey(), id="20260101T000000.000Z-aaaaaa", now=utc_now())
    if how == "killed":
        process = subprocess.Popen([sys.executable, "-c", STARTED, server.url], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"captured\n"
        assert server.ask("CONFIG", "GET", "*") == settings
        process.kill()
        process.wait()
        process.stdout.close()
    elif how == "cancelled":
        async with asyncio.timeout(10):
            with pytest.raises(asyncio.CancelledError):
                async with target(server).capture(plan):
                    raise asyncio.CancelledError
    else:
        with pytest.raises(KeyError):
            async with target(server).capture(plan):
                raise KeyError
    assert server.ask("CONFIG", "GET", "*") == settings
    assert files(server).keys() == there.keys()
    await taken(server, archive)


async def test_a_server_that_is_killed_and_started_again_meanwhile_changes_nothing(
    server: TestRedis, archive: Archive, tmp_owned: Path
) -> None:
    fill(server)
    before = await contents(server.url)
    plan = plan_backup(await target(server).survey(), id="20260101T000000.000Z-aaaaaa", now=utc_now())
    async with target(server).capture(plan) as capture, archive.draft(plan) as draft:
        server.kill()
        server.start()
        server.ask("SET", "after", "the restart")
        async for part in capture.parts():
            await draft.store(part)
        await draft.publish(await capture.finish())
    assert await found(server, archive, tmp_owned) == before


async def test_a_server_that_cut_a_damaged_end_off_counts_wrongly_until_it_rewrites(
    server: TestRedis, archive: Archive
) -> None:
    server.fill(10)
    server.stop()
    with next(Path(server.folder, "appendonlydir").glob("*.incr.aof")).open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$4\r\nab")
    server.start()
    with pytest.raises(Refused, match="the server counts .* BGREWRITEAOF"):
        await taken(server, archive)
    rewrite(server)
    await taken(server, archive)


async def test_another_servers_folder_is_refused(new_redis: NewRedis, archive: Archive) -> None:
    one, other = (new_redis(7, appendonly="yes") for _ in range(2))
    one.fill(10)
    with pytest.raises(Refused, match="is not the one that this server writes"):
        await backup(target(one, folder=other.folder / "appendonlydir"), archive)


async def test_a_folder_that_is_elsewhere_is_refused_in_one_sentence(server7: TestRedis, archive: Archive) -> None:
    with pytest.raises(Refused, match="there is no such folder here .*RedisTarget, which needs no disk"):
        await backup(target(server7, folder=Path("/nowhere/appendonlydir")), archive)


async def test_a_user_that_may_only_ask_for_info_and_one_that_may_not_ask_where(
    server7: TestRedis, archive: Archive
) -> None:
    server7.ask("ACL", "SETUSER", "little", "on", ">secret", "+info")
    url = server7.url.replace("redis://", "redis://little:secret@")
    with pytest.raises(Refused, match=r"this user may not ask .*\+config\|get.* or name the folder with folder="):
        await backup(RedisAofTarget("cache", url=url), archive)
    await backup(RedisAofTarget("cache", url=url, folder=server7.folder / "appendonlydir"), archive)
    server7.ask("ACL", "SETUSER", "little", "+config|get")
    await backup(RedisAofTarget("cache", url=url), archive)


async def test_a_server_without_an_append_only_file_is_refused(redis7: TestRedis, archive: Archive) -> None:
    with pytest.raises(Refused, match="keeps no append-only file .*CONFIG SET appendonly yes"):
        await taken(redis7, archive)


def test_the_single_file_of_redis_6_is_refused_and_it_is_said_why() -> None:
    info = Info({"redis_version": "6.2.14", "redis_mode": "standalone", "aof_enabled": "1"})
    (finding,) = obstacles(info, "here")
    assert finding.severity == "blocker"
    assert "Redis 6.2.14 keeps its append-only file in one piece" in finding.text
    assert "RedisTarget" in finding.hint


async def test_a_failed_rewrite_keeps_nobody_from_a_backup(server7: TestRedis, archive: Archive) -> None:
    server7.fill(500)
    slowly(server7, 20_000)
    server7.ask("BGREWRITEAOF")
    children = Path(f"/proc/{server7.pid}/task/{server7.pid}/children")
    while not (child := children.read_text().split()):
        time.sleep(0.01)
    os.kill(int(child[0]), signal.SIGKILL)
    rewritten(server7)
    report = await backup(target(server7), archive)
    assert any("last rewrite" in finding.text for finding in report.findings)
    assert len(report.manifest.parts) == 4, "the base and two increments"


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-3],
        lambda data: data + b"*1\r\n$5\r\nMULTI\r\n",
        lambda data: data.replace(b"$3\r\nSET", b"$4\r\nSET", 1),
        lambda data: b"REDIS0011" + data,
    ],
    ids=["cut off", "half a transaction", "a wrong length", "taken over from Redis 6"],
)
async def test_damage_from_before_the_backup_is_found_by_the_validator(
    server7: TestRedis, archive: Archive, damage: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    server7.fill(100)
    chunks = holding.Held.chunks

    def damaged(self: holding.Held, operation: str) -> object:
        data = b"".join(chunks(self, operation))
        yield damage(data) if self.file.type == "i" else data

    monkeypatch.setattr(holding.Held, "chunks", damaged)
    manifest = await taken(server7, archive)
    verdict = await verify(archive, manifest, validators=[RedisAofValidator()])
    assert not verdict.passed
    assert verdict.level == Level.CHECKSUMS


async def test_a_base_whose_checksum_is_wrong_is_no_backup(server7: TestRedis, archive: Archive) -> None:
    server7.fill(100)
    rewrite(server7)
    base = next(Path(server7.folder, "appendonlydir").glob("*.base.rdb"))
    data = bytearray(base.read_bytes())
    data[len(data) // 2] ^= 1
    base.write_bytes(data)
    with pytest.raises(Corrupt, match="checksum"):
        await taken(server7, archive)
    assert [manifest async for manifest in archive.manifests("cache")] == []


async def test_a_file_that_is_cut_off_while_it_is_read_is_no_backup(server7: TestRedis, archive: Archive) -> None:
    server7.fill(100)
    plan = plan_backup(await target(server7).survey(), id="20260101T000000.000Z-aaaaaa", now=utc_now())
    with pytest.raises(Interrupted, match="cut off to 10 bytes"):
        async with target(server7).capture(plan) as capture:
            os.truncate(next(Path(server7.folder, "appendonlydir").glob("*.incr.aof")), 10)
            async for part in capture.parts():
                async for _ in part.chunks:
                    pass
