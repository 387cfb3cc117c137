"""How PostgreSQL names its WAL (30.6, WAL Internals): segments, timeline histories and what else it archives. Pure."""

from __future__ import annotations

import re
from typing import Literal

from attrs import frozen

from resilience.model.errors import Corrupt
from resilience.model.log import Branch
from resilience.postgres.lsn import parse_lsn, position

Kind = Literal["segment", "history", "other"]
_SEGMENT = re.compile("([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})")
_HISTORY = re.compile(r"([0-9A-F]{8})\.history")
_OTHER = re.compile(r"[0-9A-F]{24}\.(partial|[0-9A-F]{8}\.backup)")
SEGMENT_SIZES = tuple(1 << power for power in range(20, 31))


@frozen
class WalName:
    """The name of something that PostgreSQL archives. `begins` is where a segment begins, None for everything else."""

    text: str
    kind: Kind
    timeline: int
    begins: int | None = None

    @classmethod
    def parse(cls, text: str, *, segment_size: int) -> WalName:
        """Read a name. Raises ValueError if PostgreSQL gives no such names, or not with segments of this size."""
        if match := _SEGMENT.fullmatch(text):
            timeline, high, low = (int(digits, 16) for digits in match.groups())
            if low >= (1 << 32) // segment_size:
                raise ValueError(f"{text!r} names no segment of {segment_size} bytes")
            return cls(text, "segment", timeline, (high << 32) + low * segment_size)
        if match := _HISTORY.fullmatch(text):
            return cls(text, "history", int(match[1], 16))
        if _OTHER.fullmatch(text):
            return cls(text, "other", int(text[:8], 16))
        raise ValueError(f"{text!r} is no name that PostgreSQL archives anything under")


def segment_name(timeline: int | str, offset: int, segment_size: int) -> str:
    """Return the name of the segment that holds an offset."""
    high, low = divmod(offset // segment_size, (1 << 32) // segment_size)
    return f"{int(timeline):08X}{high:08X}{low:08X}"


def history_name(timeline: int | str) -> str:
    """Return the name of a timeline's history file."""
    return f"{int(timeline):08X}.history"


def parse_history(timeline: int | str, text: str) -> Branch:
    """Read a timeline history file (26.3.6; written as: parent, where it was left, why). Raises Corrupt."""
    last = None
    for line in text.splitlines():
        words = line.split("#", 1)[0].split()
        if words:
            last = words
    try:
        if last is None:
            raise ValueError("it names no parent")
        parent, left = int(last[0]), parse_lsn(last[1])
    except (ValueError, IndexError) as error:
        raise Corrupt(f"the history of timeline {timeline} cannot be read: {error}", operation="archive") from error
    return Branch(name=str(int(timeline)), parent=str(parent), forked_at=position(parent, left), text=text)
