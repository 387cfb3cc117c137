"""An RDB that the server saves to its own disk, read from there: where its folder can be reached and replication not.

Nothing but a save that began after we asked for it, and succeeded, is taken: the server counts its successful saves
(from Redis 7 on; before that the second of the last one has to be a later one), the file has taken the place of the one
that was there, and itself says when and by whom it was begun.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from attrs import define, field
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from resilience.concurrency import in_thread
from resilience.model.errors import Conflict, Refused, StorageFailed, TimedOut, Unavailable
from resilience.model.positions import Position

from .client import Url, ask, commands
from .rdb import HEAD, Checksum, Header, at, read_header
from .survey import Info, ask_info

CHUNK = 4 << 20
_LOOK_SECONDS = 0.05
PATIENCE_SECONDS = 3600.0
"""How long a server's child may get no further; as long as a save may take in all where nothing says how far it is."""
_PROGRESS = ("current_save_keys_processed", "rdb_saves", "rdb_last_save_time")
_FORK = "its log says why; where memory is short, set vm.overcommit_memory = 1 on the host"
_HINT = "name the file that the server writes: CONFIG GET dir, CONFIG GET dbfilename"


@define
class SavedRdb:
    """One RDB that a server saved for us; `chunks` runs in a thread."""

    url: Url
    path: Path
    patience: float = field(default=PATIENCE_SECONDS, kw_only=True)
    position: Position | None = field(default=None, init=False)
    taken: datetime | None = field(default=None, init=False)
    size: int | None = field(default=None, init=False)
    header: Header | None = field(default=None, init=False)
    checked: bool = field(default=False, init=False)
    master: bool = field(default=True, init=False)
    _asked: datetime | None = field(default=None, init=False)
    _info: Info | None = field(default=None, init=False)
    _replaced: tuple[int, ...] = field(default=(), init=False)
    _file: int | None = field(default=None, init=False)
    _stopped: bool = field(default=False, init=False)

    async def save(self) -> None:
        """Have the server save, and wait for it; cancelled, it goes on saving.

        Raises Refused if it does not tell the time, Unavailable if the save fails, TimedOut if it gets no further.
        """
        async with commands(self.url, operation="backup") as client:
            self._info = before = await self._quiet(client)
            self._asked = before.time or await _time(client)
            self.master = before.master
            self.taken = self._asked if self.master else None
            self._replaced = await in_thread(_identity, self.path)
            await self._begin(client)
            after = await self._quiet(client)
        if after.text("rdb_last_bgsave_status") != "ok" or not _newer(before, after):
            raise Unavailable(
                "the save failed", operation="backup", subject=self.url.where, hint="its log says why: disk, or memory"
            )

    def start(self) -> None:
        """Open what was saved. Raises Refused if it is not there for us, Conflict if it is another file."""
        try:
            self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            text = f"what it saved cannot be read: {error.strerror}: {self.path}"
            raise Refused(text, operation="backup", subject=self.url.where, hint=_HINT) from error
        self.size = os.fstat(self._file).st_size
        replaced = _identity(self._file) != self._replaced
        self.header = read_header(os.pread(self._file, HEAD, 0))
        self.position = self.header.position or self._position()
        if not replaced or not self._ours(self.header):
            text = f"{self.path} is not what it has saved just now"
            raise Conflict(text, operation="backup", subject=self.url.where, hint=_HINT)

    def chunks(self) -> Iterator[bytes]:
        """Yield the RDB in chunks of 4 MiB, checked at its end. Raises StorageFailed, Corrupt."""
        checksum = Checksum()
        while self._file is not None and not self._stopped:
            try:
                piece = os.read(self._file, CHUNK)
            except OSError as error:
                text = f"{self.path} cannot be read: {error.strerror}"
                raise StorageFailed(text, operation="backup", subject=self.url.where) from error
            if not piece:
                break
            checksum.update(piece)
            yield piece
        self.checked = checksum.verify()

    def stop(self) -> None:
        """End `chunks` after the piece it is at."""
        self._stopped = True

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _ours(self, header: Header) -> bool:
        """Tell whether a file was begun after we had asked, by the server that we asked."""
        if self._asked is None or header.forked is None or header.forked < self._asked.replace(microsecond=0):
            return False
        there = self._position()
        branch = header.position.branch if header.position is not None else there.branch
        version = header.fields.get("redis-ver") or header.fields.get("valkey-ver")
        return branch == there.branch and self._info is not None and version in (None, self._info.version)

    def _position(self) -> Position:
        """Where the server stood before it saved: at least that much is in the RDB."""
        info = self._info or Info({})
        return at(info.text("master_replid"), info.number("master_repl_offset"))

    async def _quiet(self, client: Redis) -> Info:
        """Wait until nothing is being saved."""
        waiting = _Waiting(self.url, self.patience)
        while (info := await ask_info(client, "everything")).number("rdb_bgsave_in_progress"):
            await waiting.go_on(info)
        return info

    async def _begin(self, client: Redis) -> None:
        """Begin a save, when no other child is at work any more. Raises Unavailable if there can be none."""
        waiting = _Waiting(self.url, self.patience)
        while True:
            try:
                await ask(client, "BGSAVE")
            except ResponseError as error:
                said = str(error).removeprefix("ERR").strip()
                if not said:  # all that Redis says when it cannot fork
                    text = "it cannot begin to save"
                    raise Unavailable(text, operation="backup", subject=self.url.where, hint=_FORK) from error
                if "in progress" not in said and "child" not in said:
                    raise
                await waiting.go_on(await ask_info(client, "everything"))
            else:
                return


@define
class _Waiting:
    """Waits for a server's child for as long as it gets on."""

    url: Url
    patience: float
    _seen: str = field(default="", init=False)
    _moved: float = field(default=0.0, init=False)

    async def go_on(self, info: Info) -> None:
        """Wait a moment. Raises TimedOut if the child has got no further for too long."""
        now, progress = asyncio.get_running_loop().time(), " ".join(info.text(name) for name in _PROGRESS)
        if not self._moved or progress != self._seen:
            self._moved, self._seen = now, progress
        if now - self._moved > self.patience:
            text = f"its child has got no further for {self.patience:g} s"
            raise TimedOut(text, operation="backup", subject=self.url.where, hint="look at its disk, and at its log")
        await asyncio.sleep(_LOOK_SECONDS)


def _identity(file: Path | int) -> tuple[int, ...]:
    """Return what no two files share of which one has taken the other's place; nothing if there is none."""
    try:
        found = file.stat() if isinstance(file, Path) else os.fstat(file)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _newer(before: Info, after: Info) -> bool:
    if "rdb_saves" in after.lines:
        return after.number("rdb_saves") > before.number("rdb_saves")
    # Redis 6 counts none, and tells whole seconds; that the file was replaced says the rest.
    return after.number("rdb_last_save_time") >= before.number("rdb_last_save_time")


async def _time(client: Redis) -> datetime:
    """Ask the server's clock. Raises Refused if we may not."""
    try:
        seconds, micros = await ask(client, "TIME")
    except ResponseError as error:
        text = f"without its clock nobody can tell a new save from an old one: {error}"
        raise Refused(text, operation="backup", subject="RDB", hint="its user needs +time") from error
    return datetime.fromtimestamp(int(seconds), UTC) + timedelta(microseconds=int(micros))
