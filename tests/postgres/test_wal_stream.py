"""What the thread that reads a stream makes of messages, without a server."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import SimpleNamespace
from typing import cast

import pytest
from attrs import define, field
from psycopg import pq

from resilience.model.errors import Unreachable
from resilience.model.moments import utc_now
from resilience.postgres.client import parse_dsn
from resilience.postgres.wal import stream as wal_stream
from resilience.postgres.wal.stream import BATCH, Pulse, Wal, WalStream

PIECE = BATCH // 8


@define
class AllHere:
    """A connection that has received everything already: whoever waits for more waits in vain."""

    socket: int
    messages: deque[bytes]
    sent: list[bytes] = field(factory=list)

    def get_copy_data(self, _: int) -> tuple[int, memoryview]:
        message = self.messages.popleft() if self.messages else b""
        return len(message), memoryview(message)

    def put_copy_data(self, message: bytes) -> None:
        self.sent.append(message)

    def flush(self) -> int:
        return 0

    def consume_input(self) -> None:
        raise AssertionError("it waited, though something was there")


@define
class Silent(AllHere):
    """A connection that says no more, and does not end either; `answers` come one after another when waited for."""

    answers: deque[bytes] = field(factory=deque)

    def consume_input(self) -> None:
        if self.answers:
            self.messages.append(self.answers.popleft())

    def send_query(self, _: bytes) -> None:
        pass

    def is_busy(self) -> bool:
        return False

    def get_result(self) -> object:
        return SimpleNamespace(status=pq.ExecStatus.COPY_BOTH)


@contextmanager
def silent(monkeypatch: pytest.MonkeyPatch, *answers: bytes) -> Iterator[WalStream]:
    monkeypatch.setattr(wal_stream, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(wal_stream, "STATUS_SECONDS", 0.02)
    ours, theirs = socket.socketpair()
    connection = cast(pq.abc.PGconn, Silent(ours.fileno(), deque(), answers=deque(answers)))
    dsn = parse_dsn("host=127.0.0.1")
    made = WalStream(connection=connection, dsn=dsn, operation="", slot="", clock=utc_now, ping_seconds=0.02)
    with ours, theirs, closing(made):
        yield made


def keepalive(number: int) -> bytes:
    return struct.pack(">cQQB", b"k", 0, number, 0)


@pytest.fixture
def stream() -> Iterator[WalStream]:
    """A stream whose ninth message came together with those before."""
    ours, theirs = socket.socketpair()
    messages = deque(
        struct.pack(">cQQq", b"w", number * PIECE, 9 * PIECE, number) + bytes(PIECE) for number in range(9)
    )
    connection = cast(pq.abc.PGconn, AllHere(ours.fileno(), messages))
    dsn = parse_dsn("host=127.0.0.1")
    with ours, theirs, closing(WalStream(connection=connection, dsn=dsn, operation="", slot="", clock=utc_now)) as made:
        yield made


def test_what_came_with_a_full_batch_is_not_waited_for(stream: WalStream) -> None:
    items = stream.items()
    first, second = next(items), next(items)
    assert isinstance(first, Wal) and (first.begins, first.ends) == (0, BATCH)
    assert isinstance(second, Wal) and (second.begins, second.ends) == (BATCH, BATCH + PIECE)


def test_a_server_that_does_not_answer_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    with silent(monkeypatch, keepalive(1)) as stream:
        items = stream.items()
        assert isinstance(next(items), Pulse)
        with until_stopped(stream), pytest.raises(Unreachable, match="did not answer for 0.2 s"):
            next(items)


def test_a_server_that_answers_may_have_nothing_to_send(monkeypatch: pytest.MonkeyPatch) -> None:
    with silent(monkeypatch, *map(keepalive, range(1, 30))) as stream:
        items, began = stream.items(), time.monotonic()
        assert sum(isinstance(next(items), Pulse) for _ in range(29)) == 29
        assert time.monotonic() - began > 0.25


def test_while_nothing_is_read_nothing_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    with silent(monkeypatch, keepalive(1)) as stream:
        stream.paused = True
        threading.Timer(0.5, setattr, (stream, "paused", False)).start()
        assert isinstance(next(stream.items()), Pulse)


@pytest.mark.parametrize("answers", [0, 10_000], ids=["silent", "without WAL"])
def test_wal_that_is_expected_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch, answers: int) -> None:
    says = r"did not (answer|send the WAL that it has) for 0.2 s"
    said = map(keepalive, range(1, answers))
    with silent(monkeypatch, *said) as stream, until_stopped(stream), pytest.raises(Unreachable, match=says):
        stream.start(1, 0, expected=True)


@contextmanager
def until_stopped(stream: WalStream) -> Iterator[None]:
    """End what would wait for ever after some seconds."""
    timer = threading.Timer(5, stream.stop)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
