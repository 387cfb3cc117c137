"""WAL over the replication protocol (PostgreSQL 55.4), read by a thread that blocks.

While `paused` nothing is read, so that memory stays bounded, but the server goes on hearing from us: it would cut us
off after wal_sender_timeout. Only `durable` is ever reported as flushed, so the slot keeps all that is not.
"""

from __future__ import annotations

import re
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

from attrs import define, field, frozen
from psycopg import pq

from resilience.model.errors import Conflict, ResilienceError, Unavailable, Unreachable, Unsupported, WouldLeaveGap
from resilience.postgres.client import mapped
from resilience.postgres.lsn import format_lsn, parse_lsn
from resilience.postgres.replies import Replies, ServerSaid, rows_of

from .messages import Data, Keepalive, Proof, Prover, parse, status
from .names import SEGMENT_SIZES

BATCH = 1 << 20
STATUS_SECONDS = 1.0
ANSWER_SECONDS = 60.0
"""How long a server that was asked may say nothing: a network that lost the connection need not tell either side."""
_UNITS = {"B": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}
_GONE = "58P01"


class SlotBusy(Conflict):
    """Another process uses the slot."""


class SlotLost(Unavailable):
    """The slot was dropped or invalidated meanwhile: it has to be made again."""


class WalRemoved(WouldLeaveGap):
    """The server does not have the WAL any more that it was asked for."""


@frozen(kw_only=True)
class ServerFacts:
    """What a server says when the stream is opened; `standby` if it only replays what another server writes."""

    lineage: str
    timeline: int
    flushed: int
    segment_size: int
    synchronous: str
    standby: bool
    history: str = ""


@frozen(kw_only=True)
class SlotFacts:
    """A physical slot; `reserved` is from where on it keeps WAL, None if it keeps none (any more)."""

    reserved: int | None
    timeline: int | None


@frozen(kw_only=True)
class Wal:
    """Some WAL, joined from many messages. `latest` is when the last of it was sent, by the server's clock."""

    begins: int
    data: bytes
    latest: int
    flushed: int
    proof: Proof | None

    @property
    def ends(self) -> int:
        """Where it ends."""
        return self.begins + len(self.data)


@frozen(kw_only=True)
class Pulse:
    """The server is there: what it had sent, and when. `urgent` if it wants to hear at once how far we are."""

    sent: int
    sent_at: int
    urgent: bool
    proof: Proof | None


@frozen(kw_only=True)
class TimelineEnds:
    """The timeline ends at `at`, the server goes on with `following`."""

    at: int
    following: int


