"""The server's backup manifest (PostgreSQL, chapter 72) and the check of what arrived against it. Pure."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Annotated

import crc32c
import msgspec
from attrs import define, field

from resilience.model.errors import ChecksumMismatch, ManifestInvalid
from resilience.streams.tar import Member

NAME = "backup_manifest"
MAIN = "base.tar"
_SHOWN = 3


def prefix_of(part: str) -> str:
    """Return where a tar's members belong below the data directory; `16401.tar` is a tablespace."""
    return "" if part == MAIN else f"pg_tblspc/{part.removesuffix('.tar')}/"


class ManifestFile(msgspec.Struct, rename="pascal"):
    """One file as the server says it sent it."""

    size: int
    path: str | None = None
    encoded_path: Annotated[str | None, msgspec.Meta()] = msgspec.field(default=None, name="Encoded-Path")
    algorithm: str | None = msgspec.field(default=None, name="Checksum-Algorithm")
    checksum: str | None = None

    @property
    def name(self) -> str:
        """The path below the data directory."""
        if self.path is not None:
            return self.path
        return bytes.fromhex(self.encoded_path or "").decode("utf-8", "surrogateescape")


class WalRange(msgspec.Struct):
    """A stretch of WAL that a restore of the backup replays."""

    timeline: int = msgspec.field(name="Timeline")
    start: str = msgspec.field(name="Start-LSN")
    end: str = msgspec.field(name="End-LSN")


class ServerManifest(msgspec.Struct):
    """The parsed `backup_manifest`."""

    version: int = msgspec.field(name="PostgreSQL-Backup-Manifest-Version")
    files: list[ManifestFile] = msgspec.field(name="Files")
    wal: list[WalRange] = msgspec.field(name="WAL-Ranges")
    checksum: str = msgspec.field(name="Manifest-Checksum")

    @classmethod
    def parse(cls, data: bytes) -> ServerManifest:
        """Parse and check the manifest's checksum of itself. Raises ManifestInvalid."""
        try:
            manifest = msgspec.json.decode(data, type=cls)
        except msgspec.MsgspecError as error:
            raise ManifestInvalid(f"the server's backup manifest cannot be read: {error}") from error
        signed = data[: data.rfind(b'"Manifest-Checksum"')]
        if not hmac.compare_digest(hashlib.sha256(signed).hexdigest(), manifest.checksum):
            raise ManifestInvalid("the server's backup manifest does not match its own checksum")
        return manifest


@define
class FileChecksums:
    """Digests every file of a base backup while its tars stream by; a `TarVisitor`. `prefix` is the tar's place."""

    prefix: str = ""
    seen: dict[str, tuple[int, int]] = field(factory=dict)
    _name: str = ""
    _size: int = 0
    _checksum: int = 0
    _is_file: bool = False

    def begin(self, member: Member) -> None:
        """A member begins."""
        self._name, self._size, self._checksum = self.prefix + member.name, member.size, 0
        self._is_file = member.kind == "file"

    def body(self, piece: bytes | memoryview) -> None:
        """Some of its bytes."""
        self._checksum = crc32c.crc32c(piece, self._checksum)

    def end(self) -> None:
        """It is complete."""
        if self._is_file:
            self.seen[self._name] = self._size, self._checksum


def compare(manifest: ServerManifest, seen: Mapping[str, tuple[int, int]]) -> None:
    """Raise ChecksumMismatch unless exactly the manifest's files were seen, with their sizes and checksums.

    WAL is not in the manifest: it carries checksums of its own, which recovery proves.
    """
    wrong = []
    named = set()
    for file in manifest.files:
        named.add(file.name)
        found = seen.get(file.name)
        if found is None:
            wrong.append(f"{file.name} is missing")
        elif found[0] != file.size:
            wrong.append(f"{file.name} has {found[0]} bytes instead of {file.size}")
        elif file.algorithm == "CRC32C" and found[1].to_bytes(4, "little").hex() != file.checksum:
            wrong.append(f"{file.name} has another checksum")
    wrong += [
        f"{name} is not in the manifest" for name in sorted(seen.keys() - named) if not name.startswith("pg_wal/")
    ]
    if wrong:
        shown = ", ".join(wrong[:_SHOWN])
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise ChecksumMismatch(f"what arrived is not what the server's manifest says: {shown}{more}")
