"""Counts the bytes that pass and tells an observer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from attrs import frozen

from resilience.concurrency import closing
from resilience.model.events import Notifier
from resilience.model.findings import Examined, Level
from resilience.model.manifests import Manifest
from resilience.primitives import StoredBackup


async def counted(chunks: AsyncIterator[bytes], told: Notifier) -> AsyncIterator[bytes]:
    """Pass chunks on and tell how many bytes have passed."""
    async with closing(chunks) as pieces:
        async for piece in pieces:
            yield piece
            told.advance(len(piece))


@frozen
class ObservedBackup:
    """A StoredBackup whose reading is told to an observer."""

    backup: StoredBackup
    told: Notifier

    @property
    def manifest(self) -> Manifest:
        """The manifest of the backup."""
        return self.backup.manifest

    @asynccontextmanager
    async def read(self, part: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Read a part; see `StoredBackup.read`."""
        async with self.backup.read(part) as chunks, closing(counted(chunks, self.told)) as counting:
            yield counting

    async def examine(self, level: Level) -> AsyncIterator[Examined]:
        """Look at every object; see `StoredBackup.examine`."""
        async with closing(self.backup.examine(level)) as objects:
            async for examined in objects:
                self.told.advance(examined.bytes)
                yield examined
