"""plan_restore(): what a restore would do, how long it would take, or why it cannot be done. Nothing is touched."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TypeVar

from resilience.model.plans import RestorePlan
from resilience.model.targets import RecoveryTarget
from resilience.planning import restore as planning
from resilience.primitives import Archiver, RestoreDestination

from .looking import decided, shown_by_restores
from .rehydrate import needed

Live = TypeVar("Live")


async def plan_restore(
    archive: Archiver,
    target: str,
    *,
    into: RestoreDestination[Live],
    until: datetime | RecoveryTarget | None = None,
    rto: timedelta | None = None,
) -> RestorePlan:
    """Return what `restore` with the same arguments would do: backups, log, bytes, time and how that was estimated.

    The time is estimated from what restores of this target have measured, and compared with `rto` if that is given.
    What lies in the Archive tier is waited for first: the plan says how long, and `rehydrate` begins it.
    Nothing is written. Raises what stands in the way, as `restore` does before it touches anything: NotRecoverable with
    the reason, NoBackup, DestinationNotEmpty, DiskTooSmall, Refused, Unsupported, ManifestInvalid, Unavailable.
    """
    async with decided(archive, target, into=into, until=RecoveryTarget.of(until)) as found:
        chain = found.course.chain
        facts = await into.survey(chain)
        return planning.plan_restore(
            chain,
            facts,
            course=found.course,
            shown=await shown_by_restores(archive, target),
            rto=rto,
            waiting=await needed(archive, found),
        )
