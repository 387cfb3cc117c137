"""What the thread that reads a stream makes of messages, without a server."""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from typing import cast

import pytest
from attrs import define, field
from psycopg import pq

from resilience.model.moments import utc_now
from resilience.postgres.client import parse_dsn
from resilience.postgres.wal.stream import BATCH, Wal, WalStream

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
