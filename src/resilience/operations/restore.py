"""restore(): bring a target back to life, as it was at a moment of your choice."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from typing import TypeVar

from attrs import evolve

from resilience.model.errors import Interrupted
from resilience.model.events import Notifier, Observer
from resilience.model.ids import new_id as fresh_id
from resilience.model.moments import utc_now
from resilience.model.positions import RecoveryPoint
from resilience.model.reports import RestoreReport
from resilience.model.targets import RecoveryTarget
from resilience.planning.course import Course
from resilience.planning.restore import plan_restore
from resilience.primitives import Archiver, RestoreDestination

from .looking import decided
from .observed import ObservedBackup, Replaying
from .recorded import Recorded
from .rehydrate import refuse_offline

Live = TypeVar("Live")


async def restore(
    archive: Archiver,
    target: str,
    *,
    into: RestoreDestination[Live],
    until: datetime | RecoveryTarget | None = None,
    actor: str = "",
    reason: str = "",
    observer: Observer | None = None,
    clock: Callable[[], datetime] = utc_now,
    new_id: Callable[[datetime], str] = fresh_id,
) -> RestoreReport:
    """Restore `target` as it was at `until` into a destination: a moment, a `RecoveryTarget`, or all that there is.

    The newest backup from which the target can be reached is unpacked, with all that it builds on, and the log is
    replayed from there. Without a log, and for destinations that replay none, the latest is the newest backup: the one
    that reaches furthest; the hosts' clocks decide only where positions cannot be compared.

    The destination must be empty and becomes startable last: if this raises or is cancelled, it cannot start (unless it
    was cancelled at the very end: then the restore is complete), and `into.discard()` removes what is there. The
    position in the report was read back from the restored system; the time beside it too if the system knows one, or
    else it is the manifest's. `observer` is told the plain bytes unpacked and replayed so far and about how many there
    will be. What was measured is kept in the archive for the next plan, or why it failed, if its credential may write
    there, together with who asked for it (`actor`) and why (`reason`), as the caller says; events say it too.

    Raises Refused (NotRecoverable with the reason, NoBackup, DestinationNotEmpty, DiskTooSmall, NotRehydrated if some
    of it lies in the Archive tier: nothing was touched),
    Corrupt (the archive is damaged), Unavailable (store or destination failed), Unsupported (the destination's programs
    do not fit the backup), Interrupted (it did not stop where it was asked to).
    """
    began, wanted = time.monotonic(), RecoveryTarget.of(until)
    told = Notifier("restore", target, observer, actor=actor, reason=reason)
    record = Recorded(
        archive=archive,
        target=target,
        system=into.system,
        destination=into.name,
        until=str(wanted),
        actor=actor,
        reason=reason,
        clock=clock,
        new_id=new_id,
    )
    with told.outcome():
        async with record.failing():
            report = await _restored(archive, target, into, wanted, told)
        told.total = told.done
    report = evolve(report, seconds=time.monotonic() - began, actor=actor, reason=reason)
    await record.keep(report)
    return report


async def _restored(
    archive: Archiver, target: str, into: RestoreDestination[Live], until: RecoveryTarget, told: Notifier
) -> RestoreReport:
    async with decided(archive, target, into=into, until=until) as found:
        course = found.course
        await refuse_offline(archive, found, target=target)
        facts = await into.survey(course.chain)

        plan = plan_restore(course.chain, facts, course=course)

        told.total = plan.written + plan.replayed
        replaying = Replaying(told, plan)
        async with _opened(archive, course, told) as chain:
            applied = time.monotonic()
            restored = await into.apply(plan, chain=chain, log=found.log, reached=replaying)
            ended = time.monotonic()

        prove(course, restored.reached)
    replay_seconds = replaying.seconds(ended)
    return RestoreReport(
        manifest=course.chain[-1],
        chain=plan.chain,
        destination=into.name,
        until=until,
        reached=restored.reached,
        written=plan.written,
        replayed=replaying.replayed(restored.reached),
        unpack_seconds=ended - applied - replay_seconds,
        replay_seconds=replay_seconds,
        seconds=ended - applied,
        findings=plan.findings + restored.findings,
    )


@asynccontextmanager
async def _opened(archive: Archiver, course: Course, told: Notifier) -> AsyncIterator[list[ObservedBackup]]:
    """Open the backups of the chain, oldest first; what is read of them is told."""
    async with AsyncExitStack() as opened:
        yield [
            ObservedBackup(await opened.enter_async_context(archive.open(manifest)), told) for manifest in course.chain
        ]


def prove(course: Course, reached: RecoveryPoint) -> None:
    """Compare what was reached with what was asked for. Raises Interrupted if the restore went elsewhere."""
    until, position = course.until, reached.position
    wrong = ""
    if until.moment is not None and course.replay and reached.time is not None and reached.time > until.moment:
        wrong = "it went past that"
    elif until.offset is not None and position.offset < until.offset and not course.to_the_end:
        wrong = "it stopped before that"
    elif course.replay and position.branch not in {stretch.branch for stretch in course.replay}:
        wrong = f"that is not on the way, which ends on timeline {course.branch}"
    elif course.replay and position.offset < course.chain[-1].recovery_point.position.offset:
        wrong = "it did not get as far as the backup itself"
    if wrong:
        raise Interrupted(
            f"asked for {until}, it reached {reached}: {wrong}",
            operation="restore",
            subject=course.chain[-1].target,
            hint="discard what is there and do not use it",
        )
