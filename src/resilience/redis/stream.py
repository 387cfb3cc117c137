"""An RDB as a Redis server sends it to a replica: a snapshot without its disk, and without touching its files.

We say that we are a replica that can read a stream of unknown length (`REPLCONF capa eof`) and wants nothing but the
RDB (`rdb-only`, from Redis 7 on; an older server begins to send commands afterwards, which nobody reads). The answer to
`PSYNC ? -1` names the history and the place in it that the snapshot is of. See redis.io/docs/latest/operate/oss_and_
stack/management/replication, and src/replication.c of Redis.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from attrs import define, field

from resilience.model.errors import Corrupt, ResilienceError, Unreachable, Unsupported
from resilience.model.positions import Position

from .client import Url
from .link import Link
from .rdb import HEAD, Checksum, Header, at, read_header
from .replies import from_server
from .survey import Info

CHUNK = 4 << 20
_MARK = 40
_FULL = re.compile(rb"\+FULLRESYNC ([0-9a-zA-Z]{40}) ([0-9]+)")
_SLACK = timedelta(seconds=1)
"""The header tells the time in whole seconds, and its clock is read by a child that was forked a moment earlier."""


@define
class RdbStream:
    """One RDB being read; its methods run in one thread, but for `stop`.

    `version` is what we pretend to be, empty for nothing. A Valkey writes the RDB of an old Redis for whoever does not
    say, or fails if that cannot hold what it has.
    """

    url: Url
    disk: bool = False
    version: str = ""
    position: Position | None = field(default=None, init=False)
    size: int | None = field(default=None, init=False)
    header: Header | None = field(default=None, init=False)
    checked: bool = field(default=False, init=False)
    master: bool = field(default=True, init=False)
    _asked: datetime | None = field(default=None, init=False)
    _checksum: Checksum = field(factory=Checksum, init=False)
    _link: Link = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._link = Link(self.url, "backup")

    def start(self) -> None:
        """Become a replica; returns once the server is about to send. Raises Unavailable, Refused or Unsupported."""
        link = self._link
        link.open()
        info = self._info()
        self.master = info.master
        self._asked = info.time or self._time()
        if not self.disk:
            self._ask("REPLCONF", "capa", "eof")
        self._ask("REPLCONF", "rdb-only", "1", optional=True)
        if self.version:
            self._ask("REPLCONF", "version", self.version, optional=True)
        link.send("PSYNC", "?", "-1")
        line = self._line()
        match = _FULL.match(line)
        if match is None:
            raise self._refused(line)
        self.position = at(match[1].decode(), int(match[2]))

    def chunks(self) -> Iterator[bytes]:
        """Yield the RDB in chunks of 4 MiB, checked at its end. Raises Unreachable if it is cut off, Corrupt."""
        line = self._line()
        if line[:5] == b"$EOF:" and len(line) == 5 + _MARK:
            pieces = self._to_mark(line[5:])
        elif line[:1] == b"$" and line[1:].isdigit():
            self.size = int(line[1:])
            pieces = self._counted(self.size)
        else:
            raise self._refused(line)
        for piece in pieces:
            if self.header is None:
                self.header = read_header(piece[:HEAD])
            self._checksum.update(piece)
            yield piece
        self.checked = self._checksum.verify()

    def stop(self) -> None:
        """Have a read that waits return; from any thread."""
        self._link.stop()

    def close(self) -> None:
        """Close the connection, once the thread has come to an end: the server stops sending."""
        self._link.close()

    @property
    def taken(self) -> datetime | None:
        """A time, by the server's clock, before which everything acknowledged is in the RDB.

        The snapshot was begun after we asked for it, unless the server sends one that another replica waits for. What
        a replica has, its master has acknowledged at a time that nobody knows.
        """
        forked = None if self.header is None else self.header.forked
        if forked is None or self._asked is None or not self.master:
            return None
        return self._asked if forked > self._asked else forked - _SLACK

    def _to_mark(self, mark: bytes) -> Iterator[bytes]:
        """Yield what comes before the mark. It is the last the server sends until we would acknowledge it."""
        buffer = memoryview(bytearray(CHUNK + _MARK))
        filled = 0
        while True:
            filled += self._read(buffer[filled:])
            if filled >= _MARK and buffer[filled - _MARK : filled] == mark:
                if filled > _MARK:
                    yield bytes(buffer[: filled - _MARK])
                return
            if filled == len(buffer):
                yield bytes(buffer[:CHUNK])
                buffer[:_MARK] = buffer[CHUNK:]
                filled = _MARK

    def _counted(self, size: int) -> Iterator[bytes]:
        buffer = memoryview(bytearray(CHUNK))
        while size:
            wanted, filled = min(size, CHUNK), 0
            while filled < wanted:
                filled += self._read(buffer[filled:wanted])
            yield bytes(buffer[:wanted])
            size -= wanted

    def _read(self, buffer: memoryview) -> int:
        try:
            return self._link.read_into(buffer)
        except Unreachable as error:
            text = f"the stream broke off after {self._checksum.size} bytes: {error.what}"
            hint = "its log says why: its child may have failed, or client-output-buffer-limit was exceeded"
            raise Unreachable(text, operation="backup", subject=self.url.where, hint=hint) from error

    def _info(self) -> Info:
        """Ask what the server says about itself."""
        self._link.send("INFO", "everything")
        line = self._link.read_line()
        if line[:1] != b"$" or not line[1:].isdigit():
            raise self._refused(line)
        return Info.parse(b"".join([*self._counted(int(line[1:])), self._link.read_line()]))

    def _time(self) -> datetime | None:
        """Ask the server's clock; None if we may not."""
        self._link.send("TIME")
        if self._link.read_line()[:1] != b"*":
            return None
        seconds, micros = [self._bulk() for _ in range(2)]
        return datetime.fromtimestamp(int(seconds), UTC) + timedelta(microseconds=int(micros))

    def _bulk(self) -> bytes:
        self._link.read_line()
        return self._link.read_line()

    def _ask(self, *words: str, optional: bool = False) -> None:
        self._link.send(*words)
        line = self._line()
        if line[:1] != b"+" and not (optional and b"nrecognized REPLCONF option" in line):
            raise self._refused(line)

    def _line(self) -> bytes:
        """Read a line; the empty ones before it say that the server is still at it."""
        while not (line := self._link.read_line()):
            continue
        return line

    def _refused(self, line: bytes) -> ResilienceError:
        where = self.url.where
        if line[:1] == b"-":
            return from_server(line[1:].decode(errors="replace"), where=where, operation="backup")
        if line[:1] == b"+":
            return Unsupported(f"it answers {line!r}, not FULLRESYNC", operation="backup", subject=where)
        return Corrupt(f"it sends {line[:60]!r} where an RDB should begin", operation="backup", subject=where)
