"""Plain transfers into a container and back, without us: what the service and the client's TLS allow.

`python raw.py REPORT CA WAY WHAT`: WAY is put or get of a file (aiohttp: Put Block and Put Block List, ranges),
upload_blob of it (the SDK, as its documentation shows it), or sink: aiohttp puts WHAT MiB that it makes up itself. The
container's URL, with a SAS, comes in the environment as BENCH_CONTAINER.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
from azure.storage.blob import ContainerClient

BLOCK = 8 << 20
AT_ONCE = 4
XML = '<?xml version="1.0" encoding="utf-8"?><BlockList>{}</BlockList>'
VERSION = {"x-ms-version": "2021-12-02"}


class Blob:
    """One blob behind a URL that allows everything."""

    def __init__(self, session: aiohttp.ClientSession, container: str, name: str) -> None:
        self.session = session
        path, _, sas = container.partition("?")
        self.url = f"{path}/{name}?{sas}"

    async def put(self, size: int, read: Callable[[int], Awaitable[bytes]]) -> None:
        """Write `size` bytes as a blob, some blocks at once; `read` returns the block that begins at a place."""
        names = [base64.b64encode(b"%08d" % n).decode() for n in range(-(-size // BLOCK))]
        waiting = list(enumerate(names))[::-1]
        await asyncio.gather(*(self._put_blocks(read, waiting) for _ in range(AT_ONCE)))
        listed = XML.format("".join(f"<Latest>{name}</Latest>" for name in names))
        async with self.session.put(f"{self.url}&comp=blocklist", data=listed.encode(), headers=VERSION) as answer:
            await expect(answer, 201)

    async def _put_blocks(self, read: Callable[[int], Awaitable[bytes]], waiting: list[tuple[int, str]]) -> None:
        while waiting:
            number, name = waiting.pop()
            block = await read(number * BLOCK)
            target = f"{self.url}&comp=block&blockid={name.replace('=', '%3D').replace('+', '%2B')}"
            async with self.session.put(target, data=block, headers=VERSION) as answer:
                await expect(answer, 201)

    async def get(self) -> int:
        """Read a blob, some ranges at once, and return its size; the bytes are thrown away."""
        async with self.session.head(self.url, headers=VERSION) as answer:
            await expect(answer, 200)
            size = int(answer.headers["Content-Length"])
        waiting = list(range(0, size, BLOCK))[::-1]
        await asyncio.gather(*(self._get_ranges(waiting) for _ in range(AT_ONCE)))
        return size

    async def _get_ranges(self, waiting: list[int]) -> None:
        while waiting:
            begin = waiting.pop()
            wanted = VERSION | {"x-ms-range": f"bytes={begin}-{begin + BLOCK - 1}"}
            async with self.session.get(self.url, headers=wanted) as answer:
                await expect(answer, 206)
                await answer.read()


def from_file(file: Path) -> Callable[[int], Awaitable[bytes]]:
    """Read the blocks of a file."""

    def read(begin: int) -> bytes:
        with file.open("rb", buffering=0) as opened:
            opened.seek(begin)
            return opened.read(BLOCK)

    return lambda begin: asyncio.to_thread(read, begin)


def from_memory() -> Callable[[int], Awaitable[bytes]]:
    """Give the same block again and again."""
    block = os.urandom(BLOCK)

    async def read(begin: int) -> bytes:
        return block

    return read


async def expect(answer: aiohttp.ClientResponse, status: int) -> None:
    """Raise RuntimeError if the service answered anything else."""
    if answer.status != status:
        raise RuntimeError(f"the service answered {answer.status}: {(await answer.read())[:500]!r}")


async def by_hand(way: str, what: str, container: str, ca: str) -> int:
    """Move bytes with aiohttp; return how many."""
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=ca), limit=AT_ONCE)
    async with aiohttp.ClientSession(connector=connector) as session:
        blob = Blob(session, container, "raw")
        if way == "get":
            return await blob.get()
        size = int(what) << 20 if way == "sink" else Path(what).stat().st_size
        await blob.put(size, from_memory() if way == "sink" else from_file(Path(what)))
        return size


def by_the_sdk(file: Path, container: str, ca: str) -> int:
    """Move a file with upload_blob; return its size."""
    client = ContainerClient.from_container_url(container, connection_verify=ca, max_block_size=BLOCK)
    with file.open("rb") as opened:
        client.upload_blob("sdk", opened, overwrite=True, max_concurrency=AT_ONCE)
    return file.stat().st_size


def main(report: str, ca: str, way: str, what: str) -> None:
    """Move bytes and write to the report how many a second that were."""
    container, began = os.environ["BENCH_CONTAINER"], time.monotonic()
    if way == "upload_blob":
        moved = by_the_sdk(Path(what), container, ca)
    else:
        moved = asyncio.run(by_hand(way, what, container, ca))
    Path(report).write_text(json.dumps({"mb_s": moved / (time.monotonic() - began) / 1e6}))


if __name__ == "__main__":
    main(*sys.argv[1:])
