"""Walks the commands of an append-only file to its end, as a server that loads it would (src/aof.c).

A command is `*N` and N strings, each `$LENGTH` and so many bytes; lines that begin with `#` are remarks. What is
between MULTI and EXEC counts whole or not at all.
"""

from __future__ import annotations

from typing import NoReturn

from attrs import define, field

from resilience.model.errors import Corrupt, Unsupported

_LINE = 1 << 16
_KEPT = 1 << 20
"""Bytes: a longer string is passed over in pieces as it comes."""


@define
class AofWalker:
    """Fed with the pieces of a file of commands; `feed` and `close` raise Corrupt at the first thing that is wrong.

    `whole` is where the last whole command or transaction ended.
    """

    commands: int = field(default=0, init=False)
    size: int = field(default=0, init=False)
    whole: int = field(default=0, init=False)
    _rest: bytes = field(default=b"", init=False)
    _left: int = field(default=0, init=False)  # strings of the command that are still to come
    _skip: int = field(default=0, init=False)  # bytes of a long string that are still to come
    _ending: bool = field(default=False, init=False)  # whether the end of a long string is to come
    _alone: bool = field(default=False, init=False)  # whether the command has one word only
    _multi: bool = field(default=False, init=False)

    def feed(self, piece: bytes) -> None:
        """Take the next piece. Raises Unsupported for what was taken over from Redis 6: an RDB, commands behind it."""
        if not self.size and piece.startswith((b"REDIS", b"VALKEY")):
            hint = "BGREWRITEAOF on the server once; or verify it with a scratch server"
            raise Unsupported("it was taken over from Redis 6: an RDB with commands behind it", hint=hint)
        if self._skip >= len(piece):
            self._skip -= len(piece)
            self.size += len(piece)
            return
        data, at = self._rest + piece, self._skip
        self.size += len(piece)
        self._skip = 0
        while (after := self._step(data, at)) is not None:
            at = after
        if at > len(data):
            self._skip, at = at - len(data), len(data)
        self._rest = data[at:]

    def close(self) -> None:
        """Look whether it ends with a whole command, and with a whole transaction."""
        if self._rest or self._left or self._skip or self._ending:
            self._broken("it ends in the middle of a command", 0)
        if self._multi:
            self._broken("it ends in the middle of a transaction", 0)

    def _step(self, data: bytes, at: int) -> int | None:
        """Pass over one line or one string; None if more has to come first."""
        if self._ending and len(data) >= at + 2:
            self._end_string(data, at)
            return at + 2
        ends = -1 if self._ending else data.find(b"\r\n", at, at + _LINE)
        if ends < 0:
            if len(data) - at >= _LINE:
                self._broken("there is no command", len(data) - at)
            return None
        if self._left:
            return self._string(data, at, ends)
        if data[at : at + 1] != b"#":
            self._left = self._number(data, at, ends, b"*")
            self._alone = self._left == 1
            if not self._left:
                self._broken("a command has no words", len(data) - at)
        elif not self._multi:
            self.whole = self.size - len(data) + ends + 2
        return ends + 2

    def _string(self, data: bytes, at: int, ends: int) -> int | None:
        length = self._number(data, at, ends, b"$")
        begins, behind = ends + 2, ends + 2 + length
        if behind + 2 > len(data):
            if length <= _KEPT:
                return None
            self._ending = True
            return behind
        if self._alone:
            self._transaction(data[begins:behind])
        self._end_string(data, behind)
        return behind + 2

    def _end_string(self, data: bytes, at: int) -> None:
        """Look at the end of a string, and of its command if it was the last one."""
        if data[at : at + 2] != b"\r\n":
            self._broken("a string does not end where it should", len(data) - at)
        self._ending = False
        self._left -= 1
        if not self._left:
            self.commands += 1
            if not self._multi:
                self.whole = self.size - len(data) + at + 2

    def _transaction(self, word: bytes) -> None:
        word = word.lower()
        if word == b"multi":
            self._multi = True
        elif word == b"exec":
            self._multi = False

    def _number(self, data: bytes, at: int, ends: int, mark: bytes) -> int:
        digits = data[at + 1 : ends]
        if data[at : at + 1] != mark or not digits.isdigit() or len(digits) > 10:
            self._broken(f"{data[at : min(ends, at + 40)]!r} stands where a command goes on", len(data) - at)
        return int(digits)

    def _broken(self, text: str, behind: int) -> NoReturn:
        raise Corrupt(f"the append-only file is damaged at byte {self.size - behind}: {text}")
