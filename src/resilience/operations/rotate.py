"""rotate(): wrap what a target's data is sealed with by a new key too, and rewrite nothing."""

from __future__ import annotations

import time

from resilience.concurrency import closing
from resilience.model.events import Notifier, Observer
from resilience.model.findings import Finding, blocker
from resilience.model.keys import RotationReport
from resilience.primitives import Archiver


async def rotate(
    archive: Archiver, target: str, *, actor: str = "", reason: str = "", observer: Observer | None = None
) -> RotationReport:
    """Wrap every data key of `target` with the archive's key too, so that its older ones are not needed any more.

    First give every writer of the target the new key and the old one: `Archive(store, key=new, older=[old])`; what one
    without it seals meanwhile only the old one opens. Then rotate, with an archive opened in the same way. Only objects
    are added, one a data key; the data stays as it is. It may be killed or cancelled anywhere and repeated; until it
    has ended and the report says `complete`, the old key is needed. Each data key that was wrapped before is proven to
    open. Keep the old key all the same where copies of the archive are that have not seen the new one.

    A data key that cannot be opened, or whose new wrapping is damaged, is a blocker in the report, and the others are
    wrapped all the same. `observer` is told `actor`, `reason` and how many data keys are done. Raises KeyMissing if the
    archive has no key, Unavailable or Refused if its store or its keys cannot be used.
    """
    began = time.monotonic()
    told = Notifier("rotate", target, observer, actor=actor, reason=reason)
    added = there = 0
    findings: list[Finding] = []
    with told.outcome():
        async with closing(archive.rewrap(target)) as rewrapped:
            async for each in rewrapped:
                if each.problem:
                    finding = blocker(each.subject, each.problem, each.hint)
                    findings.append(finding)
                else:
                    added, there = added + each.added, there + (not each.added)
                told.tell("progress", each.name)
    return RotationReport(
        target=target,
        added=added,
        there=there,
        seconds=time.monotonic() - began,
        actor=actor,
        reason=reason,
        findings=tuple(findings),
    )
