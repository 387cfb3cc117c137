"""pg_dump's custom format, read on the way to a file and completed there. Pure.

The format is specified by its programs alone (PostgreSQL's pg_backup_archiver.c and pg_backup_custom.c); versions 1.14
(PostgreSQL 15) to 1.16 (17 and 18) are known. A header and a table of contents come first, then one block an entry
that has data. pg_dump knows where a block begins only once it has written it: into a file it goes back and notes it in
the table of contents, into a pipe it cannot, and every worker of a parallel pg_restore then searches the whole file,
row by row. So the offsets are found here while the dump streams by, and noted before pg_restore sees it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from attrs import define, field, frozen

from resilience.model.errors import Corrupt, Unsupported

MAGIC = b"PGDMP"
OLDEST, NEWEST = (1, 14), (1, 16)
_CUSTOM = 1
_SET = 2
_TABLE, _LARGE_OBJECTS = 1, 3

# How the data of a table ends. COPY's text (PostgreSQL, COPY, "Text Format") holds no zero byte and no unescaped
# backslash before a dot, and every piece of it has a length other than zero before it: nothing else looks like this,
# wherever pg_dump cuts the pieces. So it can be found at the speed of a search instead of walking every row.
_END_OF_TABLE = b"\\.\n\n\n" + bytes(5)


@frozen(kw_only=True)
class Entry:
    """One entry of the table of contents; texts are in the encoding of the dump. None is different from empty."""

    id: int
    has_data: bool
    table_oid: bytes | None
    oid: bytes | None
    tag: bytes | None
    kind: bytes | None
    section: int
    definition: bytes | None
    drop: bytes | None
    copy: bytes | None
    namespace: bytes | None
    tablespace: bytes | None
    access_method: bytes | None
    relation_kind: int | None
    owner: bytes | None
    with_oids: bytes | None
    dependencies: tuple[bytes, ...]
    offset: tuple[int, int]


Edit = Callable[[Entry], Entry]


@define(kw_only=True)
class DumpReader:
    """Takes a dump in pieces of any size and gives back what belongs in the file, then what has to be patched there.

    `edit` may change the entries of the table of contents on the way. Once it has been read, `entries` holds them.
    """

    edit: Edit = lambda entry: entry
    entries: list[Entry] = field(factory=list, init=False, repr=False)
    _header: _Header | None = field(default=None, init=False, repr=False)
    _held: bytes = field(default=b"", init=False, repr=False)
    _at: int = field(default=0, init=False)
    _places: dict[int, int] = field(factory=dict, init=False, repr=False)
    _found: dict[int, int] = field(factory=dict, init=False, repr=False)
    _next: Callable[[bytes, int], int | None] | None = field(default=None, init=False, repr=False)
    _skip: int = field(default=0, init=False)

    def feed(self, chunk: bytes) -> bytes:
        """Take the next piece, return what to write. Raises Unsupported or Corrupt if it is no dump of a known kind."""
        data = self._held + chunk if self._held else chunk
        if self._next is not None:
            self._scan(data)
            return chunk
        cursor = _Cursor(data)
        complete = self._read_contents(cursor)
        rest = data[cursor.at :]
        if self._header is None or not complete:
            self._held = rest
            return b""
        contents = self._contents(self._header)
        self._at, self._next = len(contents), self._block
        self._scan(rest)
        return contents + rest

    def patches(self) -> Iterator[tuple[int, bytes]]:
        """Yield where to write what once the dump has ended. Raises Corrupt if it has not."""
        if self._next != self._block or self._held:
            raise Corrupt("the dump ends early")
        missing = self._places.keys() - self._found.keys()
        if missing:
            raise Corrupt(f"the dump ends early: the data of {len(missing)} entries of its contents is missing")
        for entry, place in self._places.items():
            yield place, _OFFSET.pack(_SET, self._found[entry])

    def _read_contents(self, cursor: _Cursor) -> bool:
        """Read the header and the entries as far as the data goes; tell whether all are there."""
        begun = cursor.at
        try:
            self._header = self._header or _header(cursor)
            while len(self.entries) < self._header.entries:
                begun = cursor.at
                self.entries.append(self.edit(_entry(cursor, self._header.version)))
        except _TooShort:
            cursor.at = begun
            return False
        return True

    def _contents(self, header: _Header) -> bytes:
        """Write header and entries as they are to be in the file, and note where their offsets are."""
        out = bytearray(header.raw)
        for entry in self.entries:
            out += _written(entry)
            if entry.has_data:
                self._places[entry.id] = len(out)
            out += _OFFSET.pack(*entry.offset)
        return bytes(out)

    def _scan(self, data: bytes) -> None:
        """Go on as far as the data goes; what is left is looked at again with what comes next."""
        at: int = 0
        while self._next is not None and (reached := self._next(data, at)) is not None:
            at = reached
        self._held = data[at:]
        self._at += at

    def _block(self, data: bytes, at: int) -> int | None:
        """A block's type and the number of its entry."""
        if at + 6 > len(data):
            return None
        kind, entry = data[at], _read_integer(data, at + 1)
        if entry not in self._places or entry in self._found or kind not in (_TABLE, _LARGE_OBJECTS):
            raise Corrupt(f"the dump holds a block of type {kind} for entry {entry} where none belongs")
        self._found[entry] = self._at + at
        self._next = self._table if kind == _TABLE else self._large_object
        return at + 6

    def _table(self, data: bytes, at: int) -> int | None:
        """The data of a table, to its end."""
        end = data.find(_END_OF_TABLE, at)
        if end < 0:
            searched = max(at, len(data) - len(_END_OF_TABLE) + 1)
            return searched if searched > at else None
        self._next = self._block
        return end + len(_END_OF_TABLE)

    def _large_object(self, data: bytes, at: int) -> int | None:
        """The oid of a large object; zero ends the block."""
        if at + 5 > len(data):
            return None
        self._next = self._piece if _read_integer(data, at) else self._block
        return at + 5

    def _piece(self, data: bytes, at: int) -> int | None:
        """The length of a piece of a large object; zero ends the object."""
        if at + 5 > len(data):
            return None
        self._skip = _read_integer(data, at)
        self._next = self._bytes if self._skip else self._large_object
        return at + 5

    def _bytes(self, data: bytes, at: int) -> int | None:
        """The bytes of a piece."""
        step = min(self._skip, len(data) - at)
        self._skip -= step
        if not self._skip:
            self._next = self._piece
        return at + step if step else None


