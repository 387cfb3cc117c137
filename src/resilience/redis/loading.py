"""From a stored RDB to a file that a server loads, and what the server says of it then."""

from __future__ import annotations

import os
from pathlib import Path

from attrs import define, field

from resilience.concurrency import each_in_thread, in_thread
from resilience.folders import sync_folder
from resilience.model.capture import Restored
from resilience.model.errors import Corrupt
from resilience.model.findings import Finding
from resilience.model.manifests import Manifest
from resilience.model.positions import RecoveryPoint
from resilience.primitives import StoredBackup
from resilience.programs import Account

from .rdb import HEAD, Checksum, Header, at, read_header
from .survey import Info
from .target import PART

ACCEPTED = ("rdb", "aof")
"""The kinds of backup that a server's data can be brought back from."""
DATABASES = 16
"""How many databases a server has by default; one with fewer than the data needs does not start on it."""
_NO_HISTORY = "0" * 40
_PARTED = 12


def databases_of(manifest: Manifest) -> int:
    """Return how many databases a server has to have for this backup, by what it held when the backup was planned."""
    found = manifest.details.get("databases")
    return max((int(number) + 1 for number in found), default=0) if isinstance(found, dict) else 0


def modules_of(manifest: Manifest) -> tuple[str, ...]:
    """Return the modules of the server that was backed up."""
    found = manifest.details.get("modules")
    return tuple(str(each) for each in found) if isinstance(found, list) else ()


def too_old(manifest: Manifest, product: str, version: str) -> str:
    """Say why a server may not be able to read a backup, or nothing.

    A newer release of the same product may have written it in a newer way. Redis and Valkey have gone apart: what
    Redis has written from 7.4 on (RDB 12) Valkey refuses, and what Valkey has written from 9 on (RDB 80) Redis.
    """
    wrote, said = manifest.details.get("product"), str(manifest.details.get("version", ""))
    found = manifest.details.get("rdb_version")
    parted = wrote != product and isinstance(found, int) and found >= _PARTED
    apart = parted or (wrote == product and not is_at_least(version, said))
    return f"the backup is of {wrote} {said}, and {product} {version} may not read it" if apart else ""


def is_at_least(version: str, wanted: str) -> bool:
    """Compare two versions of the same product."""
    return _numbers(version) >= _numbers(wanted)


def _numbers(version: str) -> tuple[int, ...]:
    """Return major and minor release: patches change no format."""
    return tuple(int(each) if each.isdecimal() else 0 for each in version.split(".")[:2])


async def write_rdb(backup: StoredBackup, path: Path, account: Account | None) -> Header:
    """Write a backup's RDB to a new file and make it durable. Raises Corrupt, OSError and what reading raises."""
    file = _File(path)
    try:
        await in_thread(file.open, account)
        async with backup.read(PART) as chunks:
            await each_in_thread(chunks, file.write)
        await in_thread(file.finish)
    except Corrupt as error:
        error.subject = error.subject or backup.manifest.id
        raise
    finally:
        await in_thread(file.close)
    return file.header


@define
class _File:
    path: Path
    header: Header = field(factory=lambda: Header(0, {}), init=False)
    _checksum: Checksum = field(factory=Checksum, init=False)
    _handle: int | None = field(default=None, init=False)

    def open(self, account: Account | None) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._handle = os.open(self.path, flags, 0o600)
        if account is not None and os.geteuid() == 0:
            os.fchown(self._handle, account.uid, account.gid)

    def write(self, chunk: bytes) -> None:
        if self._handle is None:
            raise ValueError("it is not open")
        if not self._checksum.size:
            self.header = read_header(chunk[:HEAD])
        self._checksum.update(chunk)
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(self._handle, rest) :]

    def finish(self) -> None:
        self._checksum.verify()
        if self._handle is not None:
            os.fsync(self._handle)
        sync_folder(self.path.parent)

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def reached_by(info: Info, header: Header, manifest: Manifest) -> Restored:
    """Say where in which history a server is that has loaded an RDB.

    From Redis 7 on the server remembers the history that its data comes from (`master_replid2`) as far as it went.
    Older ones forget it: then it is what the file says that they have loaded.
    """
    point = manifest.recovery_point
    branch, after = info.text("master_replid2"), info.number("second_repl_offset")
    if branch not in ("", _NO_HISTORY) and after > 0:
        position = at(branch, after - 1)
    else:
        position = header.position or point.position
    findings = []
    if gone := info.number("rdb_last_load_keys_expired"):
        text = f"{gone} keys have expired since the backup was taken, and were left out"
        findings.append(Finding(severity="note", subject=manifest.id, text=text))
    return Restored(reached=RecoveryPoint(position=position, time=point.time), findings=tuple(findings))
