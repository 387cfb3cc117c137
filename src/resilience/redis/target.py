"""RedisTarget: a snapshot of all that a server holds, over the network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from attrs import define, field, frozen
from attrs.converters import optional

from resilience.concurrency import in_background
from resilience.model.capture import Captured, Part
from resilience.model.diagnosis import Checkup
from resilience.model.errors import Corrupt, NotIncremental
from resilience.model.facts import TargetFacts
from resilience.model.findings import Finding
from resilience.model.ids import checked_name
from resilience.model.json import Json
from resilience.model.moments import utc_now
from resilience.model.objectives import Objective
from resilience.model.plans import BackupPlan
from resilience.model.positions import RecoveryPoint
from resilience.primitives import StoredBackup

from . import survey
from .client import Url, parse_redis_url
from .saving import SavedRdb
from .stream import RdbStream

CHUNKS_AHEAD = 4
PART = "dump.rdb"


@frozen
class RedisTarget:
    """A Redis (6 and newer) or Valkey server, master or replica, whose data is backed up as one RDB.

    It is read as a replica reads it: the server forks, and its child sends what it holds; its disk is not needed. The
    user needs `+info +psync +replconf`, and on 6.0 `+time` for the time of the snapshot. A replica's snapshot has none:
    it may lag, and does not know by how much.

    With `repl-diskless-sync` on, the default from Redis 7 on, a server waits `repl-diskless-sync-delay` (5 s) for other
    replicas to come before it begins. `disk=True` has it begin at once, and write the RDB to its own disk first.

    With `file`, the path under which this machine reaches what the server saves, it is told to save (`+bgsave` instead
    of `+psync +replconf`), and what it then proves to have saved is read from there.

    Redis gives a data set no identity that lasts: the replication id changes with a failover, a restart or an hour
    without replicas. So the lineage is the target's name, and the replication id the branch.
    """

    system: ClassVar[str] = survey.SYSTEM
    kind: ClassVar[str] = "rdb"

    name: str = field(converter=checked_name)
    url: Url = field(converter=parse_redis_url, kw_only=True)
    disk: bool = field(default=False, kw_only=True)
    file: Path | None = field(default=None, converter=optional(Path), kw_only=True)
    clock: Callable[[], datetime] = field(default=utc_now, kw_only=True, repr=False)

    async def survey(self) -> TargetFacts:
        """Look at the server: version, role, keys, what stands in the way. Writes nothing."""
        return await survey.survey(self.url, target=self.name, kind=self.kind, lineage=self.name)

    async def diagnose(self, objective: Objective) -> Checkup:
        """Examine the server against the reference and an objective; see `doctor()`. Writes nothing."""
        from .health.doctor import diagnose  # a backup does not wait for what examines

        return await diagnose(self.url, objective, target=self.name, clock=self.clock)

    @asynccontextmanager
    async def capture(self, plan: BackupPlan, *, parent: StoredBackup | None = None) -> AsyncIterator[RdbCapture]:
        """Begin a snapshot; on leaving the connection is closed, and the server ends the child that sends it."""
        if parent is not None:
            raise NotIncremental("an RDB holds all there is", operation="backup", subject=plan.target)
        stream: RdbStream | SavedRdb = RdbStream(self.url, self.disk, _version(plan))
        if self.file is not None:
            stream = SavedRdb(self.url, self.file)
            await stream.save()
        try:
            async with in_background(_steps(stream), ahead=CHUNKS_AHEAD, stop=stream.stop) as items:
                await anext(items)
                yield RdbCapture(stream=stream, details=plan.details, items=items)
        finally:
            stream.close()


def _version(plan: BackupPlan) -> str:
    """Return a Valkey's own version; a Redis asks nobody for his."""
    return str(plan.details.get("version", "")) if plan.details.get("product") == "valkey" else ""


def _steps(stream: RdbStream | SavedRdb) -> Iterator[bytes]:
    """Read an RDB, pausing once (nothing) when the server is about to send it."""
    stream.start()
    yield b""
    yield from stream.chunks()


@define(kw_only=True)
class RdbCapture:
    """An RDB being read; see `primitives.Capture`."""

    stream: RdbStream | SavedRdb
    details: Mapping[str, Json]
    items: AsyncIterator[bytes]

    @property
    def size(self) -> int | None:
        """How many bytes the server sends; None while it makes them up as it goes."""
        return self.stream.size

    async def parts(self) -> AsyncIterator[Part]:
        """Yield the RDB."""
        yield Part(name=PART, chunks=self.items)

    async def finish(self) -> Captured:
        """Say what was read. Its checksum has been compared when its last bytes came."""
        stream = self.stream
        if stream.position is None or stream.header is None:
            raise Corrupt("nothing was read", operation="backup", subject=stream.url.where)
        return Captured(
            begins=stream.position,
            recovery_point=RecoveryPoint(position=stream.position, time=stream.taken),
            details={**self.details, "rdb_version": stream.header.version, "checksum": stream.checked},
            findings=tuple(_findings(stream)),
        )


def _findings(stream: RdbStream | SavedRdb) -> Iterator[Finding]:
    if not stream.master:
        yield survey.timeless(stream.url.where)
    if not stream.checked:
        text = "the RDB has no checksum, so nobody can tell whether it came as it was sent"
        yield Finding(severity="warning", subject=stream.url.where, text=text, hint="set rdbchecksum yes and restart")