class _TooShort(Exception):
    """The data ends before what is read from it does."""


@frozen(kw_only=True)
class _Header:
    raw: bytes
    version: tuple[int, int]
    entries: int


@define
class _Cursor:
    """Reads numbers and texts as pg_dump writes them."""

    data: bytes
    at: int = 0

    def take(self, count: int) -> bytes:
        taken = self.data[self.at : self.at + count]
        if len(taken) < count:
            raise _TooShort
        self.at += count
        return taken

    def integer(self) -> int:
        return _read_integer(self.take(5), 0)

    def text(self) -> bytes | None:
        length = self.integer()
        return None if length < 0 else self.take(length)


def _header(cursor: _Cursor) -> _Header:
    magic, version = cursor.take(len(MAGIC)), cursor.take(3)
    if magic != MAGIC:
        raise Corrupt("it does not begin as a dump of pg_dump's custom format does")
    known = (version[0], version[1])
    if not OLDEST <= known <= NEWEST:
        raise Unsupported(
            f"the dump is of archive version {known[0]}.{known[1]}, known are {OLDEST[0]}.{OLDEST[1]} to "
            f"{NEWEST[0]}.{NEWEST[1]}",
            hint="use a release of resilience that knows this version",
        )
    if tuple(cursor.take(3)) != (_INTEGER.size - 1, _OFFSET.size - 1, _CUSTOM):
        raise Corrupt("the dump's header says that it is of another format or machine")
    compression = cursor.take(1)[0] if known >= (1, 15) else cursor.integer()
    if compression:
        raise Unsupported("the dump was compressed by pg_dump, which this library never asks for")
    for _ in range(7):
        cursor.integer()
    for _ in range(3):
        cursor.text()
    entries = cursor.integer()
    return _Header(raw=cursor.data[: cursor.at], version=known, entries=entries)


def _entry(cursor: _Cursor, version: tuple[int, int]) -> Entry:
    return Entry(
        id=cursor.integer(),
        has_data=cursor.integer() != 0,
        table_oid=cursor.text(),
        oid=cursor.text(),
        tag=cursor.text(),
        kind=cursor.text(),
        section=cursor.integer(),
        definition=cursor.text(),
        drop=cursor.text(),
        copy=cursor.text(),
        namespace=cursor.text(),
        tablespace=cursor.text(),
        access_method=cursor.text(),
        relation_kind=cursor.integer() if version >= (1, 16) else None,
        owner=cursor.text(),
        with_oids=cursor.text(),
        dependencies=tuple(iter(cursor.text, None)),
        offset=_OFFSET.unpack(cursor.take(_OFFSET.size)),
    )


def _written(entry: Entry) -> bytes:
    """Write an entry as pg_dump does, all but its offset."""
    texts = [entry.definition, entry.drop, entry.copy, entry.namespace, entry.tablespace, entry.access_method]
    pieces = [
        _integer(entry.id),
        _integer(entry.has_data),
        *map(_text, (entry.table_oid, entry.oid, entry.tag, entry.kind)),
        _integer(entry.section),
        *map(_text, texts),
        b"" if entry.relation_kind is None else _integer(entry.relation_kind),
        *map(_text, (entry.owner, entry.with_oids, *entry.dependencies, None)),
    ]
    return b"".join(pieces)


_INTEGER = struct.Struct("<BI")
_OFFSET = struct.Struct("<BQ")


def _read_integer(data: bytes, at: int) -> int:
    negative: int
    size: int
    negative, size = _INTEGER.unpack_from(data, at)
    return -size if negative else size


def _integer(value: int) -> bytes:
    return _INTEGER.pack(value < 0, abs(value))


def _text(text: bytes | None) -> bytes:
    return _integer(-1) if text is None else _integer(len(text)) + text
