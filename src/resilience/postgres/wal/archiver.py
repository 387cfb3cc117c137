"""WalArchiver: WAL goes into the archive while it is written, through a replication slot of its own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Self

from attrs import define, field
from attrs.validators import gt
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_never, wait_random_exponential

from resilience.concurrency import stop_tasks
from resilience.model.errors import ResilienceError, Unavailable
from resilience.model.events import Notifier, Observer
from resilience.model.findings import Finding
from resilience.model.ids import checked_name
from resilience.model.moments import utc_now
from resilience.postgres.client import Dsn, parse_dsn
from resilience.primitives import Archiver

from .progress import Progress
from .session import OPERATION, LookAgain, Opener
from .slots import Slots
from .start import names_standby
from .status import ArchiverStatus
from .stream import SlotBusy, WalRemoved
from .streaming import Streaming, first_of

LONGEST_PAUSE = 10.0
BUSY_SECONDS = 5.0
"""How long a slot that another process uses is waited for at first."""
BUSY_AFTER_CUT_SECONDS = 120.0
"""The same after a cut: the server may take wal_sender_timeout to notice that we are gone."""
WATCH_SECONDS = 5.0
_SLOT = re.compile("[a-z0-9_]{1,63}")


def _dsns(dsns: Sequence[str | Dsn]) -> tuple[Dsn, ...]:
    return tuple(map(parse_dsn, dsns))


@define
class WalArchiver:
    """Streams a PostgreSQL server's WAL (15 to 18) into an archive for as long as it is entered: `async with`.

    It uses the physical replication slot `slot` (default: `resilience_` and the name) and makes it if it is missing; on
    leaving the slot stays, since it keeps what is not archived yet. The role needs LOGIN and REPLICATION. WAL of the
    segment that is being written is archived every `interval` seconds if there is more of it. After a cut or a restart
    it connects again, for ever, with pauses of up to ten seconds; it follows the server to new timelines. `standbys`
    are servers that may take over: a slot is kept on each and moved on, so that a failover leaves no hole; `dsn` should
    name all of them, with target_session_attrs=primary. The more than `slot_warning` bytes of WAL that the slot keeps
    on the server, the `findings` of `status` warn of; more than `slot_limit`, and it is a blocker.

    Entering raises Unavailable if the server does not answer, Conflict if another process uses the slot, Refused if
    synchronous_standby_names would make commits wait for it, and WouldLeaveGap if the server no longer has the WAL that
    the archive continues with. `new_chain` accepts that, once, and has the gap recorded. What makes going on impossible
    later, cancels the body and is raised on leaving. On leaving, also by cancellation, what was received is made
    durable within ten seconds.
    """

    name: str = field(converter=checked_name)
    dsn: Dsn = field(converter=parse_dsn, kw_only=True)
    archive: Archiver = field(kw_only=True, repr=False)
    slot: str = field(kw_only=True)
    interval: float = field(default=5.0, kw_only=True, validator=gt(0))
    standbys: tuple[Dsn, ...] = field(default=(), converter=_dsns, kw_only=True)
    new_chain: bool = field(default=False, kw_only=True)
    slot_warning: int = field(default=2 << 30, kw_only=True)
    slot_limit: int = field(default=10 << 30, kw_only=True)
    observer: Observer | None = field(default=None, kw_only=True, repr=False)
    clock: Callable[[], datetime] = field(default=utc_now, kw_only=True, repr=False)
    _progress: Progress = field(init=False, repr=False)
    _running: _Running | None = field(default=None, init=False, repr=False)

    @slot.default
    def _own_slot(self) -> str:
        return "resilience_" + re.sub("[^a-z0-9_]", "_", self.name.lower())[:52]

    @slot.validator
    def _possible(self, _: object, slot: str) -> None:
        if not _SLOT.fullmatch(slot):
            raise ValueError(f"{slot!r} cannot be the name of a slot: use up to 63 of a-z, 0-9 and _")

    def __attrs_post_init__(self) -> None:
        """Have a status before anything has happened."""
        self._progress = Progress(notifier=Notifier(OPERATION, self.name, self.observer))

    @property
    def status(self) -> ArchiverStatus:
        """How far it is, now; costs nothing. Stays after leaving."""
        return self._progress.status()

    async def __aenter__(self) -> Self:
        """Connect, find out where to go on, and begin to stream; returns when the first connection streams."""
        if self._running is not None:
            raise RuntimeError("a WalArchiver can be entered once at a time")
        self._progress = Progress(notifier=Notifier(OPERATION, self.name, self.observer))
        self._running = running = _Running(archiver=self, progress=self._progress)
        try:
            await running.start()
        except BaseException:
            self._running = None
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Make durable what was received and disconnect; raises what made going on impossible, if anything did."""
        running, self._running = self._running, None
        if running is not None:
            await running.stop(error)


