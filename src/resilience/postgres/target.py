"""PostgresTarget: a physical base backup of a whole cluster, over the network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import ClassVar

from attrs import define, field, frozen

from resilience.concurrency import in_background, in_thread
from resilience.model.capture import Captured, Part
from resilience.model.diagnosis import Checkup
from resilience.model.errors import Corrupt, ManifestInvalid, NotIncremental
from resilience.model.facts import TargetFacts
from resilience.model.findings import Finding
from resilience.model.ids import checked_name
from resilience.model.json import Json
from resilience.model.moments import utc_now
from resilience.model.objectives import Objective
from resilience.model.plans import BackupPlan
from resilience.model.positions import RecoveryPoint
from resilience.primitives import StoredBackup

from . import server_manifest, survey
from .base_backup import BaseBackup, Begin, Parent
from .client import Dsn, parse_dsn, replication

CHUNKS_AHEAD = 4


@frozen
class PostgresTarget:
    """A PostgreSQL server (15 to 18, primary or standby) to be backed up physically, all databases and tablespaces.

    From 17 on, with `summarize_wal` on, `backup(…, incremental=True)` takes only the blocks that have changed.

    The role needs LOGIN and REPLICATION, no more, and pg_hba.conf entries for its own database and for replication.
    The WAL that makes the backup consistent is in it, so it restores alone. Where a page's checksum is wrong the backup
    fails with Corrupt, unless `keep_damaged` asks for the copy as it is; the manifest then says so.
    """

    system: ClassVar[str] = "postgresql"
    kind: ClassVar[str] = "base"

    name: str = field(converter=checked_name)
    dsn: Dsn = field(converter=parse_dsn, kw_only=True)
    keep_damaged: bool = field(default=False, kw_only=True)
    clock: Callable[[], datetime] = field(default=utc_now, kw_only=True, repr=False)

    async def survey(self) -> TargetFacts:
        """Look at the server: versions, lineage, collations, what stands in the way. Writes nothing."""
        return await survey.survey(self.dsn, target=self.name, kind=self.kind)

    async def diagnose(self, objective: Objective) -> Checkup:
        """Examine the server against the reference and an objective; see `doctor()`. Writes nothing."""
        from .health.doctor import diagnose  # a backup does not wait for what examines

        return await diagnose(self.dsn, objective, target=self.name, clock=self.clock)

    @asynccontextmanager
    async def capture(self, plan: BackupPlan, *, parent: StoredBackup | None = None) -> AsyncIterator[BaseCapture]:
        """Begin a backup; the server ends its backup mode and drops the temporary slot on leaving, however.

        Raises NotIncremental, with the server's reason, if it cannot build on `parent`: then it needs a full one.
        """
        since = None if parent is None else await _since(parent, plan)
        async with replication(self.dsn, operation="backup") as connection:
            backup = BaseBackup(
                connection=connection,
                dsn=self.dsn,
                label=f"resilience {plan.id}",
                lineage=plan.lineage,
                clock=self.clock,
                keep_damaged=self.keep_damaged,
                parent=since,
            )
            try:
                async with in_background(_steps(backup), ahead=CHUNKS_AHEAD, stop=backup.stop) as items:
                    await anext(items)
                    yield BaseCapture(backup=backup, details=plan.details, items=items)
            finally:
                backup.close()


async def _since(parent: StoredBackup, plan: BackupPlan) -> Parent:
    """Read what an incremental backup has to know of its parent. Raises NotIncremental if it is of no use."""
    manifest = parent.manifest
    unfit = ""
    if manifest.lineage != plan.lineage:
        unfit = f"it is of lineage {manifest.lineage}, the server of {plan.lineage}"
    elif manifest.details.get("data_checksums") != plan.details.get("data_checksums"):
        # Switching them rewrites every page without a word in the WAL.
        unfit = "data checksums have been switched on or off since then"
    if not unfit:
        try:
            async with parent.read(server_manifest.NAME) as chunks:
                listed = b"".join([chunk async for chunk in chunks])
            return Parent(manifest=listed, branch=manifest.recovery_point.position.branch)
        except Corrupt as error:
            unfit = f"its manifest is damaged: {error}"
    raise NotIncremental(
        f"{manifest.id} cannot be built on: {unfit}", operation="backup", subject=plan.target, hint="take a full backup"
    )


def _steps(backup: BaseBackup) -> Iterator[Begin | bytes | None]:
    """Run a base backup, pausing once (None) when the server has begun it."""
    backup.start()
    yield None
    yield from backup.items()


@define(kw_only=True)
class BaseCapture:
    """A base backup being read; see `primitives.Capture`."""

    backup: BaseBackup
    details: Mapping[str, Json]
    items: AsyncIterator[Begin | bytes | None]
    _next: Begin | None = None

    @property
    def size(self) -> int | None:
        """The server's own estimate, made when the backup began; WAL is not in it. None for an incremental one."""
        return self.backup.size if self.backup.parent is None else None

    async def parts(self) -> AsyncIterator[Part]:
        """Yield one tar a tablespace, the main one last (`base.tar`), then the server's `backup_manifest`."""
        self._next = await self._begin()
        while self._next is not None:
            begun, self._next = self._next, None
            yield Part(name=begun.part, chunks=self._chunks())

    async def finish(self) -> Captured:
        """Check everything that arrived against the server's per-file checksums. Raises Corrupt."""
        backup = self.backup
        await in_thread(backup.verify)
        if backup.begins is None or backup.ends is None:
            raise ManifestInvalid("the server did not say where the backup ends", operation="backup")
        return Captured(
            begins=backup.begins,
            recovery_point=RecoveryPoint(position=backup.ends, time=self._consistent_at()),
            details={
                **self.details,
                "tablespaces": dict(backup.tablespaces),
                "sizes": dict(backup.sizes),
                "damaged": backup.damaged,
            },
            findings=tuple(_findings(backup)),
        )

    def _consistent_at(self) -> datetime | None:
        """A time before which everything committed is in the backup; on a standby, in what it had replayed."""
        if not self.details.get("from_standby"):
            return self.backup.consistent_at
        replayed = self.details.get("replayed_until")
        return datetime.fromisoformat(replayed) if isinstance(replayed, str) else None

    async def _begin(self) -> Begin | None:
        item = await anext(self.items, None)
        if isinstance(item, bytes):
            raise ManifestInvalid("the server sent bytes that belong to no part", operation="backup")
        return item

    async def _chunks(self) -> AsyncIterator[bytes]:
        async for item in self.items:
            if not isinstance(item, bytes):
                self._next = item
                return
            yield item


def _findings(backup: BaseBackup) -> Iterator[Finding]:
    if backup.damaged:
        yield Finding(
            severity="warning",
            subject=backup.dsn.where,
            text=f"the copy holds damaged pages and was kept as asked: {backup.damaged}",
            hint="repair the server; keep an older, undamaged backup",
        )
    for warning in backup.warnings:
        yield Finding(severity="warning", subject=backup.dsn.where, text=warning)
