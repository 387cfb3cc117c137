"""How a server that does not run has ended, and where, by its pg_control and its WAL (pg_controldata, pg_waldump)."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from attrs import frozen

from resilience.model.errors import Corrupt
from resilience.model.positions import Position
from resilience.postgres.lsn import parse_lsn, position
from resilience.postgres.untar import PG_CONTROL

from .server import LocalServer

_AFTER = re.compile(r"in WAL record at ([0-9A-F]+/[0-9A-F]+): .* at ([0-9A-F]+/[0-9A-F]+)")
_RECORD = re.compile(r"lsn: ([0-9A-F]+/[0-9A-F]+)")
_TORN = re.compile(r"in WAL record at ([0-9A-F]+/[0-9A-F]+)")


# ControlFileData begins the same way from 13 to 18: system identifier, two versions, state, time, where the last
# checkpoint is, where its redo begins, its timeline (src/include/catalog/pg_control.h).
_BEGINS = struct.Struct("=QIIi4xqQQI")
_STATES = (
    "starting up",
    "shut down",
    "shut down in recovery",
    "shutting down",
    "in crash recovery",
    "in archive recovery",
    "in production",
)


def ended(data: Path) -> tuple[str, Position]:
    """Return how a server ended and where its last checkpoint is: a glance, where no program can be waited for."""
    try:
        _, _, _, state, _, checkpoint, _, timeline = _BEGINS.unpack_from((data / PG_CONTROL).read_bytes())
        return _STATES[state], position(timeline, checkpoint)
    except (OSError, struct.error, IndexError) as error:
        raise Corrupt("its pg_control cannot be read", operation="look", subject=str(data)) from error


@frozen(kw_only=True)
class Control:
    """What pg_control says. `checkpoint` is where the last one lies, `redo` where recovery would begin."""

    state: str
    lineage: str
    timeline: int
    checkpoint: Position
    redo: str
    rewindable: bool

    @classmethod
    async def read(cls, server: LocalServer) -> Control:
        """Read it. Raises Unsupported, Corrupt."""
        found = await server.control()
        try:
            timeline = int(found["Latest checkpoint's TimeLineID"])
            return cls(
                state=found["Database cluster state"],
                lineage=found["Database system identifier"],
                timeline=timeline,
                checkpoint=position(timeline, found["Latest checkpoint location"]),
                redo=found["Latest checkpoint's REDO location"],
                rewindable=found["wal_log_hints setting"] == "on" or found["Data page checksum version"] != "0",
            )
        except (KeyError, ValueError) as error:
            raise Corrupt("its pg_control cannot be read", operation="look", subject=str(server.data)) from error


async def wal_end(server: LocalServer, control: Control) -> int | None:
    """Return where the WAL of a server that does not run ends on its timeline; None if nobody can tell."""
    arguments = ["-p", str(server.data / "pg_wal"), "-t", str(control.timeline), "-s", control.redo, "-q"]
    async with server.tools.start("pg_waldump", arguments, account=server.account) as running:
        await running.wait()
        said = running.said
    if found := _AFTER.search(said):
        return parse_lsn(found[2])
    return parse_lsn(torn[1]) if (torn := _TORN.search(said)) else None
