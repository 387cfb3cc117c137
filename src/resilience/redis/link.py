"""The replication stream's door: a socket of redis-py's own connection, read in a thread as the bytes come.

It takes its socket from redis-py, so that TLS, ACL users, credential providers and Unix sockets mean the same at both
doors. It is a blocking one: asyncio's streams would pass every byte through the event loop several times.
"""

from __future__ import annotations

import socket
from contextlib import suppress

import redis
from attrs import define, field

from resilience.model.errors import Unreachable, Unsupported

from .client import ANSWER_SECONDS, Url, look_at_files
from .replies import mapped

_LINE = 1 << 16
_CLOSED = "its log says why; a backup can be repeated"


class _Kept:
    """Keeps the socket that a connection opens: redis-py itself has no way to read from it in bulk."""

    opened: socket.socket

    def _connect(self) -> socket.socket:
        self.opened = super()._connect()  # type: ignore[misc]  # of the connection that it is mixed into
        return self.opened


class _KeptTcp(_Kept, redis.Connection):
    pass


class _KeptTls(_Kept, redis.SSLConnection):
    pass


class _KeptUnix(_Kept, redis.UnixDomainSocketConnection):
    pass


@define
class Link:
    """A connection of its own whose bytes are read as they come, in a thread; nothing is buffered behind our back."""

    url: Url
    operation: str
    _connection: _KeptTcp | _KeptTls | _KeptUnix | None = field(default=None, init=False)
    _stopped: bool = field(default=False, init=False)

    def open(self) -> None:
        """Connect and log in. Raises Unreachable, TimedOut or Refused."""
        look_at_files(self.url, self.operation)
        kinds = {"unix": _KeptUnix, "rediss": _KeptTls, "redis": _KeptTcp}
        with mapped(self.url.where, self.operation):
            self._connection = kinds[self.url.scheme](**self.url.options(), socket_timeout=ANSWER_SECONDS)
            self._connection.connect()
        if self._stopped:
            self.stop()

    def send(self, *words: str) -> None:
        """Send one command."""
        with mapped(self.url.where, self.operation):
            packed = [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
            self._socket.sendall(f"*{len(words)}\r\n{''.join(packed)}".encode())

    def read_into(self, buffer: memoryview) -> int:
        """Read what there is, at least one byte. Raises Unreachable at the end, TimedOut after a minute of silence."""
        with mapped(self.url.where, self.operation):
            count = self._socket.recv_into(buffer)
        if not count:
            raise Unreachable(
                "the server closed the connection", operation=self.operation, subject=self.url.where, hint=_CLOSED
            )
        return count

    def read_line(self) -> bytes:
        """Read one line, byte for byte so that nothing of what follows is taken; without its end."""
        line, one = bytearray(), memoryview(bytearray(1))
        while not line.endswith(b"\n"):
            self.read_into(one)
            line += one
            if len(line) > _LINE:
                raise Unsupported("it does not answer as Redis does", operation=self.operation, subject=self.url.where)
        return bytes(line).rstrip(b"\r\n")

    def stop(self) -> None:
        """Have a read that waits return; from any thread."""
        self._stopped = True
        if self._connection is not None and hasattr(self._connection, "opened"):
            with suppress(OSError):
                socket.socket.shutdown(self._connection.opened, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it; once no other thread uses it."""
        if self._connection is not None:
            self._connection.disconnect()  # type: ignore[no-untyped-call]

    @property
    def _socket(self) -> socket.socket:
        if self._connection is None:
            raise ValueError("it is not open")
        return self._connection.opened
