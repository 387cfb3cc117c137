"""What `nox -s bench -- redis` times of ours: one backup in a process of its own, the loop watched."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from ours import peak_rss_mib, watch_loop
from resilience import Archive, backup
from resilience.redis import RedisTarget
from resilience.stores import LocalStore


async def main(report: str, root: str, url: str) -> None:
    """Back up and write what was seen from inside to `report`."""
    worst = [0.0]
    watching = asyncio.create_task(watch_loop(worst))
    await backup(RedisTarget("cache", url=url), Archive(LocalStore(root)))
    watching.cancel()
    Path(report).write_text(json.dumps({"loop_stall_ms": worst[0] * 1000, "own_peak_rss_mib": peak_rss_mib()}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
