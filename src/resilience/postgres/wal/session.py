"""One connection of an archiver, opened: who the server is, its slot, and the place where the archive goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from functools import partial
from typing import NoReturn, TypeVar

from attrs import define, evolve, field, frozen

from resilience.concurrency import closing, in_background
from resilience.model.errors import (
    ChecksumMismatch,
    LineageBroken,
    ObjectMissing,
    Refused,
    ResilienceError,
    Unavailable,
    WouldLeaveGap,
)
from resilience.model.findings import Finding
from resilience.model.log import Branch, Gap, LogFacts, Watermark
from resilience.postgres.client import Dsn, replication
from resilience.postgres.lsn import position
from resilience.primitives import Archiver, Log

from .names import parse_history
from .start import Leg, Start, fresh, go_on, legs, names_standby, unrecorded
from .stream import ServerFacts, SlotFacts, SlotLost, WalRemoved, WalStream

T = TypeVar("T")

OPERATION = "archive wal"
SYSTEM = "postgresql"


class LookAgain(Unavailable):
    """The archive's log has changed: opening once more goes on from there."""


@frozen(kw_only=True)
class Session:
    """A stream that has begun, and what is needed to go on with it. `kept` is what the archive has from there on."""

    stream: WalStream
    facts: ServerFacts
    log: Log
    start: Start
    kept: bytes


