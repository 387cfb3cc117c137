"""What an archive keeps of a restore: who asked for it and why, and what was measured, or how it failed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime

from attrs import evolve, frozen

from resilience.concurrency import finish
from resilience.model.errors import NoBackup, ResilienceError
from resilience.model.measured import RestoreMeasured
from resilience.model.reports import RestoreReport
from resilience.primitives import Archiver

RECORD_SECONDS = 10.0
"""How long the archive may take to keep it."""


@frozen(kw_only=True)
class Recorded:
    """The record of one restore; `new_id` makes its name of the moment that `clock` tells."""

    archive: Archiver
    target: str
    system: str
    destination: str
    until: str
    actor: str
    reason: str
    clock: Callable[[], datetime]
    new_id: Callable[[datetime], str]

    @asynccontextmanager
    async def failing(self) -> AsyncIterator[None]:
        """Keep how it failed, if it does; of a target that the archive does not know it has nothing to keep."""
        try:
            yield
        except NoBackup:
            raise
        except asyncio.CancelledError:
            await self._keep(evolve(self._nothing(), outcome="cancelled"))
            raise
        except BaseException as error:
            said = str(error) if isinstance(error, ResilienceError) else type(error).__name__
            await self._keep(evolve(self._nothing(), outcome="failed", error=said))
            raise

    async def keep(self, report: RestoreReport) -> None:
        """Keep what was measured."""
        measured = evolve(
            self._nothing(),
            unpacked=report.written,
            unpack_seconds=report.unpack_seconds,
            replayed=report.replayed,
            replay_seconds=report.replay_seconds,
            backup=report.manifest.id,
        )
        await self._keep(measured)

    def _nothing(self) -> RestoreMeasured:
        now = self.clock()
        return RestoreMeasured(
            id=self.new_id(now),
            target=self.target,
            system=self.system,
            destination=self.destination,
            ended_at=now,
            unpacked=0,
            unpack_seconds=0.0,
            until=self.until,
            actor=self.actor,
            reason=self.reason,
        )

    async def _keep(self, record: RestoreMeasured) -> None:
        """Write it, if that can be: a restore from an archive that may only be read is as good."""
        try:
            await finish(asyncio.wait_for(self.archive.remember(record), RECORD_SECONDS))
        except (ResilienceError, OSError) as error:
            logging.getLogger("resilience").warning("the record of the restore was not kept in the archive: %s", error)
