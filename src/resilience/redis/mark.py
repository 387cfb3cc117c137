"""The mark of a restore that is not finished: no server starts behind it, and only an unfinished restore is discarded.

Redis starts on an empty folder, and on one that lacks a file: with nothing in it. So while a restore runs, the files
that a server looks for are there and no server takes them: a manifest of an append-only file (from Redis 7 on every
server reads it, also with `appendonly no`) and an RDB. Each says in words what it is. Taking the manifest away, or
putting a true one in its place, is the one step that finishes a restore.

A third file lists what is being filled, and the process that fills it holds a lock on it (flock(2)).
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from attrs import define, field

from resilience.folders import sync_folder, write_durably
from resilience.model.errors import Conflict, Refused
from resilience.programs import Account

MARK = "resilience.restoring"
GUARD = b"resilience: a restore into this folder is not finished; discard it, or restore again\n"


@define(kw_only=True)
class Mark:
    """The mark on one data directory; `rdb` and `manifest` are the files that a server there would look for.

    `lifted`: the restore is finished, also if nobody waited for it any more.
    """

    data: Path
    account: Account | None
    rdb: Path
    manifest: Path
    lifted: bool = field(default=False, init=False)
    _lock: int | None = field(default=None, init=False)

    def set(self) -> None:
        """Mark the directory, before anything else is written to it."""
        # It stays ours: an account that may write here must not tell root what to delete.
        write_durably(self.data / MARK, b"", None, mode=0o644)
        self._lock = os.open(self.data / MARK, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.manifest.parent.mkdir(mode=0o700, exist_ok=True)
        if self.account is not None and os.geteuid() == 0:
            os.chown(self.manifest.parent, self.account.uid, self.account.gid)
        for path in (self.manifest, self.rdb):
            write_durably(path, GUARD, self.account)

    def lift(self, manifest: bytes = b"") -> None:
        """Finish the restore: from now on a server starts here. `manifest` is of an append-only file, if there is one.

        Nothing but the guards and what was restored may be there by now, and all of it durable.
        """
        if manifest:
            write_durably(self.manifest, manifest, self.account)
        else:
            self.manifest.unlink()
            with suppress(OSError):
                self.manifest.parent.rmdir()
        self.lifted = True
        sync_folder(self.data)
        with suppress(OSError):  # without its guards the mark says nothing any more
            (self.data / MARK).unlink()
        self.release()

    def release(self) -> None:
        """Give up the lock; the mark stays."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def unfinished(data: Path, manifest: Path) -> bool:
    """Tell whether a restore was interrupted here.

    Raises Conflict while it is still running, Refused if the mark is not one that we have written.
    """
    try:
        handle = os.open(data / MARK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_uid != os.geteuid():
            raise Refused(f"the mark {MARK} belongs to another account", operation="discard", subject=str(data))
    except BlockingIOError:
        raise Conflict("a restore into it is still running", operation="discard", subject=str(data)) from None
    finally:
        os.close(handle)
    return not _finished(data, manifest)


def _finished(data: Path, manifest: Path) -> bool:
    """Tell whether the last step was taken, and only the mark was left behind."""
    names = {entry.name for entry in data.iterdir()} - {MARK}
    if not manifest.exists():
        # Without a guard: before it was written there was nothing else, afterwards there is what was restored.
        return bool(names - {manifest.parent.name})
    return manifest.read_bytes() != GUARD
