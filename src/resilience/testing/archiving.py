"""Backups of no system, written to an archive and read back; and what a suite has to be told of an archiver."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pytest

from resilience.model.capture import Captured, Part
from resilience.model.json import Offset
from resilience.model.manifests import Manifest
from resilience.model.plans import BackupPlan
from resilience.model.positions import Position, RecoveryPoint
from resilience.primitives import Archiver, StoredBackup

from .stores import content

MOMENT = datetime(2026, 11, 21, 20, 30, tzinfo=UTC)
HERE = Position(branch="1", offset=Offset(1 << 60), text="1000000000000000")
CAPTURED = Captured(begins=HERE, recovery_point=RecoveryPoint(position=HERE, time=MOMENT), details={"some": ["detail"]})
PARTS = {"one": content(5000), "two.tar": content(3001, 2), "empty": b""}


def plan(number: int = 1, *, target: str = "orders") -> BackupPlan:
    """Plan the backup of that number; later numbers are planned a minute later each."""
    made_at = MOMENT + timedelta(minutes=number)
    return BackupPlan(
        id=f"{made_at:%Y%m%dT%H%M%S}.000Z-{number:06x}",
        target=target,
        system="memory",
        kind="base",
        lineage="7400000000000000001",
        made_at=made_at,
    )


async def write(archive: Archiver, of: BackupPlan, parts: Mapping[str, bytes] = PARTS) -> Manifest:
    """Write and publish a backup."""
    async with archive.draft(of) as draft:
        for name, data in parts.items():
            await draft.store(Part(name=name, chunks=slowly(data)))
        return await draft.publish(CAPTURED)


async def listed(archive: Archiver, target: str = "orders") -> list[str]:
    """Return the ids of the backups there are."""
    return [manifest.id async for manifest in archive.manifests(target)]


async def read(backup: StoredBackup, part: str) -> bytes:
    """Read a part at once."""
    async with backup.read(part) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def read_all(archive: Archiver, manifest: Manifest) -> dict[str, bytes]:
    """Read all parts of a backup at once."""
    async with archive.open(manifest) as backup:
        return {part.name: await read(backup, part.name) for part in manifest.parts}


async def slowly(data: bytes, size: int = 700) -> AsyncGenerator[bytes]:
    """Yield data in pieces, over time."""
    for start in range(0, len(data), size):
        await asyncio.sleep(0)
        yield data[start : start + size]


class ArchiverHooks:
    """What a suite asks of whoever subclasses it.

    `archive` is empty, and cuts a part of some thousand bytes into several objects. `cancel_step` skips await points
    where cancelling at each of them takes too long.
    """

    cancel_step: ClassVar[int] = 1

    @pytest.fixture
    def archive(self) -> Archiver:
        """Make an empty archive."""
        raise NotImplementedError("override the fixture `archive`")

    def again(self, archive: Archiver) -> Archiver:
        """Return another handle to the same backups; the same handle where there can be no other."""
        return archive

    async def outcome(self, archive: Archiver, of: BackupPlan) -> str | None:
        """Say how the attempt ended according to its run record: `running` before that, None without a record."""
        raise NotImplementedError("override `outcome`")

    async def remains(self, archive: Archiver, of: BackupPlan) -> int:
        """Count the stored objects that belong to a backup, its manifest included, records of what happened not."""
        raise NotImplementedError("override `remains`")

    async def damage(self, archive: Archiver, manifest: Manifest, part: str) -> str:
        """Change a byte in the last object of a part, and return what an error has to name."""
        raise NotImplementedError("override `damage`")

    async def spoil(self, archive: Archiver, manifest: Manifest) -> None:
        """Change a byte of a manifest, so that it cannot be used any more."""
        raise NotImplementedError("override `spoil`")
