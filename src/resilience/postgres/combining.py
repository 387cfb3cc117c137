"""A full backup and the incremental ones after it become one data directory, by pg_combinebackup (PostgreSQL 17+).

Every backup of the chain is unpacked into a folder of its own inside the folders that are being restored, on the same
file system, so that files that have not changed can be linked rather than copied. pg_combinebackup does not look
whether its inputs are whole: each file's checksum in the server's own manifest is compared while it is unpacked.

It wants a `global/pg_control` in every input and makes one in its output while the rest is still missing. All of these
are disarmed: they carry a catalog version that no server has, so that none starts on anything in here, at any moment.
The real one stays in memory and is written last, as ever.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import crc32c
from attrs import define, field

from resilience.concurrency import in_thread
from resilience.model.errors import ChecksumMismatch, Corrupt, StorageFailed
from resilience.primitives import StoredBackup
from resilience.streams.tar import Member

from . import server_manifest
from .places import COMBINING, OUTPUT, Places
from .server_manifest import FileChecksums, ServerManifest
from .tools import Tools
from .untar import PG_CONTROL, TABLESPACES, Untar, walk

PROGRAM = "pg_combinebackup"
LINKS_SINCE = 18
_CATALOG_VERSION = slice(12, 16)
_DISK = re.compile(
    "|".join(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG))
    + r"|: wrote \d+ of \d+"
)


@define
class Combination:
    """One restore of a chain into `places`; `pg_control` and `mode` are known when it is done."""

    places: Places
    tools: Tools
    leave_out: Sequence[str]
    pg_control: bytes = field(default=b"", init=False)
    mode: int = field(default=0o600, init=False)
    _inputs: list[Places] = field(factory=list, init=False)

    async def make(self, chain: Sequence[StoredBackup]) -> None:
        """Fill the folders with everything but pg_control. Raises Corrupt, StorageFailed, OSError."""
        for number, backup in enumerate(chain):
            await self._unpack(backup, number, last=backup is chain[-1])
        await self._combine(chain[-1])
        await in_thread(self._move)

    async def _unpack(self, backup: StoredBackup, number: int, *, last: bool) -> None:
        manifest, places = backup.manifest, self.places.staged(backup.manifest, number)
        self._inputs.append(places)
        await in_thread(_make, places, self.places)
        checksums, listed, control = FileChecksums(), b"", b""
        for part in manifest.parts:
            if part.name == server_manifest.NAME:
                async with backup.read(part.name) as chunks:
                    listed = b"".join([chunk async for chunk in chunks])
                continue
            checksums.prefix = server_manifest.prefix_of(part.name)
            untar = Untar(root=places.root(part.name), account=places.account, locations=places.locations)
            try:
                await walk(backup, part.name, _Staged(untar, checksums, self.leave_out, with_wal=last))
            finally:
                untar.close()
            if untar.pg_control:
                control, self.mode = untar.pg_control, untar.mode
        await in_thread(_check, manifest.id, listed, checksums)
        self.pg_control = control
        await in_thread(self._arm_not, places, control)

    def _arm_not(self, places: Places, control: bytes) -> None:
        (places.data / PG_CONTROL).write_bytes(disarmed(control))
        places.own(places.data / PG_CONTROL)
        # The output's modes are taken from the last input.
        places.data.chmod((places.data / "global").stat().st_mode & 0o777)

    async def _combine(self, last: StoredBackup) -> None:
        arguments = ["--no-sync", "--no-manifest", *await in_thread(self._way, last)]
        for oid, location in self._inputs[-1].locations.items():
            if not location.is_relative_to(self._inputs[-1].data):
                arguments += ["-T", f"{_escaped(location)}={_escaped(self.places.staged_output(oid))}"]
        arguments += ["-o", str(self.places.staged_output()), *(str(places.data) for places in self._inputs)]
        async with self.tools.start(
            PROGRAM, arguments, account=self.places.account, environment={"LC_ALL": "C"}
        ) as running:
            if status := await running.wait():
                raise self._failed(status, running.said)

    def _failed(self, status: int, said: str) -> Corrupt | StorageFailed:
        """Choose our error for what it said, but for its warnings that it misses manifests, which were checked here."""
        lines = [line for line in said.split(f"{PROGRAM}: ") if not line.startswith("warning: ")]
        said = f"{PROGRAM} failed with status {status}: {' '.join(lines).strip() or 'it said nothing'}"
        kind = StorageFailed if _DISK.search(said) else Corrupt
        hint = "make room, if the disk is full" if kind is StorageFailed else ""
        return kind(said, operation="restore", subject=str(self.places.data), hint=hint)

    def _way(self, last: StoredBackup) -> list[str]:
        """Choose how files that have not changed get into the output: by links if possible, for the inputs go away."""
        folders, major = self.places.apart, last.manifest.details.get("major")
        if isinstance(major, int) and major >= LINKS_SINCE and all(map(_can_link, folders)):
            return ["--link"]
        return ["--copy-file-range"] if all(map(_can_copy_ranges, folders)) else []

    def _move(self) -> None:
        """Take the inputs away and the output to its place."""
        for folder in self.places.apart:
            for entry in (folder / COMBINING).iterdir():
                if entry.name != OUTPUT:
                    shutil.rmtree(entry)
        output = self.places.staged_output()
        (output / PG_CONTROL).unlink()
        for oid, location in self.places.locations.items():
            link = output / TABLESPACES / oid
            if link.is_symlink():
                link.unlink()
                link.symlink_to(location)
                self.places.own(link)
        if (made := self.places.data / TABLESPACES).exists():
            shutil.rmtree(made)  # empty folders, for tablespaces inside the data directory
        for folder in self.places.apart:
            staged = folder / COMBINING
            for entry in sorted((staged / OUTPUT).iterdir()):
                entry.rename(folder / entry.name)
            shutil.rmtree(staged)


@define
class _Staged:
    """Writes and digests a tar's members (a `TarVisitor`); WAL is of use in the last backup only."""

    untar: Untar
    checksums: FileChecksums
    leave_out: Sequence[str]
    with_wal: bool
    _written: bool = True

    def begin(self, member: Member) -> None:
        """A member begins."""
        self.checksums.begin(member)
        name = member.name
        self._written = not (
            (self.checksums.prefix == "" and (name in self.leave_out or name.split("/", 1)[0] == COMBINING))
            or (not self.with_wal and member.kind == "file" and name.startswith("pg_wal/"))
        )
        if self._written:
            self.untar.begin(member)

    def body(self, piece: bytes | memoryview) -> None:
        """Some of its bytes."""
        self.checksums.body(piece)
        if self._written:
            self.untar.body(piece)

    def end(self) -> None:
        """It is complete."""
        self.checksums.end()
        if self._written:
            self.untar.end()


