"""What `nox -s bench -- azure` times of ours, in a process of its own: backup and restore, and bare bytes put and got.

`python azure_ours.py REPORT CA VERB KEY ...`; the container's URL, with a SAS, comes in the environment as
BENCH_CONTAINER. KEY is the key file's path, empty for bytes that are not sealed.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from ours import peak_rss_mib, watch_loop
from resilience import Archive, backup, postgres, restore
from resilience.concurrency import in_thread
from resilience.keys import KeyFile
from resilience.model.capture import Captured, Part
from resilience.model.ids import new_id
from resilience.model.json import Offset
from resilience.model.plans import BackupPlan
from resilience.model.positions import Position, RecoveryPoint
from resilience.stores import AzureBlobStore

CHUNK = 4 << 20
HERE = Position(branch="1", offset=Offset(1), text="0/1")


async def from_file(file: Path) -> AsyncIterator[bytes]:
    """Read a file."""
    with file.open("rb", buffering=0) as opened:
        while chunk := await in_thread(opened.read, CHUNK):
            yield chunk


async def from_memory(mib: int) -> AsyncIterator[bytes]:
    """Yield bytes that cannot be compressed, the same again and again; no frame sees that."""
    chunk = os.urandom(CHUNK)
    for _ in range(0, mib << 20, CHUNK):
        yield chunk


async def put(archive: Archive, chunks: AsyncIterator[bytes]) -> int:
    """Keep bytes as a backup of one part; return how many they are."""
    now = datetime.now(UTC)
    plan = BackupPlan(id=new_id(now), target="bytes", system="files", kind="base", lineage="1", made_at=now)
    async with archive.draft(plan) as draft:
        stored = await draft.store(Part(name="bytes", chunks=chunks))
        await draft.publish(Captured(begins=HERE, recovery_point=RecoveryPoint(position=HERE)))
    return stored.size


async def get(archive: Archive) -> int:
    """Read that backup to its end, every frame proven; return its size."""
    size = 0
    [manifest] = [manifest async for manifest in archive.manifests("bytes")]
    async with archive.open(manifest) as stored, stored.read("bytes") as chunks:
        async for chunk in chunks:
            size += len(chunk)
    return size


async def run(archive: Archive, verb: str, arguments: list[str]) -> int:
    """Do one thing; return how many bytes were moved where that is what is measured."""
    if verb == "backup":
        dsn, _ = arguments
        await backup(postgres.PostgresTarget("bench", dsn=dsn), archive)
    elif verb == "restore":
        data, bin_dir = arguments
        await restore(archive, "bench", into=postgres.PostgresDataDirectory(data, bin_dir=bin_dir, leave="running"))
    elif verb == "put":
        return await put(archive, from_file(Path(arguments[0])))
    elif verb == "sink":
        return await put(archive, from_memory(int(arguments[0])))
    else:
        return await get(archive)
    return 0


async def measured(authority: str, verb: str, key: str, *arguments: str) -> Mapping[str, float]:
    """Do it and return what was seen from inside."""
    context = ssl.create_default_context(cafile=authority)
    container = os.environ["BENCH_CONTAINER"]
    if verb == "sink":  # it has any container, and what an earlier run left in one is no backup
        container = container.replace("?", f"-{os.getpid()}?")
    store = AzureBlobStore(container, ssl_context=context)
    archive = Archive(store, key=KeyFile(key) if key else None)
    worst = [0.0]
    watching = asyncio.create_task(watch_loop(worst))
    began = time.monotonic()
    moved = await run(archive, verb, list(arguments))
    seconds = time.monotonic() - began
    await store.aclose()
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    seen = {"loop_stall_ms": worst[0] * 1000, "own_peak_rss_mib": peak_rss_mib()}
    return seen | ({"mb_s": moved / seconds / 1e6} if moved else {})


def main(report: str, *arguments: str) -> None:
    """Measure and write the report."""
    Path(report).write_text(json.dumps(asyncio.run(measured(*arguments))))


if __name__ == "__main__":
    main(*sys.argv[1:])
