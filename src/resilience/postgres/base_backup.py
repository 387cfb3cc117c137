"""BASE_BACKUP over the replication protocol (PostgreSQL 55.4), read by a thread that blocks.

The blocking `get_copy_data(0)` would hold the GIL while it waits, so the thread waits in poll(2) and reads what is
there. A temporary slot that reserves WAL is made first: without it the segments that make the backup consistent could
be recycled before they are sent. Server and slot forget both when the connection ends.

With a parent's manifest, uploaded beforehand on the same connection, the server sends an incremental backup (26.3.3):
of files that hold relations only the blocks that its WAL summaries say have changed.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from datetime import datetime

from attrs import define, field, frozen
from psycopg import pq

from resilience.model.errors import Corrupt, Interrupted, NotIncremental, Refused, Unreachable
from resilience.model.positions import Position
from resilience.streams.frames import FRAME_SIZE
from resilience.streams.tar import Member, TarWalker

from . import server_manifest
from .client import Dsn, from_server, mapped
from .lsn import position
from .server_manifest import FileChecksums, ServerManifest

LAST_FILE = "global/pg_control"
_COPY = (pq.ExecStatus.COPY_OUT,)
_FIELD = pq.DiagnosticField
_FAILED = (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.BAD_RESPONSE)
# What a server says that cannot build on a parent: not in that state (no summaries), wrong setting, unknown command
# (before 17), and "internal error" for a manifest that it cannot read.
_NOT_INCREMENTAL = ("55000", "22023", "42601", "0A000", "XX000")


@frozen
class Begin:
    """A new part begins; the chunks that follow are its bytes."""

    part: str


@frozen(kw_only=True)
class Parent:
    """What an incremental backup builds on: the server's manifest of that backup, and the timeline it ended on."""

    manifest: bytes = field(repr=False)
    branch: str


