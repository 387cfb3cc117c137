"""Backups from real servers, however they are reached and configured, and whatever happens to them meanwhile."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest

from resilience import Archive, backup, restore
from resilience.model.errors import Corrupt, Refused, TimedOut, Unavailable, Unreachable
from resilience.model.ids import new_id
from resilience.model.moments import utc_now
from resilience.model.plans import BackupPlan
from resilience.programs import tied
from resilience.redis import RedisAofTarget, RedisDataDirectory, RedisTarget, link
from resilience.redis.client import Url
from resilience.stores import MemoryStore
from resilience.testing.machine import unprivileged
from resilience.testing.redis import TestRedis

from .conftest import NewRedis
from .data import contents, fill
from .middle import middle

CHANCE = random.Random(6)  # noqa: S311  # the same every time


@pytest.fixture
def archive() -> Archive:
    return Archive(MemoryStore())


async def comes_back(archive: Archive, server: TestRedis, folder: Path) -> None:
    """Restore the newest backup and compare it with what the server holds."""
    into = RedisDataDirectory(folder / "data", program=server.binary)
    await restore(archive, "cache", into=into)
    async with into.live() as live:
        assert await contents(live.url) == await contents(server.url)
    await into.discard()


@pytest.mark.parametrize("disk", [False, True], ids=["diskless", "by disk"])
@pytest.mark.parametrize("sync", ["yes", "no"])
async def test_it_does_not_matter_how_the_server_synchronises(
    new_redis: NewRedis, archive: Archive, tmp_owned: Path, sync: str, disk: bool
) -> None:
    server = new_redis(repl_diskless_sync=sync)
    fill(server)
    report = await backup(RedisTarget("cache", url=server.url, disk=disk), archive)
    assert report.manifest.details["checksum"] is True
    await comes_back(archive, server, tmp_owned)


async def test_a_recovery_point_is_a_place_in_the_replication_stream(redis7: TestRedis, archive: Archive) -> None:
    fill(redis7)
    target = RedisTarget("cache", url=redis7.url)
    before = utc_now() - timedelta(seconds=2)  # the server's header knows whole seconds
    first = (await backup(target, archive)).manifest
    assert first.recovery_point.position.branch == redis7.info("master_replid")
    assert first.recovery_point.time is not None
    assert before <= first.recovery_point.time <= utc_now()
    redis7.ask("SET", "one more", "key")
    second = (await backup(target, archive)).manifest
    there, here = first.recovery_point.position, second.recovery_point.position
    assert here.branch == there.branch
    assert here.offset > there.offset
    assert first.lineage == second.lineage == "cache"


async def test_a_replica_gives_a_backup_of_its_masters_history(
    new_redis: NewRedis, archive: Archive, tmp_owned: Path
) -> None:
    master = new_redis(requirepass="secret", masterauth="secret")
    master.ask("SET", "key", "value", password="secret")
    replica = new_redis(replicaof=f"127.0.0.1 {master.port}", masterauth="secret")
    await caught_up(replica)
    report = await backup(RedisTarget("cache", url=replica.url), archive)
    assert report.manifest.recovery_point.position.branch == replica.info("master_replid")
    assert report.manifest.details["role"] == "slave"
    await comes_back(archive, replica, tmp_owned)


async def test_a_replica_knows_no_time_since_it_may_lag_while_its_link_is_up(
    new_redis: NewRedis, archive: Archive
) -> None:
    master = new_redis()
    replica = new_redis(replicaof=f"127.0.0.1 {master.port}", appendonly="yes")
    await caught_up(replica)
    master.pause()  # what it acknowledged just before may not have left it
    try:
        for target in (
            RedisTarget("cache", url=replica.url),
            RedisTarget("cache", url=replica.url, file=replica.folder / "dump.rdb"),
            RedisAofTarget("cache", url=replica.url),
        ):
            report = await backup(target, archive)
            assert replica.info("master_link_status") == "up"
            assert report.manifest.recovery_point.time is None
            assert "nobody knows until when" in str(report)
    finally:
        master.resume()


async def test_a_replica_without_its_master_is_refused(new_redis: NewRedis, archive: Archive) -> None:
    replica = new_redis(replicaof="127.0.0.1 1")
    with pytest.raises(Refused, match="lost its master"):
        await backup(RedisTarget("cache", url=replica.url), archive)
    with pytest.raises(Unavailable, match="NOMASTERLINK"):
        await captured(RedisTarget("cache", url=replica.url))


async def caught_up(replica: TestRedis) -> None:
    async with asyncio.timeout(20):
        while replica.info("master_link_status") != "up":
            await asyncio.sleep(0.02)


async def captured(target: RedisTarget) -> bytes:
    """Capture without a survey, which would have refused."""
    now = utc_now()
    plan = BackupPlan(
        id=new_id(now), target="cache", system=target.system, kind=target.kind, lineage="cache", made_at=now
    )
    read = b""
    async with target.capture(plan) as capture:
        async for part in capture.parts():
            async for chunk in part.chunks:
                read += chunk
        await capture.finish()
    return read


async def test_an_older_server_that_does_not_know_rdb_only_is_left_when_the_rdb_is_there(
    redis7: TestRedis, archive: Archive, tmp_owned: Path
) -> None:
    fill(redis7)
    refusal = {b"rdb-only": b"-ERR Unrecognized REPLCONF option: rdb-only\r\n"}
    async with middle(redis7, answers=refusal) as proxy:
        for disk in (False, True):
            await backup(RedisTarget("cache", url=proxy.url, disk=disk), archive)
            await comes_back(archive, redis7, tmp_owned)
    async with asyncio.timeout(20):
        while redis7.info("connected_slaves") != "0":
            await asyncio.sleep(0.02)


async def test_a_backup_while_another_replica_synchronises_shares_its_snapshot_and_says_a_time_that_is_true(
    new_redis: NewRedis, archive: Archive, tmp_owned: Path
) -> None:
    server = new_redis(repl_diskless_sync="no", rdb_key_save_delay="2000")
    fill(server)
    target = RedisTarget("cache", url=server.url)
    first = asyncio.create_task(backup(target, archive))
    async with asyncio.timeout(20):
        while server.info("rdb_bgsave_in_progress") != "1":
            await asyncio.sleep(0.01)
    moment = utc_now()
    second = (await backup(target, archive)).manifest
    await first
    assert second.recovery_point.time is not None
    assert second.recovery_point.time <= moment
    await comes_back(archive, server, tmp_owned)


async def test_a_user_needs_no_more_than_the_documents_say(redis7: TestRedis, archive: Archive) -> None:
    fill(redis7)
    redis7.ask("ACL", "SETUSER", "backup", "on", ">pass word", "+info", "+psync", "+replconf", "+time")
    url = f"redis://backup:pass%20word@127.0.0.1:{redis7.port}"
    report = await backup(RedisTarget("cache", url=url), archive)
    assert report.manifest.recovery_point.time is not None
    redis7.ask("ACL", "SETUSER", "backup", "-time")  # only 6.0 does not tell the time in INFO
    report = await backup(RedisTarget("cache", url=url), archive)
    assert report.manifest.recovery_point.time is not None


@pytest.mark.parametrize("missing", ["info", "psync", "replconf"])
async def test_what_a_user_lacks_is_named(redis7: TestRedis, archive: Archive, missing: str) -> None:
    redis7.ask("ACL", "SETUSER", "backup", "on", ">secret", "+info", "+psync", "+replconf", f"-{missing}")
    with pytest.raises(Refused, match=f"NOPERM.*'?{missing}.*ACL SETUSER"):
        await backup(RedisTarget("cache", url=f"redis://backup:secret@127.0.0.1:{redis7.port}"), archive)


async def test_a_wrong_password_is_refused_and_shown_nowhere(new_redis: NewRedis, archive: Archive) -> None:
    server = new_redis(requirepass="secret")
    for login in ("", ":wr0ng@", "nobody:wr0ng@"):
        target = RedisTarget("cache", url=f"redis://{login}127.0.0.1:{server.port}")
        for attempt in (backup(target, archive), captured(target)):
            with pytest.raises(Refused, match="check the user and the password") as caught:
                await attempt
            assert "wr0ng" not in str(caught.value) + repr(target) + str(caught.value.__cause__)
    report = await backup(RedisTarget("cache", url=f"redis://:secret@127.0.0.1:{server.port}"), archive)
    assert "secret" not in str(report.manifest)


async def test_a_unix_socket_will_do(new_redis: NewRedis, archive: Archive, tmp_owned: Path) -> None:
    server = new_redis(unixsocket=str(tmp_owned / "socket"))
    fill(server)
    await backup(RedisTarget("cache", url=f"unix://{tmp_owned}/socket"), archive)
    await comes_back(archive, server, tmp_owned)


async def test_nobody_there_is_unreachable(redis7: TestRedis, archive: Archive, tmp_path: Path) -> None:
    redis7.kill()
    for url in (redis7.url, f"unix://{tmp_path}/nothing"):
        target = RedisTarget("cache", url=url)
        for attempt in (backup(target, archive), captured(target)):
            with pytest.raises(Unreachable, match="no connection"):
                await attempt


async def test_an_rdb_builds_on_nothing(redis7: TestRedis, archive: Archive) -> None:
    report = await backup(RedisTarget("cache", url=redis7.url), archive, incremental=True)
    assert report.manifest.kind == "rdb"
    assert any("knows no incremental backups" in finding.text for finding in report.findings)


def no_more_processes(server: TestRedis) -> None:
    """Have the kernel refuse every fork of the server from now on, as its account itself may ask for."""
    command = ["/usr/bin/prlimit", f"--pid={server.pid}", "--nproc=0:0"]
    subprocess.run(tied(command, unprivileged()), check=True, cwd="/")


async def test_a_server_that_cannot_fork_says_so_and_nothing_is_kept(new_redis: NewRedis, archive: Archive) -> None:
    for sync in ("yes", "no"):
        server = new_redis(repl_diskless_sync=sync)
        fill(server)
        no_more_processes(server)
        for disk in (False, True):
            with pytest.raises(Unavailable, match="BGSAVE failed|closed the connection"):
                await backup(RedisTarget("cache", url=server.url, disk=disk), archive)
        assert [manifest async for manifest in archive.manifests("cache")] == []


async def test_a_stream_that_is_cut_anywhere_is_no_backup(redis7: TestRedis, archive: Archive) -> None:
    fill(redis7)
    async with middle(redis7) as proxy:
        whole = len(await captured(RedisTarget("cache", url=proxy.url)))
        sent = proxy.sent
    for size in CHANCE.sample(range(sent - whole - 200, sent - 1), 20):
        async with middle(redis7, cut_after=size) as proxy:
            with pytest.raises(Unavailable):
                await captured(RedisTarget("cache", url=proxy.url))
    assert len(await captured(RedisTarget("cache", url=redis7.url))) == pytest.approx(whole, abs=50)


async def test_a_byte_that_changes_on_the_way_is_noticed(redis7: TestRedis) -> None:
    fill(redis7)
    async with middle(redis7) as proxy:
        whole = len(await captured(RedisTarget("cache", url=proxy.url)))
        sent = proxy.sent
    for at in CHANCE.sample(range(sent - whole, sent - 48), 20):
        async with middle(redis7, spoil_at=at) as proxy:
            with pytest.raises((Corrupt, Unavailable)):
                await captured(RedisTarget("cache", url=proxy.url))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_server_that_ends_in_the_middle_leaves_no_backup(
    new_redis: NewRedis, archive: Archive, number: signal.Signals
) -> None:
    server = new_redis(rdb_key_save_delay="5000")
    fill(server)
    running = asyncio.create_task(backup(RedisTarget("cache", url=server.url), archive))
    async with asyncio.timeout(20):
        while server.info("rdb_bgsave_in_progress") != "1":
            await asyncio.sleep(0.01)
    server.kill() if number == signal.SIGKILL else server.stop()
    with pytest.raises(Unreachable):
        await running
    assert [manifest async for manifest in archive.manifests("cache")] == []
    server.start()
    fill(server)
    server.ask("CONFIG", "SET", "rdb-key-save-delay", "0")
    await backup(RedisTarget("cache", url=server.url), archive)


async def test_a_server_that_falls_silent_is_given_up(
    new_redis: NewRedis, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "ANSWER_SECONDS", 0.5)
    server = new_redis(rdb_key_save_delay="100000")
    fill(server)
    running = asyncio.create_task(captured(RedisTarget("cache", url=server.url)))
    async with asyncio.timeout(20):
        while server.info("rdb_bgsave_in_progress") != "1":
            await asyncio.sleep(0.01)
    server.pause()
    try:
        with pytest.raises(TimedOut):
            await running
    finally:
        server.resume()


async def test_a_server_that_is_loading_is_asked_again_later(new_redis: NewRedis, archive: Archive) -> None:
    server = new_redis(key_load_delay="100000", loading_process_events_interval_bytes="1024")
    fill(server)
    server.ask("SAVE")
    server.kill()
    starting = asyncio.create_task(asyncio.to_thread(server.start))
    async with asyncio.timeout(20):
        while True:
            try:
                await backup(RedisTarget("cache", url=server.url), archive)
            except Unreachable:
                continue
            except (Refused, Unavailable) as error:
                assert "oading" in str(error).lower()  # noqa: PT017  # any other would be raised
                break
            else:
                pytest.fail("it was ready before anybody could ask")
    await starting


def test_a_url_never_shows_its_secrets() -> None:
    url = Url.parse("rediss://user:s3cret@cache.example:6380/0?ssl_password=s3cret")
    assert "s3cret" not in f"{url} {url!r}"
    assert str(url) == "rediss://user@cache.example:6380"
    assert url.at("10.0.0.1", 1).where == "10.0.0.1:1"
    for wrong in ("http://user:s3cret@host", "redis://h:s3cret", "unix://", "redis://host?retry=s3cret"):
        with pytest.raises(ValueError, match="url") as caught:
            Url.parse(wrong)
        assert "s3cret" not in str(caught.value)
