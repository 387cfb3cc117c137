"""`python -m tests.postgres.killed_backup ARCHIVE DSN OPERATION WORDS`: a backup that ends itself with kill -9.

It dies before the first operation of the store of that name on a key that has the words in it.
"""

from __future__ import annotations

import asyncio
import sys

from resilience import Archive, backup
from resilience.postgres import PostgresTarget
from resilience.stores import LocalStore
from resilience.testing.faults import WatchedStore

from ..faults import die

MIB = 1 << 20


def archive_in(folder: str, operation: str = "", words: str = "") -> Archive:
    """Make an archive that dies as told."""

    async def before(now: str, key: str) -> None:
        if now == operation and words in key:
            die()

    return Archive(WatchedStore(LocalStore(folder), before), object_size=MIB)


if __name__ == "__main__":
    _, root, dsn, operation, words = sys.argv
    asyncio.run(backup(PostgresTarget("orders", dsn=dsn), archive_in(root, operation, words)))
