"""Feeds a running recovery: WAL lies in the spool before it is asked for, and what is asked beyond that is answered."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from attrs import define, field
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from resilience.concurrency import stop_tasks
from resilience.model.errors import LogGap, ResilienceError, Unavailable
from resilience.model.log import Stretch

from .spool import ABSENT, UNKNOWN, Answer, Request, Spool
from .wal_names import WalName, segment_name
from .wal_source import ZEROS, WalSource

_SEGMENT = re.compile("[0-9A-F]{24}")
AHEAD_BYTES = 256 << 20
FEWEST, MOST = 2, 64
AT_ONCE = 4
AT_ONCE_BYTES = 128 << 20
LOOK_AGAIN_SECONDS = 0.02
LONGEST_PAUSE_SECONDS = 15.0


def order(replay: Iterable[Stretch], segment_size: int) -> list[str]:
    """Return the segments that recovery will ask for, in its order; of two branches in one segment the later one's."""
    newest: dict[int, str] = {}
    for stretch in replay:
        first = stretch.begins.offset - stretch.begins.offset % segment_size
        newest.update(dict.fromkeys(range(first, stretch.ends.offset, segment_size), stretch.branch))
    return [segment_name(branch, begins, segment_size) for begins, branch in sorted(newest.items())]


def segments_in(pg_wal: Path) -> list[str]:
    """Return the segments in a folder in the order of their places in the log."""
    return sorted((path.name for path in pg_wal.iterdir() if _SEGMENT.fullmatch(path.name)), key=lambda name: name[8:])


@define(kw_only=True)
class Feeder:
    """Feeds one recovery from a log.

    `planned` are the segments it will ask for, in order: each of them has to be there. `here` are whole segments that
    came with the backup and lie in pg_wal; `spare` are such that may be a part only, for want of better ones. Nothing
    at or behind `ends` is handed out. A store that does not answer is asked again
    for `patience` seconds. `failed` is why recovery was told to stop; `exhausted` says that it has asked for more than
    there is, or for the same again, as it does at the end of the log.
    """

    source: WalSource
    spool: Spool
    planned: Sequence[str]
    here: Collection[str] = ()
    spare: Collection[str] = ()
    ends: int | None = None
    patience: float
    failed: ResilienceError | None = field(default=None, init=False)
    exhausted: bool = field(default=False, init=False)
    _handed: set[str] = field(factory=set, init=False)
    _fetching: dict[str, asyncio.Task[bool]] = field(factory=dict, init=False)

    @asynccontextmanager
    async def feeding(self) -> AsyncIterator[None]:
        """Feed until leaving; the spool is removed then, also if cancelled."""
        try:
            async with self.spool.serving(self._answer):
                filling = asyncio.create_task(self._fill())
                try:
                    yield
                finally:
                    await stop_tasks([filling, *self._fetching.values()])
        finally:
            await self.spool.remove()

    async def fetch(self, name: str) -> Sequence[bytes] | None:
        """Return what the log has under a name, asking for `patience` seconds; see `WalSource.fetch`."""
        again = AsyncRetrying(
            retry=retry_if_exception_type(Unavailable),
            wait=wait_random_exponential(multiplier=0.2, max=LONGEST_PAUSE_SECONDS),
            stop=stop_after_delay(self.patience),
            reraise=True,
        )
        return await again(self.source.fetch, name)

    async def _fill(self) -> None:
        """Keep the spool filled. What cannot be had is left to whoever asks for it: recovery may end before."""
        size = self.source.segment_size
        ahead = max(FEWEST, min(MOST, AHEAD_BYTES // size))
        at_once = max(1, min(AT_ONCE, AT_ONCE_BYTES // size))
        waiting = deque(name for name in self.planned if name not in self.here)
        while waiting:
            there = len(await self.spool.names() | self._fetching.keys())
            while waiting and there < ahead and len(self._fetching) < at_once:
                name = waiting.popleft()
                if name not in self._handed:
                    self._fetch(name)
                    there += 1
            await asyncio.sleep(LOOK_AGAIN_SECONDS)

    async def _answer(self, request: Request) -> Answer:
        name = request.name
        if name in self.here:
            return Answer(ABSENT)
        self.exhausted = self.exhausted or name in self._handed
        fetching = self._fetching.get(name) or self._fetch(name)
        await asyncio.wait([fetching])
        try:
            return Answer(0 if fetching.result() else ABSENT)
        except ResilienceError as error:
            self.failed = error
            return Answer(UNKNOWN, str(error))

    def _fetch(self, name: str) -> asyncio.Task[bool]:
        def done(fetched: asyncio.Task[bool]) -> None:
            del self._fetching[name]
            if not fetched.cancelled():
                fetched.exception()

        self._fetching[name] = asyncio.create_task(self._bring(name))
        self._fetching[name].add_done_callback(done)
        return self._fetching[name]

    async def _bring(self, name: str) -> bool:
        """Put a file into the spool; False if there is none."""
        begins = WalName.parse(name, segment_size=self.source.segment_size).begins
        beyond = begins is not None and self.ends is not None and begins >= self.ends
        try:
            pieces = None if beyond else await self.fetch(name)
        except LogGap:
            if name not in self.spare:
                raise
            pieces = None
        if pieces is None:
            if name in self.planned and name not in self.spare:
                raise LogGap(
                    f"the segment {name} is gone from the archive",
                    operation="restore",
                    hint="plan the restore again",
                )
            self.exhausted = self.exhausted or begins is not None
            return False
        if begins is not None and self.ends is not None:
            pieces = cut(pieces, self.ends - begins)
        await self.spool.put(name, pieces)
        self._handed.add(name)
        return True


def cut(pieces: Iterable[bytes], keep: int) -> Iterator[bytes]:
    """Yield the first `keep` bytes, and zeros instead of the others."""
    for piece in pieces:
        kept = piece[: max(0, keep)]
        keep -= len(kept)
        yield kept
        zeros = len(piece) - len(kept)
        while zeros > 0:
            yield ZEROS[:zeros]
            zeros -= len(ZEROS)
