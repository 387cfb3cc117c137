"""The server's backup manifest (PostgreSQL, chapter 72) and the check of what arrived against it. Pure."""

from __future__ import annotations

import hashlib
import hmac
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

import crc32c
import msgspec
from attrs import define, field, frozen

from resilience.model.errors import ChecksumMismatch, ManifestInvalid
from resilience.streams.tar import Member

from .lsn import parse_lsn

NAME = "backup_manifest"
MAIN = "base.tar"
_SHOWN = 3
_FILES = b'"Files": [\n'
_END_OF_FILES = b'\n],\n"WAL-Ranges": ['
_SEGMENT = re.compile("pg_wal/[0-9A-F]{24}")
_SEGMENT_SIZES = [1 << power for power in range(20, 31)]


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


class _Written(msgspec.Struct):
    version: int = msgspec.field(name="PostgreSQL-Backup-Manifest-Version")
    files: list[ManifestFile] = msgspec.field(name="Files")
    wal: list[WalRange] = msgspec.field(name="WAL-Ranges")
    checksum: str = msgspec.field(name="Manifest-Checksum")


@frozen(kw_only=True)
class ServerManifest:
    """The parsed `backup_manifest`. Its files are parsed one by one when they are asked for: there may be many."""

    version: int
    wal: Sequence[WalRange]
    _listed: bytes | Sequence[ManifestFile] = field(repr=False)

    @classmethod
    def parse(cls, data: bytes) -> ServerManifest:
        """Parse and check the manifest's checksum of itself. Raises ManifestInvalid."""
        begin, end = _lines_of_files(data)
        try:
            written = msgspec.json.decode(data[:begin] + data[end:], type=_Written)
        except msgspec.MsgspecError as error:
            raise _unreadable(error) from error
        signed = memoryview(data)[: data.rfind(b'"Manifest-Checksum"')]
        if not hmac.compare_digest(hashlib.sha256(signed).hexdigest(), written.checksum):
            raise ManifestInvalid("the server's backup manifest does not match its own checksum")
        return cls(version=written.version, wal=written.wal, listed=data[begin:end] or written.files)

    @property
    def files(self) -> Iterator[ManifestFile]:
        """Every file but WAL. Iterating raises ManifestInvalid."""
        if not isinstance(self._listed, bytes):
            yield from self._listed
            return
        for line in io.BytesIO(self._listed):
            try:
                yield _file.decode(line.rstrip().removesuffix(b","))
            except msgspec.MsgspecError as error:
                raise _unreadable(error) from error


_file = msgspec.json.Decoder(ManifestFile)


def _lines_of_files(data: bytes) -> tuple[int, int]:
    """Return where the files stand one a line, as every server so far writes them; an empty place if they do not.

    One call that decodes 200,000 files would keep every other thread waiting for a fifth of a second.
    """
    begin = data.find(_FILES) + len(_FILES)
    end = data.find(_END_OF_FILES, begin)
    if begin < len(_FILES) or end < 0 or data[begin : begin + 1] != b"{":
        return 0, 0
    one_a_line = data.count(b"\n{", begin, end) == data.count(b"\n", begin, end)
    return (begin, end) if one_a_line else (0, 0)


def _unreadable(error: msgspec.MsgspecError) -> ManifestInvalid:
    return ManifestInvalid(f"the server's backup manifest cannot be read: {error}")


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


def compare(manifest: ServerManifest, seen: dict[str, tuple[int, int]]) -> None:
    """Raise ChecksumMismatch unless exactly the manifest's files were seen, with their sizes and checksums.

    WAL is not in the manifest's list of files. Its segments have to be there, whole; what they hold carries checksums
    of its own, which recovery proves. Files that match are taken out of `seen`, so that memory is not needed twice.
    """
    wrong = []
    for file in manifest.files:
        found = seen.pop(file.name, None)
        if found is None:
            wrong.append(f"{file.name} is missing")
        elif found[0] != file.size:
            wrong.append(f"{file.name} has {found[0]} bytes instead of {file.size}")
        elif file.algorithm == "CRC32C" and found[1].to_bytes(4, "little").hex() != file.checksum:
            wrong.append(f"{file.name} has another checksum")
    wrong += [f"{name} is not in the manifest" for name in sorted(seen) if not name.startswith("pg_wal/")]
    segments = {name.removeprefix("pg_wal/"): size for name, (size, _) in seen.items() if _SEGMENT.fullmatch(name)}
    wrong += _wrong_wal(manifest.wal, segments)
    if wrong:
        shown = ", ".join(wrong[:_SHOWN])
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise ChecksumMismatch(f"what arrived is not what the server's manifest says: {shown}{more}")


def _wrong_wal(ranges: Sequence[WalRange], segments: Mapping[str, int]) -> Iterator[str]:
    """Say what is wrong with the segments that the ranges need; their names: PostgreSQL, WAL Internals."""
    size = max(segments.values(), default=0)
    for name, found in sorted(segments.items()):
        if found != size or size not in _SEGMENT_SIZES:
            yield f"pg_wal/{name} has {found} bytes, which is no whole segment"
            return
    if not size:
        yield "pg_wal has no segments"
        return
    for each in ranges:
        try:
            first, last = parse_lsn(each.start) // size, (parse_lsn(each.end) - 1) // size
        except ValueError as error:
            raise ManifestInvalid(f"the server's backup manifest cannot be read: {error}") from error
        for number in range(first, last + 1):
            # The segment in which a timeline ended may be there on the next timeline only, which begins with its copy.
            timelines = {
                each.timeline,
                *(other.timeline for other in ranges if number == last and other.timeline > each.timeline),
            }
            if not any(_segment(timeline, number, size) in segments for timeline in timelines):
                yield f"pg_wal/{_segment(each.timeline, number, size)} is missing"


def _segment(timeline: int, number: int, size: int) -> str:
    high, low = divmod(number, (1 << 32) // size)
    return f"{timeline:08X}{high:08X}{low:08X}"
