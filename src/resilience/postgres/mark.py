"""The mark of a restore that is not finished: no server starts behind it, and only an unfinished restore is discarded.

Two things make it. A file in the data directory lists the folders being filled; the process that fills them holds a
lock on it (flock(2)), and whoever may discard them trusts it only if it is his own. And a last line in
postgresql.auto.conf names a library that does not exist, so that every start fails and says why, unless it overrides
that line as `Isolation` does. Removing the line is the one step that finishes a restore.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
from attrs import define, field

from resilience.folders import write_durably
from resilience.model.errors import Conflict, Refused
from resilience.model.json import from_json, to_json

from .tools import Account
from .untar import PG_CONTROL

MARK = "resilience.restoring"
AUTO = "postgresql.auto.conf"
GUARD = b"shared_preload_libraries = 'resilience_restore_unfinished'\n"


@define
class Mark:
    """The mark on one data directory, held by the process that fills it."""

    data: Path
    account: Account | None
    _lock: int | None = field(default=None, init=False)

    def set(self, folders: Sequence[Path]) -> None:
        """Mark the directory, before anything else is written to any of the folders."""
        # It stays ours: an account that may write here must not tell root what to delete.
        write_durably(self.data / MARK, to_json([str(folder) for folder in folders]), None, mode=0o644)
        self._lock = os.open(self.data / MARK, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def guard(self) -> None:
        """Keep every server from starting here; before pg_control is written."""
        write_durably(self.data / AUTO, self._settings() + GUARD, self.account)

    def configure(self, lines: bytes) -> None:
        """Add lines to postgresql.auto.conf, before the guard; the last one of a name counts."""
        write_durably(self.data / AUTO, self._settings().removesuffix(GUARD) + lines + GUARD, self.account)

    def lift(self) -> None:
        """Finish the restore: from now on a server starts here."""
        write_durably(self.data / AUTO, self._settings().removesuffix(GUARD), self.account)
        with suppress(OSError):  # without its guard the mark says nothing any more
            (self.data / MARK).unlink()
        self.release()

    def release(self) -> None:
        """Give up the lock; the mark stays."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _settings(self) -> bytes:
        try:
            text = (self.data / AUTO).read_bytes()
        except FileNotFoundError:
            return b""
        return text if text.endswith(b"\n") or not text else text + b"\n"


def unfinished(data: Path) -> list[Path]:
    """Return the folders of a restore that was interrupted here, data directory last; none if there was none.

    Raises Conflict while it is still running, Refused if the mark is not one that we have written.
    """
    try:
        handle = os.open(data / MARK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_uid != os.geteuid():
            raise Refused(f"the mark {MARK} belongs to another account", operation="discard", subject=str(data))
        listed = from_json(os.read(handle, 1 << 20), list[str])
    except BlockingIOError:
        raise Conflict("a restore into it is still running", operation="discard", subject=str(data)) from None
    except msgspec.MsgspecError:
        raise Refused(f"the mark {MARK} cannot be read", operation="discard", subject=str(data)) from None
    finally:
        os.close(handle)
    if (data / PG_CONTROL).exists() and not _guarded(data):
        return []
    return [*(Path(folder) for folder in listed if folder != str(data)), data]


def _guarded(data: Path) -> bool:
    try:
        return (data / AUTO).read_bytes().endswith(GUARD)
    except FileNotFoundError:
        return False
