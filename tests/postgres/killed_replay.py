"""`python -m tests.postgres.killed_replay ARCHIVE DATA BIN_DIR`: a restore that is killed -9 once it replays."""

from __future__ import annotations

import asyncio
import sys

from resilience import Archive, Event, restore
from resilience.postgres import PostgresDataDirectory
from resilience.stores import LocalStore

from ..faults import die


def main(archive: str, data: str, bin_dir: str) -> None:
    """Restore until something is replayed."""

    def observe(event: Event) -> None:
        if event.text.startswith("replayed to"):
            die()

    into = PostgresDataDirectory(data, bin_dir=bin_dir)
    asyncio.run(restore(Archive(LocalStore(archive)), "orders", into=into, observer=observe))


if __name__ == "__main__":
    main(*sys.argv[1:])
