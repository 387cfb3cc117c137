"""Keeps a replay out of folders that are not its own.

WAL that creates a tablespace names the folder it was in. Replayed where that folder is in use, for one beside the
cluster it was taken from, recovery would share it and write into somebody else's files (commands/tablespace.c: in
recovery a folder that is already in use is no error). It cannot if it may not make the link in pg_tblspc.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from resilience.model.errors import Refused

from .untar import TABLESPACES

_CREATES = re.compile(r'Tablespace/CREATE: \d+ "([^"]*)"')


@frozen
class NewTablespaces:
    """The tablespaces that WAL creates on `data`; refused unless `allowed`."""

    data: Path
    allowed: bool = False

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Let no link be made or removed until leaving. An interruption by force leaves it so; see `open_up`."""
        folder = self.data / TABLESPACES
        mode = folder.stat().st_mode & 0o777
        if not self.allowed:
            folder.chmod(mode & 0o555)
        try:
            yield
        finally:
            folder.chmod(mode)

    def refusal(self, said: str, *, subject: str) -> Refused | None:
        """Return why a server stopped, if it was to create a tablespace."""
        if self.allowed or (found := _CREATES.search(said)) is None:
            return None
        return Refused(
            f"the log creates a tablespace in {found[1]}, and a restore writes into its own folders only",
            operation="restore",
            subject=subject,
            hint="restore from a later backup, where it can be mapped elsewhere, or to a moment before; if nobody else "
            "uses that folder on this machine: new_tablespaces=True",
        )

    def tidy(self, existing: Collection[str]) -> None:
        """Remove the links of tablespaces that were dropped meanwhile; `existing` are the oids of all there are."""
        for link in (self.data / TABLESPACES).iterdir():
            if link.is_symlink() and link.name not in existing:
                link.unlink()

    def folders(self) -> list[Path]:
        """Return where the links point to."""
        return [link.resolve() for link in (self.data / TABLESPACES).iterdir() if link.is_dir()]


def open_up(data: Path) -> None:
    """Undo what a guard has left that was interrupted by force."""
    folder = data / TABLESPACES
    if folder.is_dir() and not folder.is_symlink():
        folder.chmod(folder.stat().st_mode & 0o777 | 0o700)
