"""A data directory that is being rewound or rebuilt: nobody starts it meanwhile, and its configuration survives.

pg_rewind and pg_basebackup replace every file, the configuration and the mark of a fence too. So the directory gets a
mode that PostgreSQL refuses to start with (checkDataDir: no others may enter), and what is the member's own is kept in
a folder beside it until the end. Whoever finds these after a crash knows that the directory is nothing to rely on.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from attrs import frozen

from resilience.folders import sync_folder, write_durably
from resilience.model.errors import StorageFailed
from resilience.postgres.mark import AUTO

from .fence_mark import FENCE
from .outside import Outside
from .server import LocalServer

CLOSED = 0o701
_OPEN = 0o700
_OWN = (".conf", ".crt", ".key", ".pem", ".crl", ".log")
_OUTSIDE = "outside.json"
_NOT_OURS = ("postmaster.pid", "postmaster.opts")


@frozen
class Workshop:
    """The work on one member's data directory."""

    server: LocalServer

    @property
    def kept(self) -> Path:
        """Where the member's own files are meanwhile."""
        return self.server.data.with_name(f"{self.server.data.name}.resilience")

    def unfinished(self) -> bool:
        """Tell whether somebody began and did not come to the end."""
        return stat.S_IMODE(self.server.data.stat().st_mode) == CLOSED

    def open(self) -> None:
        """Keep the member's own files, then close the directory; repeated, what was kept first is kept."""
        data, account = self.server.data, self.server.account
        if not self.unfinished():
            try:
                shutil.rmtree(self.kept, ignore_errors=True)
                self.kept.mkdir(mode=0o700)
                for path in data.iterdir():
                    if path.is_file() and not path.is_symlink() and _own(path.name):
                        write_durably(self.kept / path.name, path.read_bytes(), None)
                sync_folder(self.kept.parent)
            except OSError as error:
                what = f"its configuration cannot be kept: {error.strerror}: {error.filename}"
                raise StorageFailed(what, operation="rejoin", subject=str(data)) from error
            if account is not None:
                os.chown(self.kept, account.uid, account.gid)
        data.chmod(CLOSED)

    def outside(self) -> Outside:
        """Return what the member keeps elsewhere, also when the links to that are gone."""
        path = self.kept / _OUTSIDE
        return Outside.parse(path.read_bytes()) if self.unfinished() and path.exists() else Outside.of(self.server.data)

    def empty(self, outside: Outside, *, major: int) -> None:
        """Remove all that is in the directory, and what is the member's own `outside`; the next one finds it noted."""
        data = self.server.data
        try:
            write_durably(self.kept / _OUTSIDE, outside.text(), None)
            for path in [*data.iterdir(), *outside.own(major=major)]:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        except OSError as error:
            what = f"its old data cannot be removed: {error.strerror}: {error.filename}"
            raise StorageFailed(what, operation="rejoin", subject=str(data)) from error

    def settings(self) -> bytes:
        """Return the member's own postgresql.auto.conf as it was."""
        path = (self.kept if self.unfinished() else self.server.data) / AUTO
        return path.read_bytes() if path.exists() else b""

    def close(self) -> None:
        """Put the member's own files back, all but the settings, and let it start again."""
        data, account = self.server.data, self.server.account
        for path in self.kept.iterdir():
            if path.name not in (AUTO, FENCE, _OUTSIDE):
                write_durably(data / path.name, path.read_bytes(), account)
        data.chmod(_OPEN)
        shutil.rmtree(self.kept, ignore_errors=True)


def _own(name: str) -> bool:
    return name not in _NOT_OURS and (name.endswith(_OWN) or name == FENCE)
