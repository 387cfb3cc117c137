"""How much memory an isolated server may take for its buffers while it replays.

Replay is as fast as its buffers are large: a page that has to be written out to make room is read again for the next
record. A gigabyte of pgbench's WAL took 14 s of CPU with 128 MB and 3 s with 512 MB, which held all pages it touches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

SHARE = 4
LEAST, MOST = 128 << 20, 8 << 30
"""Bytes: PostgreSQL's default, and what helps even a large restore."""


def shared_buffers(root: Path = Path("/")) -> str:
    """Return a setting: a quarter of the memory that is available to this process (proc(5), cgroups(7) version 2)."""
    available = min([*_of_the_machine(root), *_of_the_cgroup(root)], default=LEAST * SHARE)
    return f"{max(LEAST, min(MOST, available // SHARE)) >> 20}MB"


def _of_the_machine(root: Path) -> Iterator[int]:
    with suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) << 10


def _of_the_cgroup(root: Path) -> Iterator[int]:
    """Yield what is left in our cgroup and in those above it; of the files it caches, unused ones count as free."""
    mounted = root / "sys/fs/cgroup"
    with suppress(OSError, ValueError):
        inside = (root / "proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
        for group in (mounted / inside, *(mounted / inside).parents):
            if not group.is_relative_to(mounted):
                return
            with suppress(OSError, ValueError):
                most = int((group / "memory.max").read_text())
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                yield most - int((group / "memory.current").read_text()) + int(stat.get("inactive_file", 0))
