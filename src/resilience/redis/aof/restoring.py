"""From a stored append-only file to an RDB: a server executes it to its end and saves what came of it.

So it comes back in whatever form is wanted: as an RDB, as the base of a new append-only file, through replication. What
starts on it next loads an RDB, which takes a fraction of the time that executing all commands again would take.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from attrs import define, field

from resilience.concurrency import each_in_thread, in_thread
from resilience.model.capture import Restored
from resilience.model.errors import Corrupt
from resilience.model.findings import Finding
from resilience.model.manifests import Manifest
from resilience.primitives import StoredBackup
from resilience.programs import Account
from resilience.redis.client import Url, ask, commands
from resilience.redis.isolation import Isolation

from .listing import SUFFIX, read_listing
from .target import LISTING

_NAME = "restored.aof"


async def load_aof(backup: StoredBackup, isolation: Isolation, folder: Path, *, rdb: str) -> Restored:
    """Have an isolated server execute an append-only file and save the RDB `rdb` beside `folder`, which is removed.

    Raises Corrupt if the backup is damaged or the server cannot load it, OSError, and what reading raises.
    """
    manifest = backup.manifest
    await in_thread(_make, folder, isolation.account)
    listing = b""
    for part in manifest.parts:
        if part.name != LISTING:
            await _write(backup, part.name, folder / part.name, isolation.account)
    async with backup.read(LISTING) as chunks:
        listing = b"".join([chunk async for chunk in chunks])
    named = {each.name for each in read_listing(listing)}
    if named != {part.name for part in manifest.parts} - {LISTING}:
        raise Corrupt("its manifest names other files than it has", subject=manifest.id)
    file = _File(folder / f"{_NAME}{SUFFIX}", isolation.account)
    await in_thread(file.whole, listing)
    executing = isolation.run(
        dbfilename=rdb,
        appendonly="yes",
        appenddirname=folder.name,
        appendfilename=_NAME,
        aof_load_truncated="no",  # without its end it is refused
        auto_aof_rewrite_percentage="0",
    )
    async with executing as live, commands(Url.parse(live.url), operation="restore", seconds=None) as client:
        await ask(client, "SAVE")
    await in_thread(shutil.rmtree, folder)
    return _reached(manifest)


def _reached(manifest: Manifest) -> Restored:
    """An append-only file does not say where in which history it ends: its backup does, and all of it was executed."""
    text = f"the append-only file was executed to its end, {manifest.size} bytes"
    finding = Finding(severity="note", subject=manifest.id, text=text)
    return Restored(reached=manifest.recovery_point, findings=(finding,))


def _make(folder: Path, account: Account | None) -> None:
    folder.mkdir(mode=0o700)
    if account is not None and os.geteuid() == 0:
        os.chown(folder, account.uid, account.gid)


async def _write(backup: StoredBackup, part: str, path: Path, account: Account | None) -> None:
    file = _File(path, account)
    try:
        await in_thread(file.open)
        async with backup.read(part) as chunks:
            await each_in_thread(chunks, file.write)
    finally:
        await in_thread(file.close)


@define
class _File:
    """A file of the append-only file; it need not be durable, since only the RDB made from it is kept."""

    path: Path
    account: Account | None
    _handle: int | None = field(default=None, init=False)

    def open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._handle = os.open(self.path, flags, 0o600)
        if self.account is not None and os.geteuid() == 0:
            os.fchown(self._handle, self.account.uid, self.account.gid)

    def write(self, chunk: bytes) -> None:
        if self._handle is None:
            raise ValueError("it is not open")
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(self._handle, rest) :]

    def whole(self, data: bytes) -> None:
        try:
            self.open()
            self.write(data)
        finally:
            self.close()

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
