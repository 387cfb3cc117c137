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

from .names import WalName, segment_name
from .source import ZEROS, WalSource
from .spool import ABSENT, UNKNOWN, Answer, Request, Spool

_SEGMENT = re.compile("[0-9A-F]{24}")
AHEAD_BYTES = 256 << 20
FEWEST, MOST = 2, 64
AT_ONCE, ENOUGH = 4, 4
"""While this many lie there they are fetched one by one: replay has more use for the processors then."""
AT_ONCE_BYTES = 128 << 20
LOOK_AGAIN_SECONDS = 0.02
LONGEST_PAUSE_SECONDS = 15.0
ANSWER_SECONDS = 600.0
"""What an answer may take on top of `patience`: fetching a large segment from a slow store."""


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
    at or behind `ends` is handed out, and a hole behind `enough` is the end of the log: the target lies before it. A
    store that does not answer is asked again for `patience` seconds. `failed` is why recovery was told to stop;
    `exhausted` says that it has asked for more than there is, or for the last there is again, as it does at the end of
    the log.
    """

    source: WalSource
    spool: Spool
    planned: Sequence[str]
    here: Collection[str] = ()
    spare: Collection[str] = ()
    ends: int | None = None
    enough: int | None = None
    patience: float
    failed: ResilienceError | None = field(default=None, init=False)
    exhausted: bool = field(default=False, init=False)
    _places: dict[str, int] = field(init=False, repr=False)
    _waiting: deque[str] = field(factory=deque, init=False)
    _again: bool = field(default=False, init=False)
    _handed: set[str] = field(factory=set, init=False)
    _fetching: dict[str, asyncio.Task[bool]] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self._places = {name: place for place, name in enumerate(self.planned)}

    @asynccontextmanager
    async def feeding(self) -> AsyncIterator[None]:
        """Feed until leaving; the spool is removed then, also if cancelled.

        A recovery that is fed again goes on somewhere in the middle: what it asks for first tells where.
        """
        self._again = self._again or bool(self._handed)
        self._waiting = deque() if self._again else self._planned_after(None)
        self._handed, self.exhausted = set(), False
        try:
            async with self.spool.serving(self._answer):
                filling = asyncio.create_task(self._fill())
                try:
                    yield
                finally:
                    await stop_tasks([filling, *self._fetching.values()])
        finally:
            await self.spool.remove()

    def command(self) -> str:
        """Return the restore_command of the recovery that is fed."""
        return self.spool.command(seconds=self.patience + ANSWER_SECONDS)

    async def fetch(self, name: str) -> Sequence[bytes] | None:
        """Return what the log has under a name, asking for `patience` seconds; see `WalSource.fetch`."""
        again = AsyncRetrying(
            retry=retry_if_exception_type(Unavailable),
            wait=wait_random_exponential(multiplier=0.2, max=LONGEST_PAUSE_SECONDS),
            stop=stop_after_delay(self.patience),
            reraise=True,
        )
        return await again(self.source.fetch, name, enough=self.enough)

    async def _fill(self) -> None:
        """Keep the spool filled. What cannot be had is left to whoever asks for it: recovery may end before."""
        size = self.source.segment_size
        ahead = max(FEWEST, min(MOST, AHEAD_BYTES // size))
        most = max(1, min(AT_ONCE, AT_ONCE_BYTES // size))
        while True:
            names = await self.spool.names()
            there = len(names | self._fetching.keys())
            at_once = 1 if len(names) >= ENOUGH else most
            while self._waiting and there < ahead and len(self._fetching) < at_once:
                name = self._waiting.popleft()
                if name not in self._handed and name not in self._fetching:
                    self._fetch(name)
                    there += 1
            await asyncio.sleep(LOOK_AGAIN_SECONDS)

    def _planned_after(self, name: str | None) -> deque[str]:
        begins = 0 if name is None else self._places[name] + 1
        return deque(each for each in self.planned[begins:] if each not in self.here)

    async def _answer(self, request: Request) -> Answer:
        name = request.name
        if name in self.here:
            return Answer(ABSENT)
        if self._again and not self._handed and name in self._places:
            self._waiting = self._planned_after(name)
        if name in self._handed and self._places.get(name, len(self.planned)) >= len(self.planned) - 1:
            self.exhausted = True
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

    def _past_the_plan(self, begins: int) -> bool:
        last = WalName.parse(self.planned[-1], segment_size=self.source.segment_size).begins if self.planned else None
        return last is not None and begins > last

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
            if name in self._places and name not in self.spare:
                raise LogGap(
                    f"the segment {name} is gone from the archive",
                    operation="restore",
                    hint="plan the restore again",
                )
            if begins is not None and self._past_the_plan(begins):
                self.exhausted = True
            return False
        if begins is not None and self.ends is not None:
            pieces = list(cut(pieces, self.ends - begins))
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
