"""What PostgreSQL's archive_command and restore_command run where nobody resident answers; see `lines.py`.

    python -m resilience.commands.wal CONFIG push PATH
    python -m resilience.commands.wal CONFIG fetch NAME PATH
    python -m resilience.commands.wal CONFIG serve
    python -m resilience.commands.wal CONFIG lines

`push` ends with 0 once the file is durable, and otherwise with 1, so that PostgreSQL tries again. `fetch` ends with 0,
with 1 only if the archive is proven not to have the file, and with 130 whenever that cannot be told. Both do the work
themselves and leave a resident process behind, which does it ahead; `serve` is that process, in the foreground. `lines`
prints what belongs into postgresql.conf.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path

from resilience.model.errors import ResilienceError
from resilience.postgres.wal.spool import ABSENT, UNKNOWN

from .config import WalConfig, load
from .fetching import fetch
from .lines import postgresql_conf
from .opened import opened
from .pushing import Pusher
from .resident import leave_behind, serve

FAILED = 1
USAGE = 131


async def push(config: WalConfig, path: str) -> int:
    """Archive one file and return the exit status."""
    async with opened(config) as found:
        pusher = Pusher(opened=found)
        await pusher.push(pusher.data / path)
        await pusher.progress.record()
    return 0


async def get(config: WalConfig, name: str, path: str, *, absent: int) -> int:
    """Fetch one file and return the exit status."""
    async with opened(config) as found:
        answer = await fetch(found, name)
        while answer.status == 0:
            fetched = found.spool.folder / answer.text
            try:
                fetched.rename((found.config.data or Path()) / path)
                break
            except FileNotFoundError:
                if fetched.exists():
                    raise
                answer = await fetch(found, name)  # a resident process that has just begun has emptied the spool
    if answer.status == UNKNOWN:
        sys.stderr.write(f"resilience: fetch {name}: {answer.text}\n")
        return UNKNOWN
    return absent if answer.status == ABSENT else 0


async def stay(config: WalConfig, *after: str) -> int:
    """Be the resident process, and return the exit status."""
    return 0 if await serve(config, after=after[0] if after else "") else FAILED


def main(arguments: Sequence[str]) -> int:
    """Run a command and return its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s [%(process)d] %(message)s")
    try:
        config, command, *rest = arguments
        coroutine = _COMMANDS[command, len(rest)]
    except (ValueError, KeyError):
        sys.stderr.write(f"{__doc__}")
        return USAGE
    fetching = command.startswith("fetch")
    failed = UNKNOWN if fetching else FAILED
    try:
        loaded = load(config)
        status = asyncio.run(coroutine(loaded, *rest))
        if fetching or command == "push":
            leave_behind(loaded, after=rest[0] if fetching else "")
        return status
    except ResilienceError as error:
        sys.stderr.write(f"resilience: {error}\n")
    except Exception:
        logging.getLogger(__name__).exception("resilience: %s failed", command)
    return failed


async def lines(config: WalConfig) -> int:
    """Print what belongs into postgresql.conf."""
    sys.stdout.write(f"{postgresql_conf(config.path)}\n")
    return 0


_COMMANDS: dict[tuple[str, int], Callable[..., Coroutine[None, None, int]]] = {
    ("push", 1): push,
    ("fetch", 2): partial(get, absent=FAILED),
    ("fetch-for-shell", 2): partial(get, absent=ABSENT),
    ("serve", 0): stay,
    ("serve", 1): stay,
    ("lines", 0): lines,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
