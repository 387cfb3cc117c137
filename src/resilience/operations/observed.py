"""Counts the bytes that pass and tells an observer."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from attrs import define, field, frozen

from resilience.concurrency import closing
from resilience.model.events import Notifier
from resilience.model.findings import Examined, Level
from resilience.model.manifests import Manifest
from resilience.model.plans import RestorePlan
from resilience.model.positions import RecoveryPoint
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


@define
class Replaying:
    """Tells an observer how far a replay has come, in bytes of the log and as a share of what was planned."""

    told: Notifier
    plan: RestorePlan
    _began: float | None = field(default=None, init=False)
    _done: int = field(default=0, init=False)

    def __call__(self, point: RecoveryPoint) -> None:
        """See `primitives.Reached`."""
        if self._began is None:
            self._began = time.monotonic()
        done = max(self._done, self.replayed(point))
        expected = max(self.plan.replayed, done)
        self.told.total = None if self.told.total is None else max(self.told.total, self.plan.written + expected)
        share = f", {done / expected:.0%}" if expected else ""
        self.told.advance(done - self._done, f"replayed to {point}{share}")
        self._done = done

    def seconds(self, ended: float) -> float:
        """Return how long it replayed, from the first position that was told to a reading of time.monotonic()."""
        return 0.0 if self._began is None or not self.plan.replay else ended - self._began

    def replayed(self, point: RecoveryPoint) -> int:
        """Return how many bytes of the log lie before a position."""
        return max(0, point.position.offset - self.plan.replay[0].begins.offset) if self.plan.replay else 0
