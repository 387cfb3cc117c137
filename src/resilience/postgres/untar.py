"""Unpacks a base backup's tars into directories, as an account, with pg_control kept back until the end.

Without `global/pg_control` no server starts on a directory, so an interrupted restore stays unstartable.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath

from attrs import define, field

from resilience.concurrency import each_in_thread
from resilience.model.errors import Corrupt
from resilience.primitives import StoredBackup
from resilience.streams.tar import Member, TarVisitor, TarWalker

from .tools import Account

PG_CONTROL = "global/pg_control"
TABLESPACES = "pg_tblspc"
_EAGER = 32 << 20
_SYNC_FILE_RANGE_WRITE = 2
_libc = ctypes.CDLL(None, use_errno=True)


@define(kw_only=True)
class Untar:
    """Writes one tar's members below `root` (a `TarVisitor`); refuses members that point anywhere else.

    `locations` says where the link of each tablespace (by oid) has to point. Everything belongs to `account` when we
    are root. What is written is durable only after `FileSystems.sync`.
    """

    root: Path
    account: Account | None
    locations: Mapping[str, Path] = field(factory=dict)
    leave_out: Collection[str] = ()
    pg_control: bytes = b""
    mode: int = 0o600
    _file: int | None = field(default=None, init=False)
    _unsynced: int = field(default=0, init=False)
    _held: bytearray | None = field(default=None, init=False)

    def begin(self, member: Member) -> None:
        """Create the member."""
        path = self.root / _inside(member.name)
        if member.name in self.leave_out:
            return
        if member.kind == "directory":
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(member.mode)
            self._own(path)
        elif member.kind == "link":
            self._link(member, path)
        elif member.name == PG_CONTROL:
            self._held, self.mode = bytearray(), member.mode
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(path, flags, member.mode)
            self._unsynced = 0
            os.fchmod(self._file, member.mode)  # our umask is not the server's
            self._own(self._file)

    def body(self, piece: bytes | memoryview) -> None:
        """Write some of its bytes."""
        if self._held is not None:
            self._held += piece
        elif self._file is not None:
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            self._write_back(len(piece))

    def end(self) -> None:
        """Close it."""
        if self._held is not None:
            self.pg_control, self._held = bytes(self._held), None
        self.close()

    def close(self) -> None:
        """Close what an interruption left open."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _link(self, member: Member, path: Path) -> None:
        parent, _, oid = member.name.rpartition("/")
        if parent != TABLESPACES or oid not in self.locations:
            raise Corrupt(f"the backup holds a link where none belongs: {member.name}")
        path.symlink_to(self.locations[oid])
        self._own(path)

    def _own(self, what: int | Path) -> None:
        if self.account is not None and os.geteuid() == 0:
            os.chown(what, self.account.uid, self.account.gid, **({} if isinstance(what, int) else _NO_FOLLOW))

    def _write_back(self, count: int) -> None:
        # Asks the kernel to begin writing large files now, so that the sync at the end finds little left to do.
        self._unsynced += count
        if self._unsynced >= _EAGER and self._file is not None:
            self._unsynced = 0
            _libc.sync_file_range(self._file, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)


async def walk(backup: StoredBackup, part: str, visitor: TarVisitor) -> None:
    """Show a visitor every member of a stored tar, in a thread. Raises Corrupt."""
    walker = TarWalker(visitor)
    async with backup.read(part) as chunks:
        await each_in_thread(chunks, walker.feed)
    walker.close()


_NO_FOLLOW = {"follow_symlinks": False}


def _inside(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise Corrupt(f"the backup holds a file outside its own directory: {name}")
    return path


@define
class FileSystems:
    """The file systems of some folders, to be made durable at once; opened before anything is written.

    syncfs(2) reports a write that failed to whoever had the file system open by then, and to nobody who came later.
    """

    _handles: dict[int, int] = field(factory=dict)

    def open(self, folders: Iterable[Path]) -> None:
        """Begin to watch."""
        for folder in folders:
            device = folder.stat().st_dev
            if device not in self._handles:
                self._handles[device] = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def sync(self) -> None:
        """Make everything durable. Raises OSError if any write failed since `open`."""
        for handle in self._handles.values():
            if _libc.syncfs(handle) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))

    def close(self) -> None:
        """Stop watching."""
        while self._handles:
            os.close(self._handles.popitem()[1])
