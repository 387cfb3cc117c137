"""The messages of streaming replication (PostgreSQL 55.4, START_REPLICATION) and what they prove. Pure."""

from __future__ import annotations

import struct
from collections import deque
from datetime import UTC, datetime, timedelta
from itertools import islice

from attrs import define, field, frozen

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
PROOFS_AT_MOST = 1024
_DATA = struct.Struct(">cQQq")
_KEEPALIVE = struct.Struct(">cQqB")
_STATUS = struct.Struct(">cQQQqB")


@frozen
class Data:
    """XLogData: some WAL from `begins` on. `flushed` is how far the server's WAL reached before `sent_at`."""

    begins: int
    flushed: int
    sent_at: int
    wal: memoryview

    @property
    def ends(self) -> int:
        """Where it ends."""
        return self.begins + len(self.wal)


@frozen
class Keepalive:
    """Primary keepalive: the server has sent everything up to `sent`; it may want a status at once."""

    sent: int
    sent_at: int
    wants_reply: bool


@frozen
class Proof:
    """Everything that the server had acknowledged before `at` (its clock, in microseconds) lies before `ends`."""

    ends: int
    at: int


def parse(message: bytes | memoryview) -> Data | Keepalive:
    """Read a message of the server. Raises ValueError."""
    view = memoryview(message)
    kind = bytes(view[:1])
    try:
        if kind == b"w":
            _, begins, flushed, sent_at = _DATA.unpack_from(view)
            return Data(begins, flushed, sent_at, view[_DATA.size :])
        if kind == b"k":
            _, sent, sent_at, wants_reply = _KEEPALIVE.unpack_from(view)
            return Keepalive(sent, sent_at, bool(wants_reply))
    except struct.error:
        pass
    raise ValueError(f"the server sent a message that begins with {kind!r} and cannot be read")


def status(*, received: int, durable: int, now: datetime, wants_reply: bool) -> bytes:
    """Write a standby status update; what is applied is what is durable: nothing is applied here."""
    micros = (now - EPOCH) // timedelta(microseconds=1)
    return _STATUS.pack(b"r", received, durable, durable, micros, wants_reply)


def moment(micros: int) -> datetime:
    """Return a time of the protocol."""
    return EPOCH + timedelta(microseconds=micros)


@define
class Prover:
    """Finds out what the messages of one connection prove; they are given in the order in which they came.

    The server's sender does one thing after the other. It looks how far WAL is flushed *after* it wrote the message
    before, and stamps the message at last: so data that reach up to `flushed` prove something as of the time of the
    message before, not of their own. A keepalive only tells what was sent, and may be written before the sender has
    looked again. But between a keepalive that answers us and the next one that does, it has looked: it does so each
    time that it has sent out an answer, long before we ask again. If it found nothing then, all was sent already.
    """

    _last: int | None = field(default=None, init=False)
    _answered: Keepalive | None = field(default=None, init=False)

    def data(self, message: Data) -> Proof | None:
        """Take in some WAL."""
        before, self._last = self._last, message.sent_at
        self._answered = None
        return None if before is None else Proof(message.flushed, before)

    def keepalive(self, message: Keepalive, *, answer: bool) -> Proof | None:
        """Take in a keepalive; `answer` if it answers a request made well after the answer before it had come."""
        self._last = message.sent_at
        if not answer or message.wants_reply:
            return None
        before, self._answered = self._answered, message
        if before is None or before.sent != message.sent:
            return None
        return Proof(message.sent, before.sent_at)


@define
class Proofs:
    """What is proven about how much of the log, to be asked for ever larger positions."""

    newest: int | None = None
    """Server time up to which everything acknowledged lies before the position last asked for."""
    _waiting: deque[Proof] = field(factory=deque)

    def add(self, proof: Proof) -> None:
        """Remember a proof."""
        if self._waiting and self._waiting[-1].ends == proof.ends:
            self._waiting.pop()
        elif len(self._waiting) >= PROOFS_AT_MOST:
            self._waiting = deque(islice(self._waiting, 0, None, 2))
        self._waiting.append(proof)

    def peek(self, position: int) -> int | None:
        """Return until when everything acknowledged lies before a position."""
        found = self.newest
        for proof in self._waiting:
            if proof.ends > position:
                break
            found = proof.at
        return found

    def upto(self, position: int) -> int | None:
        """Return the same and forget what is older."""
        while self._waiting and self._waiting[0].ends <= position:
            self.newest = self._waiting.popleft().at
        return self.newest
