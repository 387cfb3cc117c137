"""Plain transfers of one file into a container and back, without us: what the service and the client's TLS allow.

`python raw.py REPORT CA WAY FILE`: WAY is put or get (aiohttp: Put Block and Put Block List, ranges) or upload_blob
(the SDK, as its documentation shows it). The container's URL, with a SAS, comes in the environment as BENCH_CONTAINER.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
import sys
import time
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

    async def put(self, file: Path) -> None:
        """Write a file as a blob, some blocks at once."""
        names = [base64.b64encode(b"%08d" % n).decode() for n in range(-(-file.stat().st_size // BLOCK))]
        waiting = list(enumerate(names))[::-1]
        await asyncio.gather(*(self._put_blocks(file, waiting) for _ in range(AT_ONCE)))
        listed = XML.format("".join(f"<Latest>{name}</Latest>" for name in names))
        async with self.session.put(f"{self.url}&comp=blocklist", data=listed.encode(), headers=VERSION) as answer:
            await expect(answer, 201)

    async def _put_blocks(self, file: Path, waiting: list[tuple[int, str]]) -> None:
        while waiting:
            number, name = waiting.pop()
            block = await asyncio.to_thread(read, file, number * BLOCK)
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


def read(file: Path, begin: int) -> bytes:
    """Read one block of a file."""
    with file.open("rb", buffering=0) as opened:
        opened.seek(begin)
        return opened.read(BLOCK)


async def expect(answer: aiohttp.ClientResponse, status: int) -> None:
    """Raise RuntimeError if the service answered anything else."""
    if answer.status != status:
        raise RuntimeError(f"the service answered {answer.status}: {(await answer.read())[:500]!r}")


async def by_hand(way: str, file: Path, container: str, ca: str) -> None:
    """Move the file with aiohttp."""
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=ca), limit=AT_ONCE)
    async with aiohttp.ClientSession(connector=connector) as session:
        blob = Blob(session, container, "raw")
        await (blob.put(file) if way == "put" else blob.get())


def by_the_sdk(file: Path, container: str, ca: str) -> None:
    """Move the file with upload_blob."""
    client = ContainerClient.from_container_url(container, connection_verify=ca, max_block_size=BLOCK)
    with file.open("rb") as opened:
        client.upload_blob("sdk", opened, overwrite=True, max_concurrency=AT_ONCE)


def main(report: str, ca: str, way: str, name: str) -> None:
    """Move one file and write to the report how many bytes a second that were."""
    container, file = os.environ["BENCH_CONTAINER"], Path(name)
    began = time.monotonic()
    if way == "upload_blob":
        by_the_sdk(file, container, ca)
    else:
        asyncio.run(by_hand(way, file, container, ca))
    Path(report).write_text(json.dumps({"mb_s": file.stat().st_size / (time.monotonic() - began) / 1e6}))


if __name__ == "__main__":
    main(*sys.argv[1:])
