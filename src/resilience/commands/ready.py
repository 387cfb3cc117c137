"""Archives ahead: what PostgreSQL has marked as ready is pushed before its archive_command is run for it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from contextlib import suppress
from pathlib import Path

from attrs import define, field

from resilience.concurrency import in_thread, stop_tasks
from resilience.model.errors import ResilienceError
from resilience.postgres.wal.spool import Answer

from .opened import Opened
from .pushing import Pusher, WalFile, identity

AT_ONCE = 3
BYTES_AT_ONCE = 256 << 20
LOOK_SECONDS = 1.0
LOOK_AT_MOST_EVERY_SECONDS = 0.2
ENOUGH_SECONDS = 0.05
AFTER_FAILURE_SECONDS = 5.0
SAME, SINCE = ".ok", ".at"
REFUSED = 1
_READY = ".ready"
_logger = logging.getLogger(__name__)


@define
class Ready:
    """Pushes several files at once, in PostgreSQL's order, and marks in the spool those that are durable.

    The shell can tell from the marks by itself: one is a hard link to the very file that was pushed, the other is
    younger than the last write to it. Another file of that name has none. `active` is when there was work last.
    """

    opened: Opened
    active: float = field(factory=lambda: asyncio.get_running_loop().time(), init=False)
    pusher: Pusher = field(init=False)
    _pushing: dict[str, asyncio.Task[None]] = field(factory=dict, init=False)
    _done: dict[str, tuple[int, int, int]] = field(factory=dict, init=False)
    _wake: asyncio.Event = field(factory=asyncio.Event, init=False)
    _queue: deque[str] = field(factory=deque, init=False)
    _looked: float = field(default=0.0, init=False)
    _not_before: float = field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        self.pusher = Pusher(opened=self.opened)

    async def answer(self, path: str) -> Answer:
        """Answer one who asks whether the file at `path` is durable, once it is; or why it cannot be."""
        self._note()
        asked = Path(path)
        if not await in_thread(_same, asked.parent, self.pusher.data / "pg_wal"):
            what = f"this process archives {self.pusher.data}: give every cluster a spool of its own"
            return Answer(REFUSED, what)
        if await in_thread(_identity, asked) == self._done.get(asked.name, ()):
            return Answer(0)
        try:
            await asyncio.shield(self._begin(asked.name))
        except ResilienceError as error:
            _logger.warning("%s", error)
            return Answer(REFUSED, str(error))
        if others := set(self._pushing.values()):  # PostgreSQL sees by itself that they are done; asking costs more
            await asyncio.wait(others, timeout=ENOUGH_SECONDS)
        return Answer(0)

    async def run(self) -> None:
        """Push ahead until cancelled; what is being pushed then is abandoned, and will be asked for again."""
        await in_thread(self._unmark, None)
        try:
            while True:
                await self._look()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), LOOK_SECONDS)
                self._wake.clear()
        finally:
            await stop_tasks(list(self._pushing.values()))
            with suppress(ResilienceError):
                await self.pusher.progress.record()

    async def _look(self) -> None:
        at_once = max(1, min(AT_ONCE, BYTES_AT_ONCE // self.opened.control.segment_size))
        if len(self._queue) < at_once or _now() - self._looked > LOOK_AT_MOST_EVERY_SECONDS:
            await self._scan()
        if self._queue:
            self.active = _now()
        while self._queue and len(self._pushing) < at_once and _now() >= self._not_before:
            name = self._queue.popleft()
            if name not in self._done:
                self._begin(name)

    async def _scan(self) -> None:
        """See what is to be done, and forget what was: of a long queue that takes a while."""
        ready, self._looked = await in_thread(self._ready), _now()
        self._queue = deque(name for name in ready if name not in self._done and name not in self._pushing)
        if gone := set(self._done) - set(ready):
            await in_thread(self._unmark, gone)
            for name in gone:
                del self._done[name]

    def _begin(self, name: str) -> asyncio.Task[None]:
        if name not in self._pushing:
            task = asyncio.create_task(self._push(name))
            task.add_done_callback(lambda ended: self._ended(name, ended))
            self._pushing[name] = task
        return self._pushing[name]

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        del self._pushing[name]
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.warning("%s was not pushed: %s", name, error)
            self._not_before = _now() + AFTER_FAILURE_SECONDS
        self._wake.set()

    async def _push(self, name: str) -> None:
        file = await self.pusher.push(self.pusher.data / "pg_wal" / name)
        self._done[name] = file.identity
        await in_thread(self._mark, file)

    def _ready(self) -> list[str]:
        """Return what PostgreSQL wants archived, in the order in which it will ask: histories first."""
        with suppress(FileNotFoundError):
            with os.scandir(self.pusher.data / "pg_wal/archive_status") as entries:
                names = [entry.name.removesuffix(_READY) for entry in entries if entry.name.endswith(_READY)]
            return sorted(names, key=lambda name: (not name.endswith(".history"), name))
        return []

    def _mark(self, file: WalFile) -> None:
        """Leave the marks of a file; if there can be none, the shell asks us every time."""
        same, since = (self.opened.spool.folder / (file.path.name + suffix) for suffix in (SAME, SINCE))
        with suppress(OSError):
            same.unlink(missing_ok=True)
            same.hardlink_to(file.path)
            if identity(same.stat()) == file.identity:
                since.touch()
            else:
                same.unlink()

    def _unmark(self, names: set[str] | None) -> None:
        """Remove the marks of files that need none any more; None: all, also those an earlier process left."""
        with suppress(FileNotFoundError):
            for mark in self.opened.spool.folder.iterdir():
                if mark.suffix in (SAME, SINCE) and (names is None or mark.stem in names):
                    mark.unlink(missing_ok=True)

    def _note(self) -> None:
        self.active = _now()
        self._wake.set()


def _identity(path: Path) -> tuple[int, int, int] | None:
    with suppress(OSError):
        return identity(path.stat())
    return None


def _same(one: Path, other: Path) -> bool:
    with suppress(OSError):
        return one.samefile(other)
    return False


def _now() -> float:
    return asyncio.get_running_loop().time()
