"""Back up a real Redis while it is written to, lose its keys, bring them back into the server without stopping it.

Takes some seconds and leaves nothing behind. `python3 noxfile.py -s redis` installs what this needs and runs it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

# A script called redis.py would hide the package of that name.
sys.path[:] = [folder for folder in sys.path if Path(folder or ".").resolve() != Path(__file__).resolve().parent]

from redis.asyncio import Redis  # noqa: E402

from resilience import Archive, Level, ResilienceError, backup, restore, verify  # noqa: E402
from resilience.redis import (  # noqa: E402
    RedisBackupValidator,
    RedisContentValidator,
    RedisScratch,
    RedisServer,
    RedisTarget,
    take_sample,
)
from resilience.stores import LocalStore  # noqa: E402
from resilience.testing.machine import owned_folder  # noqa: E402
from resilience.testing.redis import MissingRedis, TestRedis, find_redis, running_redis  # noqa: E402

TESTBED = Path(__file__).parent.parent / ".testbed"
MAJORS = (7, 8)
SESSIONS = 20_000


async def main(server: TestRedis, folder: Path, sessions: int) -> None:
    """Tell the story, with a server and a folder for its backups."""
    within = owned_folder(folder / "scratch")
    archive = Archive(LocalStore(folder / "backups"))
    async with Redis(port=server.port) as client:
        await fill(client, sessions)
        print(f"A Redis {server.info('redis_version')} holds {await client.dbsize():,} keys, and is written to.")

        sample = await take_sample(server.url, match="session:*")
        async with visitors(client):
            report = await backup(RedisTarget("cache", url=server.url), archive)
        print(report)

        verdict = await verify(
            archive,
            report.manifest,
            validators=[RedisBackupValidator(keys=sessions)],
            scratch=RedisScratch(program=server.binary, within=within),
            assertions=[RedisContentValidator(at_least={0: sessions}, sample=sample)],
        )
        print(verdict)
        expect(verdict.passed and verdict.level is Level.ASSERTIONS, "the backup was not proven")

        await client.flushall()
        print(f"Somebody runs FLUSHALL: {await client.dbsize()} keys are left. Its clients stay connected.")

        restored = await restore(
            archive, "cache", into=RedisServer(url=server.url, program=server.binary, within=within)
        )
        print(restored)
        expect(await client.get("session:7") == value(7), "the session is not what it was")
        again = await take_sample(server.url, match="session:*")
        kept = {key for key, digest in sample.digests["0"].items() if again.digests["0"].get(key, digest) == digest}
        expect(len(kept) == len(sample.digests["0"]), "some sessions are not what they were")
        print(f"{await client.dbsize():,} keys are back, in the same server, which takes writes again.")
        await client.set("session:0", "written after the restore")


async def fill(client: Redis, sessions: int) -> None:
    """Write some sessions, a queue and a board of scores."""
    for first in range(0, sessions, 1000):
        async with client.pipeline(transaction=False) as pipe:
            for number in range(first, min(first + 1000, sessions)):
                pipe.set(f"session:{number}", value(number))
            await pipe.execute()
    await client.rpush("queue", *range(1000))
    await client.zadd("board", {f"player {number}": number for number in range(1000)})


def value(number: int) -> bytes:
    """Return what a session holds."""
    return f'{{"user": {number}, "language": "en", "theme": "dark"}}'.encode() * 4


@asynccontextmanager
async def visitors(client: Redis) -> AsyncIterator[None]:
    """Count visits while entered."""
    left = asyncio.Event()

    async def visit() -> None:
        while not left.is_set():  # on Python 3.11 redis-py may forget a cancellation
            await client.incr("visits")

    visiting = asyncio.create_task(visit())
    try:
        yield
    finally:
        left.set()
        await visiting


def expect(held: object, otherwise: str) -> None:
    """End with what is wrong unless something held."""
    if not held:
        sys.exit(f"This should not happen: {otherwise}.")


def run() -> None:
    """Start a server, tell the story, clean up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=SESSIONS, help="how many keys (default: %(default)s)")
    sessions = parser.parse_args().sessions
    with tempfile.TemporaryDirectory(prefix="resilience-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        with running_redis(folder / "server", found()) as server:
            try:
                asyncio.run(main(server, folder, sessions))
            except ResilienceError as error:
                sys.exit(str(error))


def found() -> Path:
    """Find a server, the machine's own first."""
    for major in MAJORS:
        try:
            return find_redis(TESTBED, major)
        except MissingRedis as error:
            missing = error
    sys.exit(str(missing))


if __name__ == "__main__":
    run()
