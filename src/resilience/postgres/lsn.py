"""LSNs and timelines as positions (PostgreSQL 8.20, pg_lsn)."""

from __future__ import annotations

import re

from resilience.model.json import Offset
from resilience.model.positions import Position

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")


def parse_lsn(text: str) -> int:
    """Read `16/B374D848` as a number of bytes. Raises ValueError."""
    match = _LSN.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no LSN: one looks like 16/B374D848")
    return int(match[1], 16) << 32 | int(match[2], 16)


def format_lsn(offset: int) -> str:
    """Write a number of bytes as PostgreSQL writes an LSN."""
    return f"{offset >> 32:X}/{offset & 0xFFFFFFFF:X}"


def position(timeline: int | str, lsn: int | str) -> Position:
    """Return the position of an LSN on a timeline."""
    offset = parse_lsn(lsn) if isinstance(lsn, str) else lsn
    return Position(branch=str(timeline), offset=Offset(offset), text=format_lsn(offset))
