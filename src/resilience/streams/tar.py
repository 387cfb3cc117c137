"""A tar walker for untrusted, unbounded streams (ustar, IEEE Std 1003.1-2008, and GNU base-256 sizes).

Only what PostgreSQL's BASE_BACKUP writes is accepted: files, directories and symbolic links with short names.
"""

from __future__ import annotations

from typing import Literal, Protocol

from attrs import frozen

from resilience.model.errors import Corrupt

BLOCK = 512
Kind = Literal["file", "directory", "link"]
_KINDS: dict[bytes, Kind] = {b"0": "file", b"\0": "file", b"5": "directory", b"2": "link"}


@frozen
class Member:
    """The header of one tar member; `target` is where a link points."""

    name: str
    kind: Kind
    size: int
    mode: int
    target: str


class TarVisitor(Protocol):
    """Receives what a `TarWalker` meets: `begin`, any number of `body`, `end`, for every member."""

    def begin(self, member: Member) -> None: ...
    def body(self, piece: bytes | memoryview) -> None: ...
    def end(self) -> None: ...


class TarWalker:
    """Walks a tar stream fed in pieces of any size and calls a visitor; keeps at most one header in memory."""

    def __init__(self, visitor: TarVisitor) -> None:
        self.members = 0
        self._visitor = visitor
        self._header = bytearray()
        self._body = 0
        self._padding = 0
        self._zero_blocks = 0

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next piece. Raises Corrupt if it is no tar, or not one that PostgreSQL writes."""
        position, length = 0, len(data)
        while position < length:
            if self._body:
                take = min(self._body, length - position)
                whole = take == length
                self._visitor.body(data if whole else memoryview(data)[position : position + take])
                self._body -= take
                position += take
                if not self._body:
                    self._visitor.end()
            elif self._padding:
                take = min(self._padding, length - position)
                self._padding -= take
                position += take
            else:
                take = min(BLOCK - len(self._header), length - position)
                self._header += data[position : position + take]
                position += take
                if len(self._header) == BLOCK:
                    self._begin(bytes(self._header))
                    self._header.clear()

    def close(self) -> None:
        """Say that the stream is over. Raises Corrupt unless it ended as a tar does: with two zero blocks."""
        if self._body or self._padding or self._header or self._zero_blocks < 2:
            raise Corrupt("the tar stream ends in the middle")

    def _begin(self, block: bytes) -> None:
        if not any(block):
            self._zero_blocks += 1
            return
        if self._zero_blocks:
            raise Corrupt("the tar stream goes on after its end")
        member = parse_header(block)
        self.members += 1
        self._body = member.size
        self._padding = -member.size % BLOCK
        self._visitor.begin(member)
        if not member.size:
            self._visitor.end()


def parse_header(block: bytes) -> Member:
    """Read one 512-byte header. Raises Corrupt if its checksum is wrong or it is of a kind we do not know."""
    declared = _number(block[148:156])
    if sum(block[:148]) + sum(block[156:]) + 8 * 0x20 != declared:
        raise Corrupt("a tar header has a wrong checksum")
    kind = _KINDS.get(block[156:157])
    name = _text(block[:100])
    if prefix := _text(block[345:500]):
        name = f"{prefix}/{name}"
    if kind is None:
        raise Corrupt(f"the tar member {name!r} is of unknown type {block[156:157]!r}")
    return Member(
        name=name if kind == "file" else name.rstrip("/"),
        kind=kind,
        size=_number(block[124:136]) if kind == "file" else 0,
        mode=_number(block[100:108]) & 0o7777,
        target=_text(block[157:257]),
    )


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _number(raw: bytes) -> int:
    if raw[0] & 0x80:
        return int.from_bytes(bytes([raw[0] & 0x7F]) + raw[1:], "big")
    digits = raw.strip(b" \0")
    if digits.strip(b"01234567"):
        raise Corrupt(f"a tar header holds {raw!r} where a number should be")
    return int(digits, 8) if digits else 0
