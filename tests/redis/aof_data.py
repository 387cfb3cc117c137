"""What happens to append-only files: rewrites, fast and slow ones."""

from __future__ import annotations

import time
from pathlib import Path

from resilience.testing.redis import TestRedis


def rewrite(server: TestRedis) -> None:
    """Have the append-only file rewritten, and wait until it is."""
    server.ask("BGREWRITEAOF")
    rewritten(server)


def rewritten(server: TestRedis) -> None:
    """Wait until no rewrite runs."""
    deadline = time.monotonic() + 30
    while server.info("aof_rewrite_in_progress") == "1" or server.info("aof_rewrite_scheduled") == "1":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def slowly(server: TestRedis, microseconds: int) -> None:
    """Have every key take so long whenever the server saves or rewrites from now on."""
    server.ask("CONFIG", "SET", "rdb-key-save-delay", microseconds)


def files(server: TestRedis) -> dict[str, int]:
    """Return the files of a server's append-only file, and how long they are."""
    return {path.name: path.stat().st_size for path in Path(server.folder, "appendonlydir").iterdir()}
