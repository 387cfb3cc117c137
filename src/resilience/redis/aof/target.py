"""RedisAofTarget: the append-only file of a server whose disk we can read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from attrs import define, field, frozen
from attrs.converters import optional

from resilience.concurrency import in_background, in_thread
from resilience.model.capture import Captured, Part
from resilience.model.diagnosis import Checkup
from resilience.model.errors import NotIncremental, Refused
from resilience.model.facts import TargetFacts
from resilience.model.ids import checked_name
from resilience.model.json import Json
from resilience.model.moments import utc_now
from resilience.model.objectives import Objective
from resilience.model.plans import BackupPlan
from resilience.model.positions import RecoveryPoint
from resilience.primitives import StoredBackup
from resilience.redis.client import Url, commands, parse_redis_url
from resilience.redis.rdb import HEAD, Checksum, Header, at, read_header
from resilience.redis.survey import SYSTEM, timeless

from .holding import PATIENCE, Held, Holding, Moment, hold
from .listing import write_listing
from .surveying import find, survey

AOF = "aof"
LISTING = "manifest"
"""The part that names the others, in order: the manifest of the append-only file."""
_CHUNKS_AHEAD = 4


@frozen
class RedisAofTarget:
    """A Redis (7 and newer) or Valkey server whose append-only file is backed up: base, increments and manifest.

    It has to run where the server's files can be read: on its machine or with its volume, as its account or as root.
    `folder` is where the append-only file is (`appendonlydir`); without it the server is asked. The user needs `+info`,
    and `+config|get` to ask. Nothing of the server is changed, no setting either: a rewrite may run, begin and end at
    any time. See `holding`.

    Before it begins it waits, `patience` seconds at most, while the server writes its first append-only file, has a
    rewrite scheduled, or holds writes back because its disk is slow.
    """

    system: ClassVar[str] = SYSTEM
    kind: ClassVar[str] = AOF

    name: str = field(converter=checked_name)
    url: Url = field(converter=parse_redis_url, kw_only=True)
    folder: Path | None = field(default=None, converter=optional(Path), kw_only=True)
    patience: float = field(default=PATIENCE, kw_only=True)
    clock: Callable[[], datetime] = field(default=utc_now, kw_only=True, repr=False)

    async def survey(self) -> TargetFacts:
        """Look at the server and whether its append-only file can be read from here. Writes nothing."""
        return await survey(self.url, self.folder, target=self.name, kind=self.kind)

    async def diagnose(self, objective: Objective) -> Checkup:
        """Examine the server against the reference and an objective; see `doctor()`. Writes nothing."""
        from resilience.redis.health.doctor import diagnose  # a backup does not wait for what examines

        return await diagnose(self.url, objective, target=self.name, clock=self.clock)

    @asynccontextmanager
    async def capture(self, plan: BackupPlan, *, parent: StoredBackup | None = None) -> AsyncIterator[AofCapture]:
        """Hold the files open; let go of on leaving. See `hold` for what it raises."""
        if parent is not None:
            raise NotIncremental("an append-only file holds all there is", operation="backup", subject=plan.target)
        async with commands(self.url, operation="backup") as client:
            found = await find(client, self.url, self.folder)
            if not isinstance(found, Holding):
                raise Refused(found.text, operation="backup", subject=self.url.where, hint=found.hint)
            try:
                moment = await hold(found, client, self.url, patience=self.patience)
                yield AofCapture(url=self.url, holding=found, moment=moment, details=plan.details)
            finally:
                await in_thread(found.close)


@define(kw_only=True)
class AofCapture:
    """An append-only file being read; see `primitives.Capture`."""

    url: Url
    holding: Holding
    moment: Moment
    details: Mapping[str, Json]
    _base: Header | None = field(default=None, init=False)

    @property
    def size(self) -> int | None:
        """How many bytes there are."""
        return self.holding.size

    async def parts(self) -> AsyncIterator[Part]:
        """Yield each file under its own name, the base first, then a manifest that names them."""
        for held in self.holding.files:
            yield Part(name=held.file.name, chunks=self._rdb(held) if held.file.rdb else _read(held))
        yield Part(name=LISTING, chunks=_once(write_listing(each.file for each in self.holding.files)))

    async def finish(self) -> Captured:
        """Say what was read: everything up to the moment, and maybe what came shortly after."""
        info = self.moment.info
        position = at(info.text("master_replid"), info.number("master_repl_offset"))
        # What a replica has executed was acknowledged to somebody at a time that it does not know.
        time = self.moment.time if info.master else None
        return Captured(
            begins=position,
            recovery_point=RecoveryPoint(position=position, time=time),
            details={
                **self.details,
                "rdb_version": self._base.version if self._base is not None else None,
                "files": {each.file.name: each.size for each in self.holding.files},
            },
            findings=() if info.master else (timeless(self.url.where),),
        )

    async def _rdb(self, held: Held) -> AsyncIterator[bytes]:
        """Yield a base's bytes; they only count if its checksum is right. Raises Corrupt."""
        checksum = Checksum()
        async with _reading(held) as chunks:
            async for chunk in chunks:
                self._base = self._base or read_header(chunk[:HEAD])
                await in_thread(checksum.update, chunk)
                yield chunk
        checksum.verify()


@asynccontextmanager
async def _reading(held: Held) -> AsyncIterator[AsyncIterator[bytes]]:
    async with in_background(held.chunks("backup"), ahead=_CHUNKS_AHEAD, stop=lambda: None) as chunks:
        yield chunks


async def _read(held: Held) -> AsyncIterator[bytes]:
    """Yield a file's bytes."""
    async with _reading(held) as chunks:
        async for chunk in chunks:
            yield chunk


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
