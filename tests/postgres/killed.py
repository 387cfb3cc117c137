"""`python -m tests.postgres.killed ARCHIVE BIN_DIR FOLDER NUMBER…`: restores, killed with -9 at the operating-system
calls of those numbers, each into FOLDER/NUMBER; number 0 is not killed and prints how many calls there were.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from resilience import Archive, restore
from resilience.model.measured import RestoreMeasured
from resilience.postgres import PostgresDataDirectory
from resilience.stores import LocalStore

from ..faults import at_os_call, die


class Forgetful(Archive):
    """Its last call is the one that finishes the restore: what was measured is not kept."""

    async def remember(self, measured: RestoreMeasured) -> None:
        """Forget it."""


def main(archive: str, bin_dir: str, folder: str, *numbers: str) -> None:
    """Run one child a number and insist that it ended as it should."""
    for number in map(int, numbers):
        child = os.fork()
        if child == 0:
            into = PostgresDataDirectory(Path(folder) / str(number), bin_dir=bin_dir)
            with at_os_call(number, lambda _: die()) as made:
                asyncio.run(restore(Forgetful(LocalStore(archive)), "orders", into=into))
            print(len(made), flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status != (signal.SIGKILL if number else 0):
            sys.exit(f"call {number}: the child ended with status {status}")


if __name__ == "__main__":
    main(*sys.argv[1:])