@define(kw_only=True)
class WalStream(Replies):
    """One connection: `identify`, look at the slot, `start`, then `items` to the end. All of them block.

    The event loop sets `durable` and `paused` and calls `wake`; it reads nothing else while a call is running.
    """

    slot: str
    clock: Callable[[], datetime]
    ping_seconds: float = 1.0
    durable: int = 0
    paused: bool = False
    _received: int = field(default=0, init=False)
    _reported: int = field(default=-1, init=False)
    _report_at: float = field(default=0.0, init=False)
    _ping_at: float = field(default=0.0, init=False)
    _pinged: bool = field(default=False, init=False)
    _silent_since: float | None = field(default=None, init=False)
    _ended: bool = field(default=False, init=False)
    _end: TimelineEnds | None = field(default=None, init=False)
    _pieces: list[memoryview] = field(factory=list, init=False)
    _held: int = field(default=0, init=False)
    _last: Data | None = field(default=None, init=False)
    _proof: Proof | None = field(default=None, init=False)
    _prover: Prover = field(factory=Prover, init=False)

    def identify(self) -> ServerFacts:
        """Ask who the server is, and for the history of its timeline."""
        with self._door():
            ((lineage, timeline, flushed, *_),) = self.ask("IDENTIFY_SYSTEM")
            facts = ServerFacts(
                lineage=lineage or "",
                timeline=int(timeline or 0),
                flushed=parse_lsn(flushed or ""),
                segment_size=_size(self._show("wal_segment_size")),
                synchronous=self._show("synchronous_standby_names"),
                standby=self.connection.parameter_status(b"in_hot_standby") == b"on",
                history=self._history(int(timeline or 0)) or "",
            )
        if facts.segment_size not in SEGMENT_SIZES:
            text = f"its WAL segments have {facts.segment_size} bytes"
            raise Unsupported(text, operation=self.operation, subject=self.dsn.where)
        return facts

    def history(self, timeline: int) -> str | None:
        """Return the history file of a timeline; None if the server does not have it (any more)."""
        with self._door():
            return self._history(timeline)

    def find_slot(self) -> SlotFacts | None:
        """Look at the slot; None if there is none. Raises Refused if it is not physical."""
        with self._door():
            ((kind, reserved, timeline),) = self.ask(f'READ_REPLICATION_SLOT "{self.slot}"')
        if kind is None:
            return None
        return SlotFacts(
            reserved=None if reserved is None else parse_lsn(reserved),
            timeline=None if timeline is None else int(timeline),
        )

    def create_slot(self) -> None:
        """Make the slot, keeping WAL from now on."""
        with self._door():
            self.ask(f'CREATE_REPLICATION_SLOT "{self.slot}" PHYSICAL (RESERVE_WAL)')

    def drop_slot(self) -> None:
        """Drop the slot. Raises SlotBusy if somebody uses it."""
        with self._door():
            self.ask(f'DROP_REPLICATION_SLOT "{self.slot}"')

    def start(self, timeline: int, begins: int, *, expected: bool) -> None:
        """Begin to stream; `expected` waits until WAL has come, so that it is sure that the server has it.

        Raises WalRemoved if it has not, SlotBusy if another process uses the slot, SlotLost if it is of no use, and
        Unreachable if it says nothing of use for ANSWER_SECONDS.
        """
        deadline = time.monotonic() + ANSWER_SECONDS
        with self._door():
            self._received = begins
            self.send(f'START_REPLICATION SLOT "{self.slot}" PHYSICAL {format_lsn(begins)} TIMELINE {timeline}')
            while self.connection.is_busy():
                self._not_after(deadline)
                self.wait(seconds=deadline - time.monotonic())
                self.connection.consume_input()
            if (said := self.result()) is None or said.status != pq.ExecStatus.COPY_BOTH:
                self._ended, self._end = True, self._timeline_ends(said)
            while expected and self._last is None and not self._ended:
                self._not_after(deadline, missing="send the WAL that it has")
                if self._read() is None and not self._ended:
                    self._idle()
            if self._ended and self._end is None:
                self._end = self._timeline_ends(self.result())

    def items(self) -> Iterator[Wal | Pulse | TimelineEnds]:
        """Yield WAL in order as it comes, signs of life in between, and at last where the timeline ends."""
        with self._door():
            while True:
                self._talk()
                full = self._held >= BATCH
                message = None if self.paused or full or self._ended else self._read()
                if isinstance(message, Data):
                    continue
                if self._last is not None:
                    yield self._batch(self._last)
                if isinstance(message, Keepalive):
                    yield Pulse(
                        sent=message.sent, sent_at=message.sent_at, urgent=message.wants_reply, proof=self._proof
                    )
                elif self._ended:
                    yield self._end or self._timeline_ends(self.result())
                    return
                elif not full:  # more may have come already, so that nothing would end the waiting
                    self._idle()

    def hang_up(self) -> None:
        """End the connection; not while a call is running."""
        self.connection.finish()

    def _read(self) -> Data | Keepalive | None:
        """Take what has come, one message; None if nothing has, or the server has `_ended`."""
        length, message = self.connection.get_copy_data(1)
        if length <= 0:
            self._ended = length < 0
            return None
        self._silent_since = None
        try:
            parsed = parse(message)
        except ValueError as error:
            raise Unreachable(str(error), operation=self.operation, subject=self.dsn.where) from None
        if isinstance(parsed, Keepalive):
            self._proof = self._prover.keepalive(parsed, answer=self._pinged and not parsed.wants_reply)
            self._pinged = self._pinged and parsed.wants_reply
            self._report_at = 0.0 if parsed.wants_reply else self._report_at
            return parsed
        if parsed.begins != self._received:
            text = f"the server sent WAL from {format_lsn(parsed.begins)}, not {format_lsn(self._received)}"
            raise Unreachable(text, operation=self.operation, subject=self.dsn.where)
        self._proof = self._prover.data(parsed)
        self._received = parsed.ends
        self._pieces.append(parsed.wal)
        self._held += len(parsed.wal)
        self._last = parsed
        return parsed

    def _batch(self, last: Data) -> Wal:
        wal = Wal(
            begins=last.ends - self._held,
            data=b"".join(self._pieces),
            latest=last.sent_at,
            flushed=last.flushed,
            proof=self._proof,
        )
        self._pieces, self._held, self._last = [], 0, None
        return wal

    def _idle(self) -> None:
        """Wait until something comes or is to be said."""
        self._talk()
        seconds = min(self._report_at, self._ping_at) - time.monotonic()
        if self.paused:
            self._silent_since = None  # nobody listens
            self.wait(0, seconds=seconds)
            return
        if self._pinged:
            self._silent_since = self._silent_since or time.monotonic()
            self._not_after(self._silent_since + ANSWER_SECONDS)
        self.wait(seconds=seconds)
        self.connection.consume_input()

    def _not_after(self, deadline: float, *, missing: str = "answer") -> None:
        if time.monotonic() > deadline:
            text = f"the server did not {missing} for {ANSWER_SECONDS:g} s"
            raise Unreachable(text, operation=self.operation, subject=self.dsn.where)

    def _talk(self) -> None:
        """Tell the server what is durable, if that has changed, it is time, or we want it to answer."""
        now = time.monotonic()
        ping = now >= self._ping_at and not self._pinged
        if now >= self._ping_at:
            self._ping_at = now + self.ping_seconds
        if ping or now >= self._report_at or self.durable != self._reported:
            self._reported, self._report_at = self.durable, now + STATUS_SECONDS
            self._pinged = self._pinged or ping
            message = status(received=self._received, durable=self._reported, now=self.clock(), wants_reply=ping)
            self.put(message)

    def _timeline_ends(self, said: pq.abc.PGresult | None) -> TimelineEnds:
        """End the copy as the server did, and read what it says then: which timeline follows, if one does."""
        if said is not None and said.status == pq.ExecStatus.COPY_IN:
            self.connection.put_copy_end()
            while self.connection.flush():
                self.wait(select.POLLIN | select.POLLOUT)
                self.connection.consume_input()
            said = self.result()
        rows = [] if said is None else rows_of(said)
        while self.result() is not None:
            continue
        for following, at in rows:
            return TimelineEnds(at=parse_lsn(at or ""), following=int(following or 0))
        raise Unreachable("the server ended the stream", operation=self.operation, subject=self.dsn.where)

    def _show(self, setting: str) -> str:
        return self.ask(f"SHOW {setting}")[0][0] or ""

    def _history(self, timeline: int) -> str | None:
        if timeline < 2:
            return None
        try:
            return self.ask(f"TIMELINE_HISTORY {timeline}")[0][1]
        except ServerSaid as said:
            if said.state == _GONE:
                return None
            raise

    @contextmanager
    def _door(self) -> Iterator[None]:
        """Turn what the server and the driver say into our errors."""
        try:
            with mapped(self.dsn, self.operation):
                yield
        except ServerSaid as said:
            kind = _KINDS.get(said.state)
            if kind is None:
                raise said.error from None
            raise kind(said.error.what, operation=self.operation, subject=self.dsn.where) from None


_KINDS: dict[str, type[ResilienceError]] = {
    "58P01": WalRemoved,  # a file is missing: the segment that was asked for
    "42704": SlotLost,  # dropped
    "55000": SlotLost,  # invalidated
    "55006": SlotBusy,
}


def _size(text: str) -> int:
    """Read a size as SHOW writes it."""
    match = re.fullmatch(r"(\d+)(B|kB|MB|GB)", text)
    return int(match[1]) * _UNITS[match[2]] if match else 0
