"""Where WAL ends: what follows the last record that was replayed. Pure.

A record begins with its length, four bytes at a multiple of eight. Every page begins with a header of 24 bytes, the
first one of a segment with one of 40, which also says how large pages are (PostgreSQL's access/xlogrecord.h and
access/xlog_internal.h). A page that goes on with a record tells how many bytes of it are still to come.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Literal

from attrs import frozen

_SHORT, _LONG = 24, 40
_PAGE_SIZE = struct.Struct("<36xI")
_LENGTH = struct.Struct("<I")
_STILL_TO_COME = 16

Rest = Literal["nothing", "part of a record", "a record"]


@frozen(kw_only=True)
class WalEnd:
    """A log that ends at `ends`, with segments of `segment_size` bytes."""

    ends: int
    segment_size: int

    def after(self, lsn: int, segment: Sequence[bytes]) -> Rest:
        """Tell what follows `lsn`, where recovery stopped, in the segment that holds it.

        Zeros and a length that leads out of the log are its end only where it can end: not with segments behind them.
        """
        (page_size,) = _PAGE_SIZE.unpack(_slice(segment, 0, _PAGE_SIZE.size))
        at = self._past_header(lsn, page_size)
        if at >= self.ends:
            return "nothing"
        behind = self.ends - (at - at % self.segment_size + self.segment_size)
        length = self._number(segment, at)
        if not length:
            return "nothing" if behind <= 0 else "a record"
        if self._end_of(at, length, page_size) <= self.ends:
            return "a record"
        page = at - at % page_size + page_size
        if behind <= 0:
            return "part of a record"
        if page % self.segment_size:
            goes_on = self._number(segment, page + _STILL_TO_COME) == length - (page - at)
        else:  # the next page is in the next segment: then the log can well end there, but hardly further on
            goes_on = behind <= self.segment_size
        return "part of a record" if goes_on else "a record"

    def _number(self, segment: Sequence[bytes], at: int) -> int:
        offset = at % self.segment_size
        (number,) = _LENGTH.unpack(_slice(segment, offset, offset + _LENGTH.size))
        return int(number)

    def _past_header(self, lsn: int, page_size: int) -> int:
        if lsn % page_size:
            return lsn
        return lsn + (_SHORT if lsn % self.segment_size else _LONG)

    def _end_of(self, at: int, length: int, page_size: int) -> int:
        """Return where a record of that length ends, past the headers of the pages it goes over."""
        while (room := page_size - at % page_size) < length:
            length -= room
            at = self._past_header(at + room, page_size)
        return at + length


def _slice(pieces: Sequence[bytes], begins: int, ends: int) -> bytes:
    found, at = b"", 0
    for piece in pieces:
        found += piece[max(0, begins - at) : max(0, ends - at)]
        at += len(piece)
    return found
