"""Folders that servers live in: whose they are, whether they are empty; files that are there whole or not at all."""

from __future__ import annotations

import os
import pwd
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from resilience.model.errors import Refused
from resilience.programs import Account


def account_for(data: Path, owner: str | None) -> Account | None:
    """Return whom files and server shall belong to: `owner`, or as root whoever owns the folder; None is ourselves."""
    if os.geteuid() == 0:
        return Account.named(owner) if owner else Account.numbered(existing(data).stat().st_uid)
    if owner is not None and Account.named(owner).uid != os.geteuid():
        raise Refused(f"only root can restore for another account, {owner}", operation="restore", subject=str(data))
    return None


def is_empty(folder: Path) -> bool:
    """Tell whether a folder is empty or absent."""
    try:
        return not any(_entries(folder))
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        return False


def _entries(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        yield from (entry.name for entry in entries)


def existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that is there."""
    return next(up for up in (path, *path.parents) if up.exists())


def write_durably(path: Path, data: bytes, account: Account | None, *, mode: int = 0o600) -> None:
    """Create or replace a file whole or not at all: written aside, synced, renamed, its folder synced."""
    aside = path.with_name(path.name + ".resilience")
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fchmod(handle, mode)
        if account is not None and os.geteuid() == 0:
            os.fchown(handle, account.uid, account.gid)
        os.fsync(handle)
    except OSError:
        aside.unlink(missing_ok=True)  # a disk that is full needs the room
        raise
    finally:
        os.close(handle)
    aside.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def scratch_owner(within: str | Path, owner: str | None, usual: Sequence[str]) -> str | None:
    """Return the account that a scratch server in a folder runs as: the one named, or ourselves (None).

    As root it is whoever owns the folder, or else the first of the `usual` ones that there is.
    """
    if owner is not None or os.geteuid() != 0:
        return owner
    uid = Path(within).stat().st_uid
    wanted = [Account.numbered(uid).name] if uid else []
    return next((name for name in (*wanted, *usual) if _exists(name)), None)


def scratch_folder(within: str | Path, owner: str | None) -> Path:
    """Make a new folder that belongs to an account, or to ourselves (None)."""
    folder = Path(tempfile.mkdtemp(prefix="resilience-scratch-", dir=within))
    if owner is not None and os.geteuid() == 0:
        account = Account.named(owner)
        os.chown(folder, account.uid, account.gid)
    return folder


def _exists(account: str) -> bool:
    try:
        return bool(pwd.getpwnam(account))
    except KeyError:
        return False
