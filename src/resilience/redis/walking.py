"""Walks an RDB to its end, key by key, as a server that loads it would (src/rdb.h and rdb.c of Redis 8.2 and Valkey 9).

What a value holds is passed over by its length; of the encodings that are one string (listpacks and their like) the
bytes are covered by the checksum. The value of a module can be passed over too: each piece of it says what it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from typing import NoReturn

from attrs import define, field

from resilience.model.errors import Corrupt, Unsupported

from .rdb import AUX, END, Checksum, read_magic

_AHEAD = 32
"""Bytes: no step needs more than so many to know how far it goes."""
_MODULE_AUX, _IDLE, _FREQ, _RESIZE, _MS, _SECONDS, _SELECT = 0xF7, 0xF8, 0xF9, 0xFB, 0xFC, 0xFD, 0xFE
_OPCODES = {AUX: "ss", 0xF4: "lll", 0xF5: "s", _IDLE: "l", _FREQ: "1", _RESIZE: "ll", _MS: "8", _SECONDS: "4"}
"""What follows an opcode: s(tring), l(ength), d(ouble as text), or so many bytes."""

_NAMES = {
    "string": (0,),
    "list": (1, 10, 14, 18),
    "set": (2, 11, 20),
    "sorted set": (3, 5, 12, 17),
    "hash": (4, 9, 13, 16, 22, 23, 24, 25),
    "stream": (15, 19, 21),
    "module": (7,),
}
TYPES = {number: name for name, numbers in _NAMES.items() for number in numbers}
_ONE_STRING = frozenset((0, 9, 10, 11, 12, 13, 16, 17, 20, 23))
_ELEMENTS = {1: "s", 2: "s", 3: "sd", 4: "ss", 5: "s8", 14: "s", 18: "ls", 22: "lss", 24: "lss"}
"""Values that are a number of elements, and what each is."""
_VALKEY_ELEMENTS = {**_ELEMENTS, 22: "ss8"}
_EARLIEST_EXPIRY = (24, 25)
_MODULE = {1: "l", 2: "l", 3: "4", 4: "8", 5: "s"}
_WIDTHS = {"1": 1, "4": 4, "8": 8, "i": 16}
_ENCODED = {0: 2, 1: 3, 2: 5}

Steps = Generator[None, None, None]
Number = Generator[None, None, int]


@define
class RdbWalker:
    """Fed with the pieces of an RDB; `keys` are counted by database and `types` by kind, `expiring` those with a time.

    `feed` and `close` raise Corrupt at the first thing that is wrong, Unsupported if it is of an unknown kind.
    """

    keys: Counter[int] = field(factory=Counter, init=False)
    types: Counter[str] = field(factory=Counter, init=False)
    expiring: int = field(default=0, init=False)
    version: int = field(default=0, init=False)
    checked: bool = field(default=False, init=False)
    _checksum: Checksum = field(factory=Checksum, init=False)
    _data: bytes = field(default=b"", init=False)
    _at: int = field(default=0, init=False)
    _passed: int = field(default=0, init=False)
    _database: int = field(default=0, init=False)
    _elements: dict[int, str] = field(factory=lambda: _ELEMENTS, init=False)
    _closed: bool = field(default=False, init=False)
    _ended: bool = field(default=False, init=False)
    _steps: Steps = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._steps = self._walk()

    def feed(self, piece: bytes) -> None:
        """Walk over the next piece."""
        self._checksum.update(piece)
        if self._at >= len(self._data):
            self._at -= len(self._data)
            self._passed += len(self._data)
            self._data = piece
        else:
            self._passed += self._at
            self._data = self._data[self._at :] + piece
            self._at = 0
        if self._at + _AHEAD <= len(self._data):
            self._go_on()

    def close(self) -> None:
        """Walk to the end, and look at the checksum."""
        self._closed = True
        self._go_on()
        self.checked = self._checksum.verify()

    @property
    def size(self) -> int:
        """How many bytes it has been fed with."""
        return self._checksum.size

    def _go_on(self) -> None:
        if self._ended:
            self._wrong("it goes on after its end")
        try:
            next(self._steps)
        except StopIteration:
            self._ended = True
            if not self._closed and self._at + 8 < len(self._data):
                self._wrong("it goes on after its end")
        except IndexError:
            self._wrong("it ends in the middle")

    def _walk(self) -> Steps:
        """Walk over everything; yields when it wants more, and ends behind the end mark."""
        yield from self._ahead()
        self.version, self._at = read_magic(self._data)
        if self._data.startswith(b"VALKEY"):
            self._elements = _VALKEY_ELEMENTS
        while True:
            if self._at + _AHEAD > len(self._data):
                yield from self._ahead()
            code = self._data[self._at]
            self._at += 1
            if code == END:
                break
            if code in _OPCODES:
                yield from self._some(1, _OPCODES[code])
                self.expiring += code in (_MS, _SECONDS)
            elif code == _SELECT:
                self._database = yield from self._length()
            elif code == _MODULE_AUX:
                yield from self._some(1, "lll")
                yield from self._module()
            else:
                yield from self._key(code)
        if self._closed and len(self._data) - self._at != 8:
            self._wrong("it does not end with its checksum")

    def _key(self, kind: int) -> Steps:
        """Walk over one key and its value."""
        name = TYPES.get(kind)
        if name is None:
            raise Unsupported(f"the RDB holds a value of the unknown kind {kind}, {self._place}")
        self.keys[self._database] += 1
        self.types[name] += 1
        if kind in _ONE_STRING:
            yield from self._some(1, "ss")
            return
        yield from self._some(1, "s8" if kind in _EARLIEST_EXPIRY else "s")
        if kind == 25:
            yield from self._some(1, "s")
        elif kind == 7:
            yield from self._some(1, "l")
            yield from self._module()
        elif kind in self._elements:
            yield from self._some((yield from self._length()), self._elements[kind])
        else:
            yield from self._stream(kind)

    def _module(self) -> Steps:
        """Walk over what a module has written, piece by piece."""
        while piece := (yield from self._length()):
            if piece not in _MODULE:
                self._wrong(f"a module's value has a piece of the unknown kind {piece}")
            yield from self._some(1, _MODULE[piece])

    def _stream(self, kind: int) -> Steps:
        """Walk over a stream: its nodes, its ids, its groups with their consumers and what these were given."""
        second, third = kind in (19, 21), kind == 21
        yield from self._some((yield from self._length()), "ss")
        yield from self._some(1, "llllllll" if second else "lll")
        for _ in range((yield from self._length())):
            yield from self._some(1, "slll" if second else "sll")
            yield from self._some((yield from self._length()), "i8l")
            for _consumer in range((yield from self._length())):
                yield from self._some(1, "s88" if third else "s8")
                yield from self._some((yield from self._length()), "i")

    def _some(self, count: int, pattern: str) -> Steps:
        """Walk over so many times what a pattern says."""
        data, at = self._data, self._at
        for _ in range(count):
            for each in pattern:
                if at + _AHEAD > len(data):
                    self._at = at
                    yield from self._ahead()
                    data, at = self._data, self._at
                if each == "s":
                    at = _after_string(data, at)
                elif each == "l":
                    _, at = _read_length(data, at)
                elif each == "d":
                    at += 1 + (data[at] if data[at] < 253 else 0)
                else:
                    at += _WIDTHS[each]
        self._at = at

    def _length(self) -> Number:
        if self._at + _AHEAD > len(self._data):
            yield from self._ahead()
        number, self._at = _read_length(self._data, self._at)
        return number

    def _ahead(self) -> Steps:
        """Wait for what the next step may need, unless there is no more."""
        while self._at + _AHEAD > len(self._data) and not self._closed:
            yield
        if self._at >= len(self._data):
            self._wrong("it ends in the middle")

    @property
    def _place(self) -> str:
        return f"at byte {self._passed + self._at}"

    def _wrong(self, what: str) -> NoReturn:
        raise Corrupt(f"the RDB is damaged: {what}, {self._place}")


def _read_length(data: bytes, at: int) -> tuple[int, int]:
    """Read a length, and where it ends."""
    first = data[at]
    kind = first >> 6
    if kind == 0:
        return first, at + 1
    if kind == 1:
        return (first & 0x3F) << 8 | data[at + 1], at + 2
    if first == 0x80:
        return int.from_bytes(data[at + 1 : at + 5], "big"), at + 5
    if first == 0x81:
        return int.from_bytes(data[at + 1 : at + 9], "big"), at + 9
    raise Corrupt(f"the RDB is damaged: {first:#x} is no length")


def _after_string(data: bytes, at: int) -> int:
    """Return where a string ends; that may be behind the end of the data."""
    first = data[at]
    if first < 0xC0:
        length, at = _read_length(data, at)
        return at + length
    encoding = first & 0x3F
    if encoding in _ENCODED:
        return at + _ENCODED[encoding]
    if encoding == 3:  # compressed: how long it is, how long it was
        length, at = _read_length(data, at + 1)
        _, at = _read_length(data, at)
        return at + length
    raise Corrupt(f"the RDB is damaged: {first:#x} begins no string")
