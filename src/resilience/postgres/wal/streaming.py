"""One session from its first byte to its last: what comes goes on its way into the log, and the server is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from datetime import timedelta

from attrs import define, field

from resilience.concurrency import finish, in_background, stop_tasks
from resilience.model.errors import Unavailable, Unreachable
from resilience.model.findings import Finding

from .assembly import Assembly, persistently
from .messages import EPOCH, Proofs
from .progress import Marks, Progress
from .session import OPERATION, Session
from .stream import Pulse, TimelineEnds, Wal, WalRemoved

BATCHES_AHEAD = 4
MARK_SECONDS = 1.0
PATIENCE_SECONDS = 10.0
"""How long a server may have to wait for the archive, so that it can shut down."""
FLUSH_SECONDS = 10.0
"""How long the last bytes may take to become durable on leaving."""
HANGING_SECONDS = 30.0
"""How long the archive may take for an entry before it is said; or twice the interval, if that is longer."""


@define(kw_only=True)
class Streaming:
    """Runs one session; `came` tells whether it brought anything."""

    session: Session
    progress: Progress
    interval: float
    came: bool = field(default=False, init=False)
    _begun: bool = field(default=False, init=False)
    _ending: bool = field(default=False, init=False)
    _left: bool = field(default=False, init=False)
    _urged: float | None = field(default=None, init=False)
    _paused: float | None = field(default=None, init=False)
    _why: str = field(default="", init=False)
    _assembly: Assembly = field(init=False)
    _marks: Marks = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Put together what the stream will bring."""
        session, before = self.session, self.session.start.watermark
        known = None if before is None or before.complete_at is None else before.complete_at - EPOCH
        self._assembly = Assembly(
            log=session.log,
            start=session.start,
            segment_size=session.facts.segment_size,
            kept=session.kept,
            proofs=Proofs(None if known is None else known // timedelta(microseconds=1)),
            moved=self._moved,
            failing=self.progress.failed,
        )
        self._marks = Marks(log=session.log, assembly=self._assembly)

    async def run(self) -> None:
        """Stream until the timeline ends or the connection does; then everything that came is durable.

        Cancelled: what came is made durable within FLUSH_SECONDS.
        """
        stream, ended = self.session.stream, None
        self._moved()
        self.progress.begin(self._assembly, self.session.facts.lineage)
        self._begun = True
        watching = asyncio.create_task(self._watch_the_archive())
        try:
            try:
                await self._stream()
            except (Unavailable, WalRemoved) as error:
                ended = error
            stream.hang_up()  # before the archive is waited for: a server that shuts down would wait for us
            self.progress.connected = False
            if ended is not None:
                self._why = str(ended)
                self.progress.failed(ended)
            await self._flush()  # before anybody looks where to go on
        except asyncio.CancelledError:
            await finish(self._leave())
            raise
        finally:
            await stop_tasks([watching])
            await self._assembly.close()
            self.progress.watched("archive", ())
        if ended is not None:
            raise ended

    async def _stream(self) -> None:
        stream, broken = self.session.stream, self._assembly.broken
        async with in_background(stream.items(), ahead=BATCHES_AHEAD, stop=stream.stop) as items:
            try:
                await first_of(self._take(items), self._cut(), self._mark(), self._hold_nobody_up(), _result(broken))
            except asyncio.CancelledError:
                await finish(self._leave())  # the server hears how far it came
                raise

    async def _take(self, items: AsyncIterator[Wal | Pulse | TimelineEnds]) -> None:
        """Take what comes. It never waits for the archive: while that is full, the stream is paused instead."""
        stream, assembly, facts = self.session.stream, self._assembly, self.session.facts
        # What a standby has, or an old timeline, says nothing about what has been acknowledged meanwhile.
        proves = not facts.standby and self.session.start.timeline == facts.timeline
        async for item in items:
            if isinstance(item, TimelineEnds):
                return
            if proves and item.proof is not None:
                assembly.proofs.add(item.proof)
            if isinstance(item, Pulse):
                self.progress.heard(item.sent, item.sent_at)
                if item.urgent and assembly.received > assembly.durable:
                    assembly.cut()
                    self._urged = self._urged or _now()
                continue
            self.came = True
            assembly.add(item)
            self.progress.heard(max(item.flushed, item.ends), item.latest)
            stream.paused = assembly.full
            self._paused = (self._paused or _now()) if stream.paused else None

    async def _hold_nobody_up(self) -> None:
        """End the stream if the archive takes nothing for long: a server that shuts down waits for those it streams to.

        It tells them by asking for a status; as long as nothing is read, that cannot be heard either.
        """
        while True:
            await asyncio.sleep(MARK_SECONDS)
            since = [moment for moment in (self._urged, self._paused) if moment is not None]
            if since and _now() - min(since) > PATIENCE_SECONDS:
                text = (
                    f"the archive took nothing for {PATIENCE_SECONDS:.0f} s, and the server may be waiting to shut down"
                )
                raise Unreachable(text, operation=OPERATION, subject=self.progress.notifier.subject)

    async def _watch_the_archive(self) -> None:
        """Tell if the archive has had an entry for long; one that hangs raises nothing that could be told."""
        longest = max(HANGING_SECONDS, 2 * self.interval)
        while True:
            since, found = self._assembly.waiting_since, []
            if since is not None and (seconds := _now() - since) > longest:
                where = self._assembly.watermark.ends
                found.append(
                    Finding(
                        severity="warning",
                        subject=self.progress.notifier.subject,
                        text=f"the archive has not taken what follows {where} for {seconds:.0f} s",
                        hint="see whether it answers; meanwhile the slot keeps the WAL on the server",
                    )
                )
            self.progress.watched("archive", tuple(found))
            await asyncio.sleep(MARK_SECONDS)

    async def _cut(self) -> None:
        while True:
            await asyncio.sleep(self.interval)
            self._assembly.cut()

    async def _mark(self) -> None:
        while True:
            await asyncio.sleep(MARK_SECONDS)
            try:
                await self._marks.record(due=True)
            except Unavailable as error:
                self.progress.failed(error)

    def _moved(self) -> None:
        """Tell the server what is durable, so that it may let go of it, and go on reading if there is room again."""
        stream, assembly = self.session.stream, self._assembly
        moved = assembly.durable - stream.durable
        stream.durable = assembly.durable
        stream.paused = stream.paused and (self._ending or assembly.full)
        self._urged, self._paused = None, _now() if stream.paused else None
        stream.wake()
        if self._begun:
            self.progress.last_error = self._why
            self.progress.notifier.advance(moved)

    async def _flush(self) -> None:
        """Make durable what came, and write down how far that is; the server hears of it as long as it listens."""
        stream = self.session.stream
        self._ending = stream.paused = True
        stream.wake()
        await self._assembly.flush()
        await persistently(self._marks.record, failing=self.progress.failed)

    async def _leave(self) -> None:
        if self._left:
            return
        self._left = True
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await self._flush()
        except TimeoutError:
            text = f"what came after {self._assembly.watermark.ends} was not durable within {FLUSH_SECONDS:.0f} s"
            hint = "nothing is lost: the slot keeps it, and the next archiver goes on there"
            self.progress.found(
                Finding(severity="warning", subject=self.progress.notifier.subject, text=text, hint=hint)
            )


async def first_of(*coroutines: Coroutine[None, None, None]) -> None:
    """Run coroutines together until the first one ends; the others are cancelled. Raises what that one raises."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        await stop_tasks(tasks)


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _result(future: asyncio.Future[None]) -> None:
    await asyncio.wait([future])
    future.result()
