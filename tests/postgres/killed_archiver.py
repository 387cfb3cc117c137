"""`python -m tests.postgres.killed_archiver ARCHIVE DSN`: an archiver that goes on until it is killed.

It prints a line when it streams, and one each time that more is durable.
"""

from __future__ import annotations

import asyncio
import sys

from resilience import Archive
from resilience.postgres.wal.archiver import WalArchiver
from resilience.stores import LocalStore

from .wal import SOON


async def main(root: str, dsn: str) -> None:
    """Archive, and tell how far."""
    async with WalArchiver("orders", dsn=dsn, archive=Archive(LocalStore(root)), interval=SOON) as wal:
        print("streaming", flush=True)
        told = -1
        while True:
            await asyncio.sleep(SOON / 5)
            reached = wal.status.durable_lsn
            if reached is not None and reached.offset > told:
                told = int(reached.offset)
                print(told, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
