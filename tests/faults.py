"""Faults put where they belong: at the n-th call of the operating system.

`python -m tests.faults SCENARIO FOLDER STEP` runs a scenario again and again in a folder of its own below FOLDER, each
time in a process that ends itself with kill -9 STEP calls later, until one comes to its end.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resilience import Archive, backup
from resilience.primitives import KeyEncryptionKey, ObjectStore
from resilience.stores import LocalStore, MemoryStore
from resilience.testing.memory import MemoryTarget
from resilience.testing.stores import content

VALUES = {"one": content(5000), "two.tar": content(3001, 2), "empty": b""}
FEW = {"one": content(1000), "empty": b""}
CALLS = ("open", "write", "fsync", "link", "unlink", "mkdir", "rmdir", "rename")


@contextmanager
def at_os_call(number: int, act: Callable[[str], None]) -> Iterator[list[str]]:
    """Call `act` with its name before the call of that number, counted from 1; yields the names of all calls made."""
    made: list[str] = []
    originals = {name: getattr(os, name) for name in CALLS}

    def counted(name: str) -> Callable[..., Any]:
        def call(*args: object, **kwargs: object) -> object:
            made.append(name)
            if len(made) == number:
                act(name)
            return originals[name](*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, counted(name))
    try:
        yield made
    finally:
        for name, original in originals.items():
            setattr(os, name, original)


def killed_everywhere(scenario: str, folder: Path, *, step: int = 1) -> list[Path]:
    """Run a scenario as `python -m tests.faults` does; return the folders, the last of which saw it come to its end."""
    command = [sys.executable, "-m", "tests.faults", scenario, str(folder), str(step)]
    subprocess.run(command, cwd=Path(__file__).parent.parent, check=True)
    return sorted(folder.iterdir(), key=lambda path: int(path.name))


def small_archive(store: ObjectStore | None = None, *, key: KeyEncryptionKey | None = None) -> Archive:
    """Make an archive that cuts little data into many frames and objects; sealed, if it gets a key."""
    return Archive(MemoryStore() if store is None else store, frame_size=700, object_size=300, workers=2, key=key)


def die() -> None:
    """End this process as kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


async def put(folder: Path) -> None:
    await LocalStore(folder / "root").put("folder/object", [b"one", b"two"])


async def back_up(folder: Path) -> None:
    await backup(MemoryTarget("orders", dict(FEW)), small_archive(LocalStore(folder / "root")))


SCENARIOS: dict[str, Callable[[Path], Coroutine[Any, Any, None]]] = {"put": put, "backup": back_up}


def main(scenario: str, folder: Path, step: int) -> None:
    number, status = 1 - step, -1
    while status != 0:
        number += step
        place = folder / str(number)
        place.mkdir(parents=True)
        child = os.fork()
        if child == 0:
            with at_os_call(number, lambda _: die()):
                asyncio.run(SCENARIOS[scenario](place))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status not in (0, signal.SIGKILL):
            sys.exit(f"call {number}: the child ended with status {status}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