def disarmed(control: bytes) -> bytes:
    """Return a pg_control that programs can read and no server starts on: its catalog version is none's.

    See src/include/catalog/pg_control.h: the checksum follows the fields, at another place in every major version.
    """
    for end in range(64, min(len(control), 1024), 4):
        if crc32c.crc32c(control[:end]).to_bytes(4, sys.byteorder) == control[end : end + 4]:
            changed = bytearray(control)
            changed[_CATALOG_VERSION] = bytes(4)
            changed[end : end + 4] = crc32c.crc32c(changed[:end]).to_bytes(4, sys.byteorder)
            return bytes(changed)
    raise Corrupt(f"the backup's {PG_CONTROL} does not match its own checksum", operation="restore")


def _make(places: Places, within: Places) -> None:
    """Make the folders that a backup is unpacked into, and those above them."""
    for folder in within.apart:
        (folder / COMBINING).mkdir(mode=0o700, exist_ok=True)
        within.own(folder / COMBINING)
    for folder in places.folders:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        places.own(folder)


def _check(backup: str, listed: bytes, checksums: FileChecksums) -> None:
    try:
        server_manifest.compare(ServerManifest.parse(listed), checksums.seen)
    except Corrupt as error:
        raise ChecksumMismatch(error.what, operation="restore", subject=backup) from error


def _escaped(path: Path) -> str:
    return str(path).replace("=", "\\=")


def _can_link(folder: Path) -> bool:
    one, other = folder / COMBINING / "one", folder / COMBINING / "other"
    try:
        one.touch()
        other.hardlink_to(one)
    except OSError:
        return False
    finally:
        one.unlink(missing_ok=True)
        other.unlink(missing_ok=True)
    return True


def _can_copy_ranges(folder: Path) -> bool:
    path = folder / COMBINING / "one"
    try:
        with path.open("w+b", buffering=0) as file:
            file.write(bytes(4096))
            return os.copy_file_range(file.fileno(), file.fileno(), 4096, 0, 4096) == 4096
    except OSError:
        return False
    finally:
        path.unlink(missing_ok=True)