@define(kw_only=True)
class BaseBackup:
    """One base backup on one connection: `start`, then `items` to the end, then the fields say what it was.

    `size` is the server's own estimate of the whole cluster, `sizes` the same by tablespace (`""` is the main one); of
    these an incremental backup sends only a part.

    Both block and belong in a thread; `stop`, from anywhere, makes them raise soon.
    """

    connection: pq.abc.PGconn
    dsn: Dsn
    label: str
    lineage: str
    clock: Callable[[], datetime]
    keep_damaged: bool = False
    parent: Parent | None = None
    sizes: dict[str, int] = field(factory=dict)
    tablespaces: dict[str, str] = field(factory=dict)
    begins: Position | None = None
    ends: Position | None = None
    consistent_at: datetime | None = None
    warnings: list[str] = field(factory=list)
    damaged: str = ""
    _wake: tuple[int, int] = field(factory=os.pipe)
    _asking: bool = False
    _drained_at: datetime | None = None
    _poll: select.poll = field(factory=select.poll)
    _checksums: FileChecksums = field(factory=FileChecksums)
    _manifest: bytearray = field(factory=bytearray)

    def stop(self) -> None:
        """Make a blocked call raise Interrupted; may be called from another thread."""
        os.write(self._wake[1], b"x")

    def close(self) -> None:
        """Give back what `stop` needs; not while a call is running."""
        for end in self._wake:
            os.close(end)

    @property
    def size(self) -> int:
        """The server's estimate of the whole cluster."""
        return sum(self.sizes.values())

    def start(self) -> None:
        """Ask the server to begin; returns when it has, with `size` and `tablespaces` known.

        Raises Refused if the server is of another lineage, NotIncremental if it cannot build on the parent.
        """
        with mapped(self.dsn, "backup"):
            self._start()

    def _start(self) -> None:
        self.connection.notice_handler = self._notice
        (lineage, timeline, *_) = self._query("IDENTIFY_SYSTEM")[0]
        if lineage != self.lineage:
            raise Refused(
                f"the server is now of lineage {lineage}, the plan was made for {self.lineage}",
                operation="backup",
                subject=self.dsn.where,
            )
        if self.parent is not None:
            self._upload(self.parent, timeline)
        self._query(f'CREATE_REPLICATION_SLOT "resilience_{os.getpid()}_{id(self):x}" TEMPORARY PHYSICAL (RESERVE_WAL)')
        # The WAL comes along, so there is no need to wait until the server has archived it.
        self._send(
            f"BASE_BACKUP (LABEL '{self.label}', PROGRESS true, CHECKPOINT 'fast', WAL true, WAIT false, "
            "MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C'" + (")" if self.parent is None else ", INCREMENTAL true)")
        )
        ((lsn, timeline),) = self._result()
        self._asking = False
        self.begins = position(timeline, lsn)
        for oid, location, kilobytes in self._result():
            self.sizes[oid] = int(kilobytes or 0) * 1024
            if oid:
                self.tablespaces[oid] = location
        self._result(expected=_COPY)

    def _upload(self, parent: Parent, timeline: str) -> None:
        """Tell the server what the parent held (UPLOAD_MANIFEST, COPY IN); from here on it may say that it cannot."""
        if timeline != parent.branch:
            text = f"the server is on timeline {timeline} now, the parent ended on {parent.branch}"
            raise NotIncremental(text, operation="backup", subject=self.dsn.where)
        self._asking = True
        self._send("UPLOAD_MANIFEST")
        self._result(expected=(pq.ExecStatus.COPY_IN,))
        for start in range(0, len(parent.manifest), FRAME_SIZE):
            self.connection.put_copy_data(parent.manifest[start : start + FRAME_SIZE])
            self._flush()
        self.connection.put_copy_end()
        self._flush()
        while self._pending() is not None:
            continue

    def items(self) -> Iterator[Begin | bytes]:
        """Yield every part as a Begin and its chunks (all but a part's last are of one frame's size)."""
        with mapped(self.dsn, "backup"):
            yield from self._items()

    def _items(self) -> Iterator[Begin | bytes]:
        walker: TarWalker | None = None
        pieces: list[memoryview] = []
        held = 0
        for message in self._copy():
            kind, data = message[:1], memoryview(message)[1:]
            if kind == b"d" and walker is None:
                self._manifest += data
            elif kind == b"d" and walker is not None:
                walker.feed(data)
                while held + len(data) >= FRAME_SIZE:
                    room = FRAME_SIZE - held
                    yield b"".join([*pieces, data[:room]])
                    pieces, held, data = [], 0, data[room:]
                pieces.append(data)
                held += len(data)
            elif kind in (b"n", b"m"):
                if walker is not None:
                    walker.close()
                    yield b"".join(pieces)
                    pieces, held = [], 0
                walker = None
                if kind == b"n":
                    name = data.tobytes().split(b"\0", 1)[0].decode()
                    self._checksums.prefix = server_manifest.prefix_of(name)
                    walker = TarWalker(self)
                    yield Begin(name)
        yield Begin(server_manifest.NAME)
        yield bytes(self._manifest)
        self._end()

    def verify(self) -> None:
        """Compare what arrived with the server's manifest. Raises Corrupt."""
        server_manifest.compare(ServerManifest.parse(bytes(self._manifest)), self._checksums.seen)

    def begin(self, member: Member) -> None:
        """A file begins (TarVisitor); pg_control is the last one, so the backup ends after it was sent."""
        if self._checksums.prefix + member.name == LAST_FILE:
            self.consistent_at = self._drained_at
        self._checksums.begin(member)

    def body(self, piece: bytes | memoryview) -> None:
        """Some of its bytes (TarVisitor)."""
        self._checksums.body(piece)

    def end(self) -> None:
        """It is complete (TarVisitor)."""
        self._checksums.end()

    def _end(self) -> None:
        ((lsn, timeline),) = self._result()
        self.ends = position(timeline, lsn)
        try:
            while self._pending() is not None:
                continue
        except Corrupt as error:
            # The server has sent everything before it says that pages are damaged.
            if not self.keep_damaged:
                raise
            self.damaged = error.what

    def _notice(self, notice: pq.abc.PGresult) -> None:
        if notice.error_field(_FIELD.SEVERITY_NONLOCALIZED) == b"WARNING":
            self.warnings.append((notice.error_field(_FIELD.MESSAGE_PRIMARY) or b"").decode(errors="replace"))

    def _copy(self) -> Iterator[bytes]:
        while True:
            length, message = self.connection.get_copy_data(1)
            if length > 0:
                yield bytes(message)
            elif length == 0:
                self._wait()
                self.connection.consume_input()
            else:
                return

    def _query(self, command: str) -> list[tuple[str, ...]]:
        self._send(command)
        rows = self._result()
        while self._pending() is not None:
            continue
        return rows

    def _send(self, command: str) -> None:
        self.connection.send_query(command.encode())
        self._flush()

    def _flush(self) -> None:
        while self.connection.flush():
            self._wait(select.POLLIN | select.POLLOUT)
            self.connection.consume_input()

    def _result(self, expected: tuple[pq.ExecStatus, ...] = (pq.ExecStatus.TUPLES_OK,)) -> list[tuple[str, ...]]:
        result = self._pending()
        if result is None or result.status not in expected:
            raise Unreachable("the server's answer is not BASE_BACKUP's", operation="backup", subject=self.dsn.where)
        return [
            tuple((result.get_value(row, column) or b"").decode() for column in range(result.nfields))
            for row in range(result.ntuples)
        ]

    def _pending(self) -> pq.abc.PGresult | None:
        while self.connection.is_busy():
            self._wait()
            self.connection.consume_input()
        result = self.connection.get_result()
        if result is not None and result.status in _FAILED:
            state, message, hint = (
                (result.error_field(name) or b"").decode(errors="replace")
                for name in (_FIELD.SQLSTATE, _FIELD.MESSAGE_PRIMARY, _FIELD.MESSAGE_HINT)
            )
            text = message or result.error_message.decode(errors="replace")
            if self._asking and state in _NOT_INCREMENTAL:
                raise NotIncremental(" ".join(text.split()), operation="backup", subject=self.dsn.where, hint=hint)
            raise from_server(state, text, hint, dsn=self.dsn, operation="backup")
        return result

    def _wait(self, events: int = select.POLLIN) -> None:
        self._poll.register(self.connection.socket, events)
        self._poll.register(self._wake[0], select.POLLIN)
        now = self.clock()
        if not self._poll.poll(0):
            self._drained_at = now  # we have read all that had been sent: what comes next was sent later
        if any(handle == self._wake[0] for handle, _ in self._poll.poll()):
            raise Interrupted("the backup was stopped", operation="backup", subject=self.dsn.where)
