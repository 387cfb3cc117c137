"""LSNs and timelines as positions (PostgreSQL 8.20, pg_lsn)."""

from __future__ import annotations

from resilience.model.json import Offset
from resilience.model.positions import Position
from resilience.model.targets import parse_lsn

__all__ = ["format_lsn", "parse_lsn", "position"]


def format_lsn(offset: int) -> str:
    """Write a number of bytes as PostgreSQL writes an LSN."""
    return f"{offset >> 32:X}/{offset & 0xFFFFFFFF:X}"


def position(timeline: int | str, lsn: int | str) -> Position:
    """Return the position of an LSN on a timeline."""
    offset = parse_lsn(lsn) if isinstance(lsn, str) else lsn
    return Position(branch=str(timeline), offset=Offset(offset), text=format_lsn(offset))
