"""Commands of the replication protocol (PostgreSQL 55.4) and their answers, for a thread that blocks.

psycopg's own blocking calls would hold the GIL while they wait, so everything waits in poll(2).
"""

from __future__ import annotations

import os
import select
from contextlib import suppress

from attrs import define, field
from psycopg import pq

from resilience.model.errors import Interrupted, ResilienceError, Unreachable

from .client import Dsn, from_server

_FIELD = pq.DiagnosticField
_FAILED = (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.BAD_RESPONSE)
_BROKEN = select.POLLERR | select.POLLHUP | select.POLLNVAL


class ServerSaid(Exception):
    """The server refused a command; `state` is its SQLSTATE, `error` what it means if nobody knows better."""

    def __init__(self, state: str, error: ResilienceError) -> None:
        super().__init__(str(error))
        self.state = state
        self.error = error


@define(kw_only=True)
class Replies:
    """One connection's commands, one after another; `stop`, from anywhere, makes a blocked call raise Interrupted."""

    connection: pq.abc.PGconn
    dsn: Dsn
    operation: str
    _ends: tuple[int, int] = field(factory=os.pipe, init=False)
    _stopped: bool = field(default=False, init=False)
    _unsent: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        """Make sure that nobody ever waits for a pipe that is full."""
        for end in self._ends:
            os.set_blocking(end, False)

    def wake(self) -> None:
        """Make `wait` return soon; may be called from another thread."""
        with suppress(BlockingIOError):
            os.write(self._ends[1], b"x")

    def stop(self) -> None:
        """Make what is going on raise Interrupted soon; may be called from another thread."""
        self._stopped = True
        self.wake()

    def go_on(self) -> None:
        """Forget that it was stopped; not while a call is running."""
        self._stopped = False

    def close(self) -> None:
        """Give back what `wake` needs; not while a call is running."""
        for end in self._ends:
            os.close(end)

    def ask(self, command: str) -> list[tuple[str | None, ...]]:
        """Run a command and return its rows, none if it has no answer. Raises ServerSaid."""
        while self.connection.get_result() is not None:
            continue  # what a command before this one left when it failed
        self.send(command)
        rows: list[tuple[str | None, ...]] = []
        while (result := self.result()) is not None:
            rows += rows_of(result)
        return rows

    def send(self, command: str) -> None:
        """Send a command."""
        self.connection.send_query(command.encode())
        while self.connection.flush():
            self.wait(select.POLLIN | select.POLLOUT)
            self.connection.consume_input()

    def result(self) -> pq.abc.PGresult | None:
        """Wait for a result, None after the last one of a command. Raises ServerSaid."""
        while self.connection.is_busy():
            self.wait()
            self.connection.consume_input()
        result = self.connection.get_result()
        if result is not None and result.status in _FAILED:
            raise self._said(result)
        return result

    def put(self, message: bytes) -> None:
        """Send a message of a copy, or as much of it as goes now; `wait` sends the rest."""
        self.connection.put_copy_data(message)
        self._unsent = bool(self.connection.flush())

    def wait(self, events: int = select.POLLIN, *, seconds: float | None = None) -> None:
        """Wait for something to read, a `wake` or the end of the time. Raises Interrupted and Unreachable."""
        if self._stopped:
            raise Interrupted("it was stopped", operation=self.operation, subject=self.dsn.where)
        poll = select.poll()
        poll.register(self.connection.socket, events | (select.POLLOUT if self._unsent else 0))
        poll.register(self._ends[0], select.POLLIN)
        ready = dict(poll.poll(None if seconds is None else max(0, round(seconds * 1000))))
        if self._ends[0] in ready:
            with suppress(BlockingIOError):
                os.read(self._ends[0], 4096)
        seen = ready.get(self.connection.socket, 0)
        if seen & _BROKEN and not seen & select.POLLIN and not events & select.POLLIN:
            raise Unreachable("the connection broke", operation=self.operation, subject=self.dsn.where)
        if self._unsent and seen & select.POLLOUT:
            self._unsent = bool(self.connection.flush())

    def _said(self, result: pq.abc.PGresult) -> ServerSaid:
        state, message, hint = (
            (result.error_field(name) or b"").decode(errors="replace")
            for name in (_FIELD.SQLSTATE, _FIELD.MESSAGE_PRIMARY, _FIELD.MESSAGE_HINT)
        )
        text = message or result.error_message.decode(errors="replace")
        return ServerSaid(state, from_server(state, text, hint, dsn=self.dsn, operation=self.operation))


def rows_of(result: pq.abc.PGresult) -> list[tuple[str | None, ...]]:
    """Return the rows of a result as text."""
    return [
        tuple(_text(result.get_value(row, column)) for column in range(result.nfields)) for row in range(result.ntuples)
    ]


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="replace")
