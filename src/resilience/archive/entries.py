"""Entries of a log as bytes: a head that describes the frames which follow it. Pure.

The head is a skippable frame (RFC 8878, 3.1.2), so that `zstd -d` of a whole object gives exactly the entry's bytes. It
holds 32 bytes of sha256 and the JSON that they are the digest of. That of a sealed entry begins with 32 bytes of MAC.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import TypeVar

import msgspec
from attrs import field, frozen
from attrs.validators import ge

from resilience.model.errors import ChecksumMismatch, SealBroken, Unsupported
from resilience.model.json import from_json, to_json
from resilience.model.log import LogEntry
from resilience.model.manifests import FORMAT, SEALED_FORMAT
from resilience.model.moments import aware
from resilience.model.positions import Position
from resilience.streams.frames import expand
from resilience.streams.seals import Sealer, same

from .envelope import Authority

H = TypeVar("H")

MAGIC = 0x184D2A5E
SEALED_MAGIC = 0x184D2A5D
_LEAD = struct.Struct("<II")
_DIGEST = hashlib.sha256().digest_size
HEAD_AT_MOST = 1 << 20
"""Bytes of the JSON of a head; a segment of 1 GiB needs a few thousand."""


@frozen(kw_only=True)
class EntrySealing:
    """With what the frames of an entry are sealed: a data key, and the salt that makes a key of its own from it."""

    key: str
    salt: str


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
    sealing: EntrySealing | None = None

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


@frozen(kw_only=True)
class FileHead:
    """What a sealed file beside a log says about itself; one frame of `size` plain bytes follows."""

    format: int = SEALED_FORMAT
    target: str
    lineage: str
    name: str
    size: int = field(validator=ge(0))
    sealing: EntrySealing


def described(
    entry: LogEntry,
    frames: Sequence[bytes],
    frame_size: int,
    *,
    target: str,
    lineage: str,
    sealing: EntrySealing | None = None,
) -> Head:
    """Return the head of an entry whose bytes are stored as `frames`."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(frame)
    return Head(
        format=FORMAT if sealing is None else SEALED_FORMAT,
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
        sealing=sealing,
    )


def stored(head: object, *, key: str = "", by: Authority | None = None) -> bytes:
    """Return a head as bytes; with `by` sealed, to be stored under `key` and nowhere else."""
    text = to_json(head)
    content = hashlib.sha256(text).digest() + text
    if by is None:
        return _LEAD.pack(MAGIC, len(content)) + content
    content = bytes.fromhex(by.mac(key, text)) + content
    return _LEAD.pack(SEALED_MAGIC, len(content)) + content


def head_of(data: bytes | bytearray, key: str) -> tuple[Head, int] | None:
    """Return the head that `data` begins with, and its length; None if there is not enough data yet.

    Raises ChecksumMismatch if it is no head, Unsupported if its format is newer than this version.
    """
    return _decoded(data, key, Head)


def file_head_of(data: bytes, key: str) -> tuple[FileHead, int] | None:
    """Return the head of a sealed file, and its length; None if it has none. Raises as `head_of` does."""
    return _decoded(data, key, FileHead) if data[:4] == SEALED_MAGIC.to_bytes(4, "little") else None


def _decoded(data: bytes | bytearray, key: str, kind: type[H]) -> tuple[H, int] | None:
    if (parsed := _parsed(data, key)) is None:
        return None
    _, text, length = parsed
    try:
        written = from_json(text, _Format).format
        if written > SEALED_FORMAT:
            raise Unsupported(
                f"it is written in archive format {written}, this version reads up to {SEALED_FORMAT}",
                operation="read log",
                subject=key,
                hint="install a newer resilience",
            )
        return from_json(text, kind), length
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _damaged(key, f"its head cannot be read: {error}") from error


def prove(data: bytes | bytearray, key: str, by: Authority) -> None:
    """Raise SealBroken unless the whole head that `data` begins with was sealed with this key, for this place."""
    parsed = _parsed(data, key)
    if parsed is None or not same(parsed[0].hex(), by.mac(key, parsed[1])):
        text = "its seal is broken: it was changed, moved, or written by somebody who has no key"
        raise SealBroken(text, operation="read log", subject=key)


def _parsed(data: bytes | bytearray, key: str) -> tuple[bytes, bytes, int] | None:
    """Return the MAC of a head, its JSON, and its length; None if there is not enough data yet."""
    if len(data) < _LEAD.size:
        return None
    magic, length = _LEAD.unpack_from(data)
    at = _LEAD.size + (_DIGEST if magic == SEALED_MAGIC else 0)
    ends = _LEAD.size + length
    if magic not in (MAGIC, SEALED_MAGIC) or not (at + _DIGEST < ends and length <= HEAD_AT_MOST):
        raise _damaged(key, "it does not begin like an entry of a log")
    if len(data) < ends:
        return None
    digest, text = bytes(data[at : at + _DIGEST]), bytes(data[at + _DIGEST : ends])
    if hashlib.sha256(text).digest() != digest:
        raise _damaged(key, "its head does not match its digest")
    return bytes(data[_LEAD.size : at]), text, ends


def opening(head: Head, body: memoryview, key: str, sealer: Sealer | None = None) -> list[Callable[[], bytes]]:
    """Return what has to be done, in any order, for the plain frames of an entry, the first for none: check them all.

    Raises ChecksumMismatch if the frames cannot be those of the entry, and so does each of the steps; they raise
    SealBroken if the entry is sealed, and the frame was not sealed for its place.
    """
    if len(body) != sum(head.frames):
        raise _damaged(key, f"it has {len(body)} bytes after its head, {sum(head.frames)} were stored")
    steps: list[Callable[[], bytes]] = [partial(_check, head, body, key)]
    at, rest = 0, head.ends.offset - head.begins.offset
    for number, length in enumerate(head.frames):
        size = min(rest, head.frame_size)
        opened = partial(_unsealed, sealer, body[at : at + length], number, number + 1 == len(head.frames), key)
        steps.append(partial(_expand, opened, size, key))
        at, rest = at + length, rest - size
    if rest:
        raise _damaged(key, f"{rest} bytes are in none of its frames")
    return steps


def _check(head: Head, body: memoryview, key: str) -> bytes:
    if hashlib.sha256(body).hexdigest() != head.sha256:
        raise _damaged(key, "its sha256 is not what its head says")
    return b""


def _unsealed(sealer: Sealer | None, frame: memoryview, number: int, last: bool, key: str) -> bytes:
    if sealer is None:
        return bytes(frame)
    try:
        return sealer.open(frame, number=number, last=last)
    except SealBroken as error:
        raise SealBroken(error.what, operation="read log", subject=key) from error


def _expand(opened: Callable[[], bytes], size: int, key: str) -> bytes:
    try:
        return expand(opened(), size)
    except ChecksumMismatch as error:
        raise _damaged(key, error.what) from error


class _Format(msgspec.Struct):
    format: int


def _damaged(key: str, what: str) -> ChecksumMismatch:
    return ChecksumMismatch(what, operation="read log", subject=key)
