"""What a canary remembers while it writes, whatever it writes to: what was acknowledged, by whom and when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from datetime import datetime, timedelta

from attrs import define, field

from resilience.model.drills import CanaryFacts, LostWrite, Served


@define(eq=False)
class Memory:
    """What one run of a canary was told; see `primitives.drills.Watching`. Its writes are numbered from 1 on."""

    canary: str
    clock: Callable[[], datetime] = field(repr=False)
    servers: dict[str, Served] = field(factory=dict, init=False)
    problem: str = field(default="", init=False)
    _acknowledged: dict[int, tuple[datetime, str]] = field(factory=dict, init=False, repr=False)
    _next: int = field(default=0, init=False)
    _failed: int = field(default=0, init=False)
    _doubts: set[int] = field(factory=set, init=False, repr=False)
    _missing: tuple[LostWrite, ...] | None = field(default=None, init=False)
    _gap: tuple[datetime, datetime] | None = field(default=None, init=False)
    _began: datetime = field(init=False)
    _ended: datetime | None = field(default=None, init=False)
    _origin: float = field(factory=time.monotonic, init=False)
    _last: datetime = field(init=False)
    _news: asyncio.Event = field(factory=asyncio.Event, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._began = self._last = self.clock()

    @property
    def seen(self) -> CanaryFacts:
        """What it has seen so far; see `Watching.seen`."""
        now = self._ended or self.now()
        gap = self._gap or (self._began, self._began)
        if now - self._last > gap[1] - gap[0]:
            gap = (self._last, now)
        return CanaryFacts(
            canary=self.canary,
            began_at=self._began,
            ended_at=now,
            acknowledged=len(self._acknowledged),
            failed=self._failed,
            in_doubt=len(self._doubts),
            missing=self._missing,
            served=tuple(self.servers.values()),
            longest=(gap[1] - gap[0]).total_seconds(),
            quiet_since=gap[0],
            quiet_until=gap[1],
        )

    async def another(self, *, than: str, seconds: float) -> Served | None:
        """Wait for another server; see `Watching.another`."""
        await self.until(lambda: any(each != than for each in self.servers), seconds)
        return next((each for name, each in self.servers.items() if name != than), None)

    async def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until something is so; tell whether it came to that in time."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pass
        return condition()

    def begun(self) -> tuple[int, datetime]:
        """Number the next write, which is in doubt from now on, and say when that is."""
        self._next += 1
        self._doubts.add(self._next)
        return self._next, self.now()

    def refused(self, number: int) -> None:
        """Take note that the server said no, and that it has not written it."""
        self._doubts.discard(number)

    def failed(self, error: Exception) -> None:
        """Take note that a write failed; whether it is there nobody knows, unless it was `refused`."""
        self._failed += 1
        self.problem = " ".join(str(error).split()) or type(error).__name__

    def acknowledged(self, number: int, *, sent: datetime, instance: str) -> None:
        """Take note that a write was acknowledged, with all that the server promises any client."""
        now = self.now()
        self._doubts.discard(number)
        self._acknowledged[number] = now, instance
        if self._gap is None or now - self._last > self._gap[1] - self._gap[0]:
            self._gap = self._last, now
        self._last = now
        before = self.servers.get(instance)
        self.servers[instance] = Served(
            instance=instance,
            first=before.first if before else now,
            last=now,
            last_sent=max(before.last_sent, sent) if before else sent,
            writes=before.writes + 1 if before else 1,
        )
        self._news.set()

    @property
    def promised(self) -> tuple[int, ...]:
        """The numbers of the writes that have to be there by now."""
        return tuple(self._acknowledged)

    def found(self, promised: Collection[int], there: Collection[int]) -> CanaryFacts:
        """Compare what was promised when somebody began to look with what is there."""
        known = self._acknowledged
        lost = sorted(set(promised) - set(there))
        self._missing = tuple(LostWrite(id=each, at=known[each][0], instance=known[each][1]) for each in lost)
        return self.seen

    def end(self) -> None:
        """Remember when it ended."""
        self._ended = self.now()

    def now(self) -> datetime:
        """Tell the time by the clock as it was at the beginning: it does not jump."""
        return self._began + timedelta(seconds=time.monotonic() - self._origin)


@define(eq=False)
class Run:
    """One run of a canary, by its id; the systems' own add how they write and `examine`."""

    id: str
    memory: Memory

    @property
    def seen(self) -> CanaryFacts:
        """What it has seen so far; see `Watching.seen`."""
        return self.memory.seen

    async def another(self, *, than: str, seconds: float) -> Served | None:
        """Wait for another server; see `Watching.another`."""
        return await self.memory.another(than=than, seconds=seconds)
