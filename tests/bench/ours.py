"""What `nox -s bench -- backup` times of ours: one backup or one restore in a process of its own, the loop watched."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from resilience import Archive, backup, postgres, restore
from resilience.stores import LocalStore

LOOK_SECONDS = 0.002


async def watch_loop(worst: list[float]) -> None:
    """Note how much later than asked the loop wakes us."""
    while True:
        before = time.monotonic()
        await asyncio.sleep(LOOK_SECONDS)
        worst[0] = max(worst[0], time.monotonic() - before - LOOK_SECONDS)


async def run(verb: str, root: str, name: str, where: str, bin_dir: str) -> None:
    """Do one thing; `where` is the server's dsn for a backup and the data directory for a restore."""
    archive = Archive(LocalStore(root))
    if verb == "backup":
        await backup(postgres.PostgresTarget(name, dsn=where), archive)
    else:
        await restore(archive, name, into=postgres.PostgresDataDirectory(where, bin_dir=bin_dir, leave="running"))


async def main(report: str, *arguments: str) -> None:
    """Run and write what was seen from inside to `report`."""
    worst = [0.0]
    watching = asyncio.create_task(watch_loop(worst))
    await run(*arguments)
    watching.cancel()
    Path(report).write_text(json.dumps({"loop_stall_ms": worst[0] * 1000, "own_peak_rss_mib": peak_rss_mib()}))


def peak_rss_mib() -> float:
    """Tell how much memory this program has ever held; getrusage(2) would count the one that started it, too."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