@define(kw_only=True)
class Opener:
    """Opens sessions of one archiver; `lineage` is the one that it has met, `anew` allows it to leave a hole."""

    name: str
    dsn: Dsn
    slot: str
    archive: Archiver
    clock: Callable[[], datetime]
    ping_seconds: float
    anew: bool
    found: Callable[[Finding], None]
    lineage: str = ""
    _made: bool = field(default=False, init=False)

    @property
    def application(self) -> str:
        """The name that the server knows the archiver by; it is the slot's."""
        return self.slot

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Session]:
        """Connect and begin to stream where the archive goes on; the slot is made if it is missing.

        Raises WouldLeaveGap if the server no longer has that WAL, LineageBroken if it is another server's.
        """
        dsn = Dsn({**self.dsn.parameters, "application_name": self.application})
        async with replication(dsn, operation=OPERATION) as connection:
            stream = WalStream(
                connection=connection,
                dsn=dsn,
                operation=OPERATION,
                slot=self.slot,
                clock=self.clock,
                ping_seconds=self.ping_seconds,
            )
            try:
                facts = await called(stream, stream.identify)
                self._check(facts)
                async with self.archive.log(self.name, system=SYSTEM, lineage=facts.lineage) as log:
                    yield await self._begin(stream, facts, log)
            finally:
                stream.close()

    def _check(self, facts: ServerFacts) -> None:
        if names_standby(facts.synchronous, self.application):
            raise self.synchronous(facts.synchronous)
        if self.lineage not in ("", facts.lineage):
            raise self._broken(f"the server is now of lineage {facts.lineage}, it was of {self.lineage}")
        self.lineage = facts.lineage

    def synchronous(self, setting: str) -> Refused:
        """Say why nothing is archived where commits would wait for it."""
        return Refused(
            f"synchronous_standby_names is {setting!r}, so commits would wait for the archive",
            operation=OPERATION,
            subject=self.name,
            hint=f"name the standbys that are meant there, and not {self.application!r}",
        )

    async def _begin(self, stream: WalStream, facts: ServerFacts, log: Log) -> Session:
        known = await log.survey()
        path = legs(facts.timeline, facts.history)
        self._look_for_newer(known, facts)
        begun = go_on(known, path, facts.segment_size)
        if begun is None and known.watermarks and not self.anew:
            ours, theirs = known.watermarks[-1].ends, position(facts.timeline, facts.flushed)
            raise self._gap(f"the archive ends at {ours}, a timeline that the server never was on; it is at {theirs}")
        slot = await self._slot(stream, expected=begun is not None)
        start = begun or fresh(slot.timeline or facts.timeline, slot.reserved or facts.flushed, facts.segment_size)
        ends = {leg.timeline: leg.ends for leg in path}[start.timeline]
        if start.durable > (facts.flushed if ends is None else ends):
            raise self._ahead(start, facts)
        for leg in unrecorded(known, path, start.timeline):
            await log.record(await _history(stream, leg))
        try:
            start, kept = await self._start(stream, log, start, facts, ends)
        except WalRemoved:
            await self._hole(stream, facts, log, start, slot)
        except SlotLost as error:
            # It is there and physical, so it was invalidated; since 18 one may be that still knows where it began.
            await called(stream, stream.drop_slot)
            raise LookAgain(error.what, operation=OPERATION, subject=self.name) from error
        if start.watermark is None:
            # Without it, an entry that is stored before the one ahead of it would be taken for the beginning.
            begins = position(start.timeline, start.begins)
            await log.record(Watermark(begins=begins, ends=begins))
        return Session(stream=stream, facts=facts, log=log, start=start, kept=kept)

    async def _start(
        self, stream: WalStream, log: Log, start: Start, facts: ServerFacts, ends: int | None
    ) -> tuple[Start, bytes]:
        """Begin to stream; return where that is, and what the archive has from there on.

        Where the archive ends with a whole segment, that one is streamed again if the server still has it: another
        history could not be told from this one otherwise.
        """
        size, reach = facts.segment_size, facts.flushed if ends is None else ends
        if start.watermark is not None and start.durable == start.begins >= start.watermark.begins.offset + size:
            before = evolve(start, begins=start.begins - size)
            kept = await self._kept(log, before)
            if len(kept) == size:
                with suppress(WalRemoved):
                    await called(stream, partial(stream.start, before.timeline, before.begins, expected=True))
                    return before, kept
        kept = await self._kept(log, start)
        await called(stream, partial(stream.start, start.timeline, start.begins, expected=start.begins < reach))
        return start, kept

    def _look_for_newer(self, known: LogFacts, facts: ServerFacts) -> None:
        """Say so if the archive has a newer timeline than the server: nobody else would notice an old primary."""
        newest = max((int(branch.name) for branch in known.branches), default=0)
        if newest > facts.timeline:
            text = f"the server is on timeline {facts.timeline}, but the archive has timeline {newest} already"
            hint = "look whether another server has taken over: what this one writes is on the older timeline only"
            self.found(Finding(severity="warning", subject=self.name, text=text, hint=hint))

    async def _slot(self, stream: WalStream, *, expected: bool) -> SlotFacts:
        """Return the slot, made if it is missing, or made again if it keeps nothing."""
        self._made = False
        found = await called(stream, stream.find_slot)
        if found is not None and found.reserved is None:
            await called(stream, stream.drop_slot)
        if found is None or found.reserved is None:
            await called(stream, stream.create_slot)
            self._made = True
            if expected:
                text = f"the slot {self.slot} was {'gone' if found is None else 'invalidated'} and has been made again"
                self.found(
                    Finding(
                        severity="warning",
                        subject=self.name,
                        text=text,
                        hint="look who dropped it, and at max_slot_wal_keep_size",
                    )
                )
            found = await called(stream, stream.find_slot)
        if found is None or found.reserved is None:
            raise Unavailable(f"the slot {self.slot} has gone again", operation=OPERATION, subject=self.name)
        return found

    async def _hole(self, stream: WalStream, facts: ServerFacts, log: Log, start: Start, slot: SlotFacts) -> NoReturn:
        """Refuse to leave a hole, or leave it and say so in the log."""
        there = slot.reserved if slot.reserved is not None and slot.reserved > start.begins else facts.flushed
        anew = fresh(slot.timeline or facts.timeline, there, facts.segment_size)
        ends, begins = position(start.timeline, start.durable), position(anew.timeline, anew.begins)
        if not self.anew:
            if self._made:
                with suppress(ResilienceError):
                    await called(stream, stream.drop_slot)
            raise self._gap(f"the archive ends at {ends}, but the server has WAL from {begins} on only")
        for leg in unrecorded(await log.survey(), legs(facts.timeline, facts.history), anew.timeline):
            await log.record(await _history(stream, leg))
        reason = f"the server had removed this WAL when a new chain was begun with slot {self.slot}"
        await log.record(Gap(begins=ends, ends=begins, reason=reason, noted_at=self.clock()))
        await log.record(Watermark(begins=begins, ends=begins))
        self.found(Finding(severity="warning", subject=self.name, text=f"the log has a gap: {ends} to {begins}"))
        raise LookAgain("a new chain has begun", operation=OPERATION, subject=self.name)

    async def _kept(self, log: Log, start: Start) -> bytes:
        """Return what the archive has of the open segment, up to the first entry that cannot be read."""
        kept = bytearray()
        if start.durable == start.begins:
            return bytes(kept)
        branch = str(start.timeline)
        async with closing(log.entries(branch, begins=start.begins, ends=start.durable)) as entries:
            async for entry in entries:
                at = entry.begins.offset - start.begins
                if at > len(kept):
                    break
                try:
                    kept[at:] = b"".join(await log.read(entry))
                except (ChecksumMismatch, ObjectMissing) as error:
                    text = f"the end of the archive cannot be read: {error}"
                    hint = "what is damaged of an open segment is archived again; of a whole one, take a base backup"
                    self.found(Finding(severity="warning", subject=self.name, text=text, hint=hint))
                    break
        return bytes(kept[: start.durable - start.begins])

    def _ahead(self, start: Start, facts: ServerFacts) -> ResilienceError:
        ours, theirs = position(start.timeline, start.durable), position(facts.timeline, facts.flushed)
        if facts.standby:
            text = f"the standby has WAL up to {theirs}, the archive up to {ours}"
            return Unavailable(text, operation=OPERATION, subject=self.name)
        return self._broken(f"the archive ends at {ours}, the server's WAL at {theirs}: it has lost some")

    def _gap(self, text: str) -> WouldLeaveGap:
        hint = "begin a new chain (new_chain=True) and take a base backup: what lies between is lost"
        return WouldLeaveGap(text, operation=OPERATION, subject=self.name, hint=hint)

    def _broken(self, text: str) -> LineageBroken:
        hint = "archive it under a name of its own, beginning with a base backup"
        return LineageBroken(text, operation=OPERATION, subject=self.name, hint=hint)


async def called(stream: WalStream, function: Callable[[], T]) -> T:
    """Call what blocks in a thread; cancelled, the call is stopped."""

    def once() -> Iterator[T]:
        yield function()

    try:
        async with in_background(once(), ahead=1, stop=stream.stop) as results:
            return await anext(results)
    finally:
        stream.go_on()


async def _history(stream: WalStream, leg: Leg) -> Branch:
    """Return a timeline as the server has it written down, or as the history of the newest one tells it."""
    text = await called(stream, partial(stream.history, leg.timeline))
    return leg.branch if text is None else parse_history(leg.timeline, text)
