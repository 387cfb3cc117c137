"""Data of every type for tests of Redis, and what a server holds, in a form that can be compared."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import redis
from redis.asyncio import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from resilience import Archive, restore
from resilience.programs import tied
from resilience.redis import RedisDataDirectory, RedisServer
from resilience.redis.client import Url, ask, commands
from resilience.testing.machine import free_port, unprivileged
from resilience.testing.redis import TestRedis


def fill(server: TestRedis) -> None:
    """Put something of every type into two databases, small and large, so that every encoding is there."""
    with server.client() as client, client.pipeline(transaction=False) as pipe:
        for size, name in ((3, "small"), (700, "large")):
            pipe.set(f"{name}:string", "text" * size)
            pipe.set(f"{name}:number", size * 123_456_789)
            pipe.rpush(f"{name}:list", *(f"element {number}" for number in range(size)))
            pipe.sadd(f"{name}:numbers", *range(size))
            pipe.sadd(f"{name}:set", *(f"member {number}" for number in range(size)))
            pipe.hset(f"{name}:hash", mapping={f"field {number}": f"value {number}" for number in range(size)})
            pipe.zadd(f"{name}:sorted", {f"member {number}": number / 8 for number in range(size)})
            for number in range(size):
                pipe.xadd(f"{name}:stream", {"number": number}, id=f"{number + 1}-0")
        pipe.xgroup_create("large:stream", "group", id="0")
        pipe.xreadgroup("group", "consumer", {"large:stream": ">"}, count=9)
        pipe.set("expires", "one day", ex=1_000_000)
        pipe.set("expires in ms", "one day", px=1_000_000_123)
        pipe.set("compresses", b"again and " * 1000)
        pipe.set(b"\x00\xff binary", bytes(range(256)))
        pipe.execute()
    with server.client(db=9) as client:
        client.set("in the ninth", "database")
    with server.client() as client, suppress(redis.ResponseError):  # Redis 6 knows no functions
        client.function_load("#!lua name=mine\nredis.register_function('f', function() return 1 end)")


async def contents(url: str) -> dict[tuple[int, bytes], object]:
    """Return all keys of all databases with what they hold, and which of them expire."""
    found: dict[tuple[int, bytes], object] = {}
    async with commands(Url.parse(url), operation="look") as client:
        for number in range(16):
            await ask(client, "SELECT", number)
            for key in await ask(client, "KEYS", "*"):
                found[number, key] = (await ask(client, "TYPE", key), await value(client, key), await end(client, key))
    return found


async def end(client: Redis, key: bytes) -> int:
    """Return when a key expires; Redis 6 tells only whether it does."""
    try:
        return int(await ask(client, "PEXPIRETIME", key))
    except redis.ResponseError:
        return int(await ask(client, "PTTL", key) >= 0)


READ = {
    b"string": ("GET",),
    b"list": ("LRANGE", 0, -1),
    b"set": ("SMEMBERS",),
    b"hash": ("HGETALL",),
    b"zset": ("ZRANGE", 0, -1, "WITHSCORES"),
    b"stream": ("XRANGE", "-", "+"),
}


async def value(client: redis.asyncio.Redis, key: bytes) -> object:
    kind = await ask(client, "TYPE", key)
    command, *rest = READ[kind]
    answer = await ask(client, str(command), key, *rest)
    return sorted(answer) if kind in (b"set", b"hash") else answer


def runs_on(server: TestRedis, data: Path, *, appendonly: bool = False, seconds: float = 10) -> bool:
    """Say whether a server of the same kind starts on a copy of a folder and finds something there."""
    if not data.exists() or not any(data.iterdir()):
        return False
    copy = data.with_name("copy")
    shutil.copytree(data, copy)
    if account := unprivileged():
        for path in (copy, *copy.rglob("*")):
            shutil.chown(path, account.uid, account.gid)
    port = free_port()
    options = {"port": str(port), "dir": str(copy), "save": "", "appendonly": "yes" if appendonly else "no"}
    command = [str(server.binary), *(word for name, value in options.items() for word in (f"--{name}", value))]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(tied(command, unprivileged()), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + seconds
            while process.poll() is None and time.monotonic() < deadline:
                try:
                    with redis.Redis(port=port, socket_timeout=seconds, retry=Retry(NoBackoff(), 0)) as client:
                        return bool(client.info("keyspace"))
                except (redis.ConnectionError, redis.BusyLoadingError):
                    time.sleep(0.01)
            return False
        finally:
            process.kill()
            process.wait()
            shutil.rmtree(copy)


async def assert_comes_back(archive: Archive, server: TestRedis, other: TestRedis, folder: Path) -> None:
    """Restore into a folder and into a server that runs; all must be as `server` has it."""
    for into in (
        RedisDataDirectory(folder / "data", program=server.binary),
        RedisServer(url=other.url, program=server.binary),
    ):
        await restore(archive, "cache", into=into)
        async with into.live() as live:
            assert await contents(live.url) == await contents(server.url)
