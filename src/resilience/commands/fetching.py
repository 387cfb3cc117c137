"""Gives PostgreSQL what it recovers from, and fetches ahead what it will ask for next."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress

from attrs import define, field
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from resilience.concurrency import in_thread, stop_tasks
from resilience.model.errors import ResilienceError, Unavailable
from resilience.postgres.wal.names import WalName, segment_name
from resilience.postgres.wal.spool import ABSENT, UNKNOWN, Answer

from .opened import Opened

AT_ONCE = 2
LOOK_SECONDS = 0.01
REST_SECONDS = 0.5
ENOUGH = 3
ENOUGH_SECONDS = 0.2
_ASKED = ".asked"
_LENGTH = 24
_logger = logging.getLogger(__name__)


async def fetch(opened: Opened, name: str) -> Answer:
    """Put what is asked for into the spool, under the name that the answer says.

    That is another name than its own, because it may be a segment that was not finished: whoever asks for it again must
    not be given what there was of it today. Exit status 1 or ABSENT is only for what is proven not to be there: an
    archive that has no log of this cluster proves nothing.
    """
    trying = AsyncRetrying(
        stop=stop_after_delay(opened.config.patience),
        wait=wait_random_exponential(multiplier=0.1, max=5.0),
        retry=retry_if_exception_type(Unavailable),
        reraise=True,
    )

    async def look() -> Sequence[bytes] | None:
        with opened.explained():
            return await opened.source.fetch(name)

    async def look_for_any() -> bool:
        with opened.explained():
            return await opened.known()

    pieces: Sequence[bytes] | None = await trying(look)
    if pieces is None:
        known: bool = await trying(look_for_any)
        if known:
            return Answer(ABSENT)
        return Answer(UNKNOWN, f"the archive has no log of cluster {opened.control.lineage}: is it the right one?")
    await opened.spool.put(name + _ASKED, pieces)
    return Answer(0, name + _ASKED)


@define
class Prefetcher:
    """Fetches the finished segments behind the one that was asked for last, as many as the configuration allows.

    That PostgreSQL has taken one is seen by its being gone from the spool. `active` is when it last did.
    """

    opened: Opened
    active: float = field(factory=lambda: asyncio.get_running_loop().time(), init=False)
    _last: WalName | None = field(default=None, init=False)
    _here: set[str] = field(factory=set, init=False)
    _fetching: dict[str, asyncio.Task[bool]] = field(factory=dict, init=False)
    _ended: bool = field(default=True, init=False)
    _wake: asyncio.Event = field(factory=asyncio.Event, init=False)
    _more: asyncio.Event = field(factory=asyncio.Event, init=False)

    async def answer(self, name: str) -> Answer:
        """Answer one who asks for a file; see `fetch`."""
        self._note()
        if (ahead := self._fetching.get(name)) is not None:
            await asyncio.wait([ahead])
        taken = name in self._here and await in_thread(self._take, name)
        answer = Answer(0, name + _ASKED) if taken else await fetch(self.opened, name)
        if answer.status == 0:
            self.begin(name)
            await self._get_ahead()
        return answer

    async def _get_ahead(self) -> None:
        """Wait for a few more: PostgreSQL takes those by itself, which costs less than asking for every one."""
        enough = min(ENOUGH, len(self._window()))
        with suppress(TimeoutError):
            async with asyncio.timeout(ENOUGH_SECONDS):
                while not self._ended and len(self._here) < enough:
                    self._more.clear()
                    await self._more.wait()

    def _take(self, name: str) -> bool:
        """Put a segment aside for the one who asks, where it is not dropped; False if PostgreSQL has taken it."""
        here = self.opened.spool.folder / name
        with suppress(FileNotFoundError):
            here.rename(here.with_name(name + _ASKED))
            return True
        return False

    def begin(self, name: str) -> None:
        """Fetch what comes behind a segment."""
        with suppress(ValueError):
            wanted = WalName.parse(name, segment_size=self.opened.control.segment_size)
            if wanted.begins is not None:
                self._last = wanted
                self._note()

    async def run(self) -> None:
        """Fetch ahead until cancelled; then the spool is emptied of what was not taken."""
        try:
            while True:
                await self._look()
                resting = self._ended and not self._fetching
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), REST_SECONDS if resting else LOOK_SECONDS)
                self._wake.clear()
        finally:
            await stop_tasks(list(self._fetching.values()))
            await self.empty()

    async def empty(self) -> None:
        """Remove what PostgreSQL has not taken, also what an earlier process left."""
        names = await self.opened.spool.names()
        await self._drop({name for name in names if len(name.removesuffix(_ASKED)) == _LENGTH})

    async def _look(self) -> None:
        """Drop what will not be asked for, and begin to fetch what is missing."""
        here = set(self._here)  # before the spool is looked at: what is put there meanwhile was not taken
        found = await self._found()
        if taken := here - found:
            self._here -= taken
            self.begin(max(taken))
        window = self._window()
        if unwanted := found - set(window) - set(self._fetching):
            await self._drop(unwanted)
        for name in window:
            if self._ended or len(self._fetching) >= AT_ONCE:
                return
            if name not in self._here and name not in self._fetching:
                self._fetching[name] = asyncio.create_task(self._fetch(name))

    async def _fetch(self, name: str) -> bool:
        """Fetch a segment ahead; what goes wrong is told to whoever asks for it."""
        try:
            pieces = await self.opened.source.whole(name)
            if pieces is not None:
                await self.opened.spool.put(name, pieces)
                self._here.add(name)
            else:
                self._ended = True
            return pieces is not None
        except ResilienceError as error:
            _logger.warning("%s was not fetched ahead: %s", name, error)
            self._ended = True
            return False
        finally:
            del self._fetching[name]
            self._wake.set()
            self._more.set()

    def _window(self) -> list[str]:
        if self._last is None or self._last.begins is None:
            return []
        size, config = self.opened.control.segment_size, self.opened.config
        count = min(config.ahead, config.ahead_bytes // size)
        begins = self._last.begins
        return [segment_name(self._last.timeline, begins + (each + 1) * size, size) for each in range(count)]

    async def _found(self) -> set[str]:
        """Return the segments that are in the spool."""
        return {name for name in await self.opened.spool.names() if len(name) == _LENGTH}

    async def _drop(self, names: set[str]) -> None:
        self._here -= names
        for name in names:
            await self.opened.spool.drop(name)

    def _note(self) -> None:
        self.active = asyncio.get_running_loop().time()
        self._ended = False
        self._wake.set()
