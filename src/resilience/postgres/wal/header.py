"""What a cluster and its WAL say about themselves: pg_control, and the header that a segment begins with. Pure.

The layouts are those of PostgreSQL 15 to 18 on little-endian machines: ControlFileData in catalog/pg_control.h, and
XLogLongPageHeaderData in access/xlog_internal.h.
"""

from __future__ import annotations

import struct

from attrs import frozen

from resilience.model.errors import Corrupt, Unsupported

from .names import SEGMENT_SIZES

PG_CONTROL = "global/pg_control"
_STATE, _TIMELINE, _ALIGNMENT, _SEGMENT_SIZE = 16, 48, 204, 228
_CONTROL_LENGTH = _SEGMENT_SIZE + 4
_ALIGNED = struct.pack("<Id", 8, 1234567.0)  # how the server marks the layout itself
_IN_RECOVERY = (2, 5)
_LONG_HEADER = struct.Struct("<HHIQI4xQII")
_IS_LONG = 0x0002
_MAGIC = 0xD1


@frozen(kw_only=True)
class Control:
    """A cluster, as its pg_control describes it; `timeline` is that of the last checkpoint."""

    lineage: str
    segment_size: int
    timeline: int
    in_recovery: bool


@frozen(kw_only=True)
class SegmentHeader:
    """What a segment says of itself; `begins` is its LSN. Its timeline may be the parent's, of which it has a copy."""

    lineage: str
    segment_size: int
    timeline: int
    begins: int


def read_control(data: bytes) -> Control:
    """Read a pg_control file. Raises Unsupported if its layout is not known."""
    if len(data) < _CONTROL_LENGTH or data[_ALIGNMENT : _ALIGNMENT + len(_ALIGNED)] != _ALIGNED:
        raise Unsupported("it is laid out otherwise than PostgreSQL 15 to 18 do", operation="read", subject=PG_CONTROL)
    (lineage,) = struct.unpack_from("<Q", data)
    (state,) = struct.unpack_from("<i", data, _STATE)
    (timeline,) = struct.unpack_from("<I", data, _TIMELINE)
    (size,) = struct.unpack_from("<I", data, _SEGMENT_SIZE)
    if size not in SEGMENT_SIZES:
        raise Unsupported(f"it speaks of segments of {size} bytes", operation="read", subject=PG_CONTROL)
    return Control(lineage=str(lineage), segment_size=size, timeline=timeline, in_recovery=state in _IN_RECOVERY)


def read_header(data: bytes | memoryview) -> SegmentHeader:
    """Read the header of a segment. Raises Corrupt if it does not begin with one."""
    if len(data) < _LONG_HEADER.size:
        raise Corrupt("it is too short for a segment of WAL")
    magic, info, timeline, begins, _, lineage, size, _ = _LONG_HEADER.unpack_from(data)
    if magic >> 8 != _MAGIC or not info & _IS_LONG:
        raise Corrupt("it does not begin like a segment of WAL")
    return SegmentHeader(lineage=str(lineage), segment_size=size, timeline=timeline, begins=begins)
