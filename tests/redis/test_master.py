"""connect_master(): it writes to the master and to nobody else, and repeats nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import cast

import pytest
import redis
from redis import asyncio as aioredis
from redis.asyncio.sentinel import MasterNotFoundError

from resilience.redis.master import MasterPool, connect_master
from resilience.testing.sentinels import TestSentinels

SOON_SECONDS = 10.0
SHORT_SECONDS = 0.5


@asynccontextmanager
async def client_of(
    group: TestSentinels, *more: str, patience: float = SOON_SECONDS, members: bool = False
) -> AsyncIterator[aioredis.Redis]:
    places = [("127.0.0.1", each.port) for each in group.servers.values()] if members else []
    client = connect_master([*more, *group.addresses()], "orders", members=places, patience=patience, seconds=0.5)
    try:
        yield client
    finally:
        await client.aclose()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + SOON_SECONDS
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def served_by(client: aioredis.Redis) -> int:
    return int((await client.info("server"))["tcp_port"])


async def test_what_was_promoted_is_written_to_and_no_command_is_repeated(watched: TestSentinels) -> None:
    acknowledged, doubts = 0, 0
    async with client_of(watched) as client:
        await client.incr("count")
        acknowledged += 1
        await asyncio.to_thread(watched.caught_up)
        watched.kill("a")
        while await _incremented(client) is None:
            doubts += 1
        acknowledged += 1
        value = int(await client.get("count") or 0)
        assert acknowledged <= value <= acknowledged + doubts
        assert doubts <= 1, "the second one waited for a master"
        assert await served_by(client) in {watched.servers[name].port for name in "bc"}


async def _incremented(client: aioredis.Redis) -> int | None:
    try:
        return int(await client.incr("count"))
    except redis.ConnectionError:
        return None


async def test_who_waits_for_an_answer_is_told_as_soon_as_another_is_master(watched: TestSentinels) -> None:
    client = connect_master(watched.addresses(), "orders", answers_within=None)
    try:
        waiting = asyncio.ensure_future(cast("Awaitable[object]", client.blpop(["nothing"], timeout=0)))
        await asyncio.sleep(0.3)
        watched.master.pause()  # it hangs, and its connections stay open
        done, _ = await asyncio.wait([waiting], timeout=SOON_SECONDS)
        assert done
        with pytest.raises(redis.ConnectionError):
            waiting.result()
        assert await client.set("x", "y")
        watched.master.resume()  # it wakes up and takes writes: nobody of ours comes back to it
        assert await served_by(client) != watched.master.port
    finally:
        watched.master.resume()
        await client.aclose()


async def test_a_master_that_has_become_a_replica_is_left_and_the_write_was_not_done(watched: TestSentinels) -> None:
    async with client_of(watched, patience=SHORT_SECONDS) as client:
        await client.set("x", "before")
        watched.master.ask("REPLICAOF", "127.0.0.1", 1)
        with pytest.raises(redis.ReadOnlyError):
            await client.set("x", "after")
        with pytest.raises(MasterNotFoundError, match="no master"):
            await client.set("x", "after")
        watched.master.ask("REPLICAOF", "NO", "ONE")
        assert await client.get("x") == b"before"


async def test_a_stale_sentinel_leads_nobody_to_the_old_master(watched: TestSentinels) -> None:
    stale = watched.sentinels["s1"]
    stale.pause()
    watched.kill("a")
    watched.until(lambda: watched.named("s2") in ("b", "c"), "nobody was elected")
    watched.restart("a")
    await asyncio.to_thread(
        watched.until, lambda: watched.master.info("role") == "slave", "it is no replica", seconds=30
    )
    watched.master.ask("REPLICAOF", "NO", "ONE")  # as one that is cut off from the others is
    stale.resume()
    stale.ask("SENTINEL", "REMOVE", "orders")
    stale.ask("SENTINEL", "MONITOR", "orders", "127.0.0.1", watched.master.port, 3)
    assert watched.named("s1") == "a"
    async with client_of(watched) as client:
        assert await served_by(client) != watched.master.port


async def test_a_minority_of_sentinels_is_not_believed_but_the_members_are(watched: TestSentinels) -> None:
    watched.kill("s1", "s2")
    async with client_of(watched, patience=SHORT_SECONDS) as client:
        with pytest.raises(MasterNotFoundError, match="1 of 3 Sentinels answer"):
            await client.set("x", "y")
    async with client_of(watched, members=True) as client:
        assert await served_by(client) == watched.master.port


async def test_of_members_one_that_nobody_follows_is_no_master(watched: TestSentinels) -> None:
    watched.kill("s1", "s2", "s3", "b", "c")
    async with client_of(watched, patience=SHORT_SECONDS, members=True) as client:
        with pytest.raises(MasterNotFoundError):
            await client.set("x", "y")


async def test_hostnames_that_no_longer_resolve_are_passed_over_and_named(watched: TestSentinels) -> None:
    async with client_of(watched, "redis://one.invalid:26379") as client:
        assert await served_by(client) == watched.master.port
    gone = [f"redis://{name}.invalid:26379" for name in ("one", "two", "three", "four")]
    async with client_of(watched, *gone, patience=2) as client:
        with pytest.raises(MasterNotFoundError, match=r"3 of 7 Sentinels answer.*one\.invalid"):
            await client.set("x", "y")


async def test_closed_it_leaves_nothing_behind_and_may_be_used_again(watched: TestSentinels) -> None:
    before = asyncio.all_tasks()
    client = connect_master(watched.addresses(), "orders", decode_responses=True)
    for _ in range(2):
        await client.set("x", "y")
        assert await client.get("x") == "y"
        await client.aclose()
        assert asyncio.all_tasks() == before
    assert isinstance(client.connection_pool, MasterPool)


async def test_a_lost_sentinel_is_listened_to_again(watched: TestSentinels) -> None:
    async with client_of(watched) as client:
        await client.set("x", "y")
        watched.restart("s1", "s2", "s3")
        watched.kill("a")

        async def written() -> bool:
            try:
                return bool(await client.set("x", "z"))
            except redis.ConnectionError:
                return False

        await until(written)
        assert await served_by(client) != watched.master.port


def test_how_it_is_made_wrongly() -> None:
    with pytest.raises(ValueError, match="no Sentinel"):
        connect_master([], "orders")
    with pytest.raises(ValueError, match="network"):
        connect_master(["redis://s1:26379"], "orders", url="unix:///run/redis.sock")
