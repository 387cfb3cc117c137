"""What is common to all RDB files: how one begins and ends (github.com/redis/redis, src/rdb.h, rdb.c, crc64.c).

An RDB is a magic word with its version, auxiliary fields, keys, an end mark and a checksum of all before it: CRC-64
with Jones' polynomial, in Redis's own bit order. A checksum of 0 says that the server was told not to make one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime

from anycrc import Model  # type: ignore[import-untyped]
from attrs import define, field, frozen

from resilience.model.errors import ChecksumMismatch, Corrupt, Unsupported
from resilience.model.positions import Position

_MAGIC = re.compile(rb"(REDIS|VALKEY)([0-9]{3,4})")
AUX, END = 0xFA, 0xFF
HEAD = 1 << 12
"""Bytes: the auxiliary fields that are looked at are within the first so many."""
_TAIL = 9
_CRC = Model("CRC64-REDIS")


@frozen
class Header:
    """How an RDB begins: its version, and the fields that the server wrote about itself."""

    version: int
    fields: Mapping[str, str]

    @property
    def forked(self) -> datetime | None:
        """When the server's child began to write it, by the server's clock, in whole seconds."""
        seconds = self.fields.get("ctime", "")
        return datetime.fromtimestamp(int(seconds), UTC) if seconds.isdecimal() else None

    @property
    def position(self) -> Position | None:
        """Where in which history it was made; None if the server had no history then."""
        branch, offset = self.fields.get("repl-id", ""), self.fields.get("repl-offset", "")
        return at(branch, int(offset)) if branch and offset.isdecimal() else None


def at(branch: str, offset: int) -> Position:
    """Return a position: a replication id, and so many bytes of its stream."""
    return Position(branch=branch, offset=offset, text=f"offset {offset}")


def read_header(data: bytes) -> Header:
    """Read how an RDB begins, from its first bytes (`HEAD` are enough). Raises Corrupt or Unsupported."""
    version, at = read_magic(data)
    fields: dict[str, str] = {}
    data = data[:HEAD]
    try:
        while data[at] == AUX:
            name, at = _string(data, at + 1)
            value, at = _string(data, at)
            fields[name.decode(errors="replace")] = value.decode(errors="replace")
    except IndexError:
        pass  # cut off by us, or it holds nothing else: whoever walks it to its end will know
    return Header(version, fields)


def read_magic(data: bytes) -> tuple[int, int]:
    """Return the version of an RDB, and how many bytes say so. Raises Corrupt."""
    match = _MAGIC.match(data)
    if match is None:
        raise Corrupt(f"it is no RDB: it begins with {data[:9]!r}")
    # Both words and their numbers take nine bytes together.
    return int(data[len(match[1]) : 9]), 9


def _string(data: bytes, at: int) -> tuple[bytes, int]:
    """Read a string as auxiliary fields have it: never compressed. Raises IndexError at the end of the data."""
    first = data[at]
    kind = first >> 6
    if kind == 3:
        width = {0: 1, 1: 2, 2: 4}.get(first & 0x3F)
        if width is None:
            raise Unsupported("an auxiliary field of the RDB is written in an unknown way")
        number = data[at + 1 : at + 1 + width]
        _ = data[at + width]
        return str(int.from_bytes(number, "little", signed=True)).encode(), at + 1 + width
    if kind == 0:
        length, at = first, at + 1
    elif kind == 1:
        length, at = (first & 0x3F) << 8 | data[at + 1], at + 2
    else:
        length, at = int.from_bytes(data[at + 1 : at + 5], "big"), at + 5
    if length:
        _ = data[at + length - 1]
    return data[at : at + length], at + length


@define
class Checksum:
    """The checksum of an RDB as it passes by, in pieces of any size."""

    size: int = field(default=0, init=False)
    _crc: int = field(default=0, init=False)
    _held: bytes = field(default=b"", init=False)

    def update(self, piece: bytes | memoryview) -> None:
        """Take the next piece."""
        self.size += len(piece)
        view = memoryview(piece)
        if len(view) >= _TAIL:
            self._add(self._held)
            self._add(view[:-_TAIL])
            self._held = bytes(view[-_TAIL:])
            return
        held = self._held + bytes(view)
        self._add(held[:-_TAIL])
        self._held = held[-_TAIL:]

    def verify(self) -> bool:
        """Look whether it ends as it should; False: it has no checksum. Raises Corrupt (ChecksumMismatch)."""
        if len(self._held) < _TAIL or self._held[0] != END:
            raise Corrupt("the RDB does not end with its end mark: it is cut off, or damaged")
        said = int.from_bytes(self._held[1:], "little")
        if not said:
            return False
        self._add(self._held[:1])
        if said != self._crc:
            raise ChecksumMismatch(f"the RDB's checksum is {self._crc:016x}, it says {said:016x}")
        return True

    def _add(self, piece: bytes | memoryview) -> None:
        if len(piece):
            self._crc = _CRC.calc(piece, self._crc)
