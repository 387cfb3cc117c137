"""restore(): bring a target back to life."""

from __future__ import annotations

import time
from typing import TypeVar

from resilience.model.events import Notifier, Observer
from resilience.model.reports import RestoreReport
from resilience.planning.restore import choose, plan_restore
from resilience.primitives import Archiver, RestoreDestination

from .observed import ObservedBackup

Live = TypeVar("Live")


async def restore(
    archive: Archiver,
    target: str,
    *,
    into: RestoreDestination[Live],
    backup: str | None = None,
    observer: Observer | None = None,
) -> RestoreReport:
    """Restore the newest backup of `target` (or the one whose id is `backup`) into a destination.

    The newest is the one that reaches furthest; the hosts' clocks decide only where positions cannot be compared.

    The destination must be empty and becomes startable last: if this raises or is cancelled, it cannot start, and
    `into.discard()` removes what is there. The position in the report was read back from the restored system; the time
    beside it too if the system knows one, or else it is the manifest's. `observer` is told the plain bytes restored so
    far and their total.

    Raises Refused (NoBackup, DestinationNotEmpty, DiskTooSmall: nothing was touched), Corrupt (the archive is damaged),
    Unavailable (store or destination failed), Unsupported (the destination's programs do not fit the backup).
    """
    began = time.monotonic()
    told = Notifier("restore", target, observer)
    with told.outcome():
        known = [manifest async for manifest in archive.manifests(target)]
        manifest = choose(known, target=target, system=into.system, accepts=into.accepts, backup=backup)
        facts = await into.survey([manifest])

        plan = plan_restore([manifest], facts)

        told.total = manifest.size
        async with archive.open(manifest) as stored:
            restored = await into.apply(plan, chain=[ObservedBackup(stored, told)])
    return RestoreReport(
        manifest=manifest,
        destination=into.name,
        reached=restored.reached,
        seconds=time.monotonic() - began,
        findings=plan.findings + restored.findings,
    )
