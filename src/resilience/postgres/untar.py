"""Unpacks a base backup's tars into directories, as an account, with pg_control kept back until the end.

Without `global/pg_control` no server starts on a directory, so an interrupted restore stays unstartable.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from attrs import define, field

from resilience.model.errors import Corrupt
from resilience.streams.tar import Member

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
    are root. What is written is durable only after `sync_file_systems`.
    """

    root: Path
    account: Account | None
    locations: Mapping[str, Path] = field(factory=dict)
    pg_control: bytes = b""
    _file: int | None = field(default=None, init=False)
    _unsynced: int = field(default=0, init=False)
    _held: bytearray | None = field(default=None, init=False)

    def begin(self, member: Member) -> None:
        """Create the member."""
        path = self.root / _inside(member.name)
        if member.kind == "directory":
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(member.mode)
            self._own(path)
        elif member.kind == "link":
            self._link(member, path)
        elif member.name == PG_CONTROL:
            self._held = bytearray()
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(path, flags, member.mode)
            self._unsynced = 0
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


_NO_FOLLOW = {"follow_symlinks": False}


def _inside(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise Corrupt(f"the backup holds a file outside its own directory: {name}")
    return path


def sync_file_systems(paths: Iterable[Path]) -> None:
    """Make everything on the file systems of `paths` durable; see syncfs(2). Raises OSError if writing failed."""
    synced = set()
    for path in paths:
        device = path.stat().st_dev
        if device not in synced:
            handle = os.open(path, os.O_RDONLY)
            try:
                if _libc.syncfs(handle) != 0:
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number), str(path))
            finally:
                os.close(handle)
            synced.add(device)


def write_durably(path: Path, data: bytes, account: Account | None) -> None:
    """Create a file whole or not at all: written aside, synced, renamed, its folder synced."""
    aside = path.with_name(path.name + ".resilience")
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(handle, data)
        if account is not None and os.geteuid() == 0:
            os.fchown(handle, account.uid, account.gid)
        os.fsync(handle)
    finally:
        os.close(handle)
    aside.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