@define(kw_only=True)
class _Running:
    """One entered archiver: the task that archives, and its owner, which is cancelled if that task fails."""

    archiver: WalArchiver
    progress: Progress
    _opener: Opener = field(init=False)
    _slots: Slots = field(init=False)
    _ready: asyncio.Future[None] = field(init=False)
    _owner: asyncio.Task[object] | None = field(factory=asyncio.current_task, init=False)
    _task: asyncio.Task[None] = field(init=False)
    _failed: BaseException | None = field(default=None, init=False)
    _leaving: bool = field(default=False, init=False)
    _cancelling: int | None = field(default=None, init=False)
    _streamed_at: float | None = field(default=None, init=False)
    _entered_at: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Prepare to connect."""
        archiver, loop = self.archiver, asyncio.get_running_loop()
        self._ready, self._entered_at = loop.create_future(), loop.time()
        self._opener = Opener(
            name=archiver.name,
            dsn=archiver.dsn,
            slot=archiver.slot,
            archive=archiver.archive,
            clock=archiver.clock,
            ping_seconds=min(max(archiver.interval / 2, 0.1), 1.0),
            anew=archiver.new_chain,
            found=self.progress.found,
        )
        self._slots = Slots(
            target=archiver.name,
            name=archiver.slot,
            warning=archiver.slot_warning,
            limit=archiver.slot_limit,
            dsn=archiver.dsn,
        )

    async def start(self) -> None:
        """Run the task until it streams. Raises what it fails with before."""
        keeping = [self._keep(standby) for standby in self.archiver.standbys]
        self._task = asyncio.create_task(first_of(self._archive(), self._watch(), *keeping))
        try:
            await asyncio.wait([self._task, self._ready], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await stop_tasks([self._task])
            raise
        if self._task.done():
            self._task.result()
        self._task.add_done_callback(self._interrupt)

    async def stop(self, error: BaseException | None) -> None:
        """End the task; raise what it failed with, unless the body failed with something of its own."""
        self._leaving = True
        try:
            await stop_tasks([self._task])
        finally:
            ours = False
            if self._cancelling is not None and self._owner is not None:
                ours = self._owner.uncancel() <= self._cancelling
        failed = self._failed or (None if self._task.cancelled() else self._task.exception())
        if failed is None:
            self.progress.notifier.tell("completed")
        elif error is None or (ours and isinstance(error, asyncio.CancelledError)):
            raise failed from None
        else:
            error.add_note(f"the archiving of {self.archiver.name} had failed before: {failed}")

    def _interrupt(self, task: asyncio.Task[None]) -> None:
        if self._leaving or task.cancelled() or self._owner is None or self._owner.done():
            return
        self.progress.connected = False
        self.progress.failed(task.exception() or asyncio.CancelledError())
        self._cancelling = self._owner.cancelling()
        self._owner.cancel()

    async def _archive(self) -> None:
        self.progress.notifier.tell("started")
        try:
            while True:
                retrying = AsyncRetrying(
                    retry=retry_if_exception(self._worth_it),
                    wait=wait_random_exponential(multiplier=0.2, max=LONGEST_PAUSE),
                    stop=stop_never,
                    before_sleep=self._pausing,
                )
                await retrying(self._session)
        except Exception as error:
            self._failed = error
            self.progress.notifier.tell("failed", str(error))
            raise

    async def _watch(self) -> None:
        """Look at the slot every few seconds. Raises Refused if commits have begun to wait for the archive."""
        await asyncio.wait([self._ready])
        while True:
            try:
                seen = await self._slots.look()
            except ResilienceError as error:
                text = f"the slot {self._slots.name} cannot be watched: {error}"
                finding = Finding(severity="warning", subject=self.archiver.name, text=text)
                # That a server is away is said otherwise.
                away = isinstance(error, Unavailable) and not self.progress.connected
                self.progress.watched("slot", () if away else (finding,))
                self.progress.slot_bytes = None
            else:
                if names_standby(seen.synchronous, self._opener.application):
                    raise self._opener.synchronous(seen.synchronous)
                self.progress.watched("slot", seen.findings)
                self.progress.slot_bytes = seen.slot_bytes
            await asyncio.sleep(WATCH_SECONDS)

    async def _keep(self, standby: Dsn) -> None:
        """Keep the slot on a standby, and move it on every few seconds."""
        await asyncio.wait([self._ready])
        while True:
            durable = 0 if self.progress.assembly is None else self.progress.assembly.durable
            found = await self._slots.keep(standby, lineage=self._opener.lineage, durable=durable)
            self.progress.watched(standby.where, found)
            await asyncio.sleep(WATCH_SECONDS)

    def _worth_it(self, error: BaseException) -> bool:
        """Tell whether to try again; before anything was streamed, only what will pass by itself."""
        now = asyncio.get_running_loop().time()
        if isinstance(error, SlotBusy):
            if self._streamed_at is None:
                return now < self._entered_at + BUSY_SECONDS
            return now < self._streamed_at + BUSY_AFTER_CUT_SECONDS
        return isinstance(error, LookAgain) or (self._ready.done() and isinstance(error, Unavailable))

    def _pausing(self, state: RetryCallState) -> None:
        if state.outcome is not None and (error := state.outcome.exception()) is not None:
            self.progress.failed(error)

    async def _session(self) -> None:
        """Open a session and stream to its end; raises only if nothing came, so that the pauses begin anew."""
        async with self._opener.opened() as session:
            streaming = Streaming(session=session, progress=self.progress, interval=self.archiver.interval)
            if self._ready.done():
                self.progress.reconnects += 1
            else:
                self._ready.set_result(None)
            self._opener.anew = False
            try:
                await streaming.run()
            except (Unavailable, WalRemoved) as error:
                if not streaming.came:
                    raise
                self.progress.failed(error)
            finally:
                self.progress.connected = False
                self._streamed_at = asyncio.get_running_loop().time()
