"""coverage(): from when to when can a target be restored, on which timelines, and where are the holes?"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from resilience.concurrency import let_go, pondered
from resilience.model.findings import Doubt, Finding
from resilience.model.log import Branch, Hole
from resilience.model.manifests import Manifest
from resilience.model.reports import Coverage, RestorableMoment, RestorableRange
from resilience.planning.chains import REPLAYABLE
from resilience.planning.course import holdings
from resilience.planning.coverage import holes, ranges, unusable
from resilience.planning.doubts import as_findings
from resilience.planning.log import LogView
from resilience.primitives import Archiver, Log

from .looking import Heads, known_backups, listed


async def coverage(archive: Archiver, target: str) -> Coverage:
    """Return every moment that the archive can bring `target` back to, oldest first; nothing is written.

    Reads the manifests, the names of the log's entries, and the heads of those at which something begins or ends.
    A backup whose manifest cannot be read or trusted is a finding, and so is an entry whose head is damaged: its times
    are not known. Raises ManifestInvalid, ChecksumMismatch or Unsupported if anything else cannot be read, Unavailable
    if the store does not answer.
    """
    doubts: list[Doubt] = []
    async with known_backups(archive, target, doubts) as known:
        logs: list[_Covered] = []
        findings: list[Finding] = list(as_findings(doubts))
        for lineage in await archive.lineages(target):
            if not known:
                text = f"the archive holds a log of {lineage}, and no backup that it could be replayed on"
                findings.append(Finding(severity="warning", subject=target, text=text, hint="take a backup now"))
                continue
            async with archive.log(target, system=known[-1].system, lineage=lineage) as log:
                logs.append(await _covered(log, target, known))
        moments = await pondered(lambda: tuple(map(_moment, known)))
    return Coverage(
        target=target,
        moments=moments,
        ranges=tuple(each for log in logs for each in log.ranges),
        holes=tuple(each for log in logs for each in log.holes),
        branches=tuple(each for log in logs for each in log.branches),
        findings=(*findings, *(each for log in logs for each in log.findings)),
    )


@frozen
class _Covered:
    """What one lineage's log and the backups before it lead to."""

    ranges: tuple[RestorableRange, ...]
    holes: tuple[Hole, ...]
    branches: tuple[Branch, ...]
    findings: tuple[Finding, ...]


async def _covered(log: Log, target: str, known: Sequence[Manifest]) -> _Covered:
    heads = Heads(log)
    view = await listed(log, await log.survey(), heads)
    # Of a hundred thousand backups that takes seconds: the event loop does not wait for it.
    covered = await pondered(_judged, target, known, view, heads)
    entries = [entry for name in view.names for run in view.of(name) for entry in run.entries]
    del view
    await let_go(entries)
    return covered


def _judged(target: str, known: Sequence[Manifest], view: LogView, heads: Heads) -> _Covered:
    held = holdings(target, known, view, kinds=REPLAYABLE)
    found = ranges(held)
    findings = (*held.broken, *unusable(held, found), *heads.findings)
    return _Covered(found, holes(held), view.facts.branches, findings)


def _moment(manifest: Manifest) -> RestorableMoment:
    return RestorableMoment(
        backup=manifest.id,
        kind=manifest.kind,
        lineage=manifest.lineage,
        point=manifest.recovery_point,
        taken_at=manifest.started_at,
    )
