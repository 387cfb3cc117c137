"""coverage(): from when to when can a target be restored, on which timelines, and where are the holes?"""

from __future__ import annotations

from resilience.model.findings import Doubt, Finding
from resilience.model.log import Branch, Hole
from resilience.model.manifests import Manifest
from resilience.model.reports import Coverage, RestorableMoment, RestorableRange
from resilience.planning.chains import REPLAYABLE
from resilience.planning.course import holdings
from resilience.planning.coverage import holes, ranges, unusable
from resilience.planning.doubts import as_findings
from resilience.primitives import Archiver

from .looking import Heads, listed


async def coverage(archive: Archiver, target: str) -> Coverage:
    """Return every moment that the archive can bring `target` back to, oldest first; nothing is written.

    Reads the manifests, the names of the log's entries, and the heads of those at which something begins or ends.
    A backup whose manifest cannot be read or trusted is a finding, and so is an entry whose head is damaged: its times
    are not known. Raises ManifestInvalid, ChecksumMismatch or Unsupported if anything else cannot be read, Unavailable
    if the store does not answer.
    """
    doubts: list[Doubt] = []
    known = [manifest async for manifest in archive.manifests(target, doubts=doubts)]
    found: list[RestorableRange] = []
    missing: list[Hole] = []
    branches: list[Branch] = []
    findings: list[Finding] = list(as_findings(doubts))
    for lineage in await archive.lineages(target):
        if not known:
            text = f"the archive holds a log of {lineage}, and no backup that it could be replayed on"
            findings.append(Finding(severity="warning", subject=target, text=text, hint="take a backup now"))
            continue
        async with archive.log(target, system=known[-1].system, lineage=lineage) as log:
            heads = Heads(log)
            view = await listed(log, await log.survey(), heads)
        held = holdings(target, known, view, kinds=REPLAYABLE)
        found += ranges(held)
        missing += holes(held)
        branches += view.facts.branches
        findings += [*held.broken, *unusable(held), *heads.findings]
    return Coverage(
        target=target,
        moments=tuple(_moment(manifest) for manifest in known),
        ranges=tuple(found),
        holes=tuple(missing),
        branches=tuple(branches),
        findings=tuple(findings),
    )


def _moment(manifest: Manifest) -> RestorableMoment:
    return RestorableMoment(
        backup=manifest.id,
        kind=manifest.kind,
        lineage=manifest.lineage,
        point=manifest.recovery_point,
        taken_at=manifest.started_at,
    )
