"""Entries of a log as bytes: a head that describes the frames which follow it. Pure.

The head is a skippable frame (RFC 8878, 3.1.2), so that `zstd -d` of a whole object gives exactly the entry's bytes. It
holds 32 bytes of sha256 and the JSON that they are the digest of.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial

import msgspec
from attrs import field, frozen
from attrs.validators import ge

from resilience.model.errors import ChecksumMismatch, Unsupported
from resilience.model.json import from_json, to_json
from resilience.model.log import LogEntry
from resilience.model.manifests import FORMAT, SEALED_FORMAT
from resilience.model.moments import aware
from resilience.model.positions import Position
from resilience.streams.frames import expand

MAGIC = 0x184D2A5E
_LEAD = struct.Struct("<II")
_DIGEST = hashlib.sha256().digest_size
_TEXT = _LEAD.size + _DIGEST
HEAD_AT_MOST = 1 << 20
"""Bytes of the JSON of a head; a segment of 1 GiB needs a few thousand."""


@frozen(kw_only=True)
class Head:
    """What an entry says about itself. `frames` are the stored lengths of the frames, each of `frame_size` plain bytes.

    `target` and `lineage` say whose log it belongs to. `sha256` is the digest of all bytes that follow the head.
    """

    format: int = FORMAT
    target: str
    lineage: str
    begins: Position
    ends: Position
    segment: Position | None = None
    latest: datetime | None = field(default=None, validator=aware)
    complete_at: datetime | None = field(default=None, validator=aware)
    frame_size: int = field(validator=ge(1))
    frames: tuple[int, ...]
    sha256: str

    @property
    def entry(self) -> LogEntry:
        """The entry, with its times."""
        return LogEntry(
            begins=self.begins,
            ends=self.ends,
            segment=self.segment,
            latest=self.latest,
            complete_at=self.complete_at,
        )


def seal(entry: LogEntry, frames: Sequence[bytes], frame_size: int, *, target: str, lineage: str) -> bytes:
    """Return the stored head of an entry whose bytes were compressed to `frames`."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(frame)
    return stored(
        Head(
            target=target,
            lineage=lineage,
            begins=entry.begins,
            ends=entry.ends,
            segment=entry.segment,
            latest=entry.latest,
            complete_at=entry.complete_at,
            frame_size=frame_size,
            frames=tuple(len(frame) for frame in frames),
            sha256=digest.hexdigest(),
        )
    )


def stored(head: Head) -> bytes:
    """Return a head as bytes."""
    text = to_json(head)
    return _LEAD.pack(MAGIC, _DIGEST + len(text)) + hashlib.sha256(text).digest() + text


def head_of(data: bytes | bytearray, key: str) -> tuple[Head, int] | None:
    """Return the head that `data` begins with, and its length; None if there is not enough data yet.

    Raises ChecksumMismatch if it is no head, Unsupported if its format is newer than this version.
    """
    if len(data) < _LEAD.size:
        return None
    magic, length = _LEAD.unpack_from(data)
    if magic != MAGIC or not _DIGEST < length <= HEAD_AT_MOST:
        raise _damaged(key, "it does not begin like an entry of a log")
    if len(data) < _LEAD.size + length:
        return None
    digest, text = bytes(data[_LEAD.size : _TEXT]), bytes(data[_TEXT : _LEAD.size + length])
    if hashlib.sha256(text).digest() != digest:
        raise _damaged(key, "its head does not match its digest")
    try:
        written = msgspec.json.decode(text, type=_Format).format
        if written > SEALED_FORMAT:
            raise Unsupported(
                f"it is written in archive format {written}, this version reads up to {SEALED_FORMAT}",
                operation="read log",
                subject=key,
                hint="install a newer resilience",
            )
        return from_json(text, Head), _LEAD.size + length
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _damaged(key, f"its head cannot be read: {error}") from error


def opening(head: Head, body: memoryview, key: str) -> list[Callable[[], bytes]]:
    """Return what has to be done, in any order, for the plain frames of an entry, the first for none: check them all.

    Raises ChecksumMismatch if the frames cannot be those of the entry, and so does each of the steps.
    """
    if len(body) != sum(head.frames):
        raise _damaged(key, f"it has {len(body)} bytes after its head, {sum(head.frames)} were stored")
    steps: list[Callable[[], bytes]] = [partial(_check, head, body, key)]
    at, rest = 0, head.ends.offset - head.begins.offset
    for length in head.frames:
        size = min(rest, head.frame_size)
        steps.append(partial(_expand, body[at : at + length], size, key))
        at, rest = at + length, rest - size
    if rest:
        raise _damaged(key, f"{rest} bytes are in none of its frames")
    return steps


def _check(head: Head, body: memoryview, key: str) -> bytes:
    if hashlib.sha256(body).hexdigest() != head.sha256:
        raise _damaged(key, "its sha256 is not what its head says")
    return b""


def _expand(frame: memoryview, size: int, key: str) -> bytes:
    try:
        return expand(bytes(frame), size)
    except ChecksumMismatch as error:
        raise _damaged(key, error.what) from error


class _Format(msgspec.Struct):
    format: int


def _damaged(key: str, what: str) -> ChecksumMismatch:
    return ChecksumMismatch(what, operation="read log", subject=key)
