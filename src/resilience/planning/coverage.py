"""To which moments a log and the backups before it lead, and where it has holes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from attrs import evolve

from resilience.model.findings import Finding
from resilience.model.log import Hole
from resilience.model.manifests import Manifest
from resilience.model.positions import Position, RecoveryPoint
from resilience.model.reports import RestorableRange
from resilience.model.show import as_bytes

from .course import Holdings, settled_at
from .log import Run, Step


def ranges(held: Holdings) -> tuple[RestorableRange, ...]:
    """Return the ranges of every branch in which any moment can be restored, in order."""
    found = []
    for branch in _branches(held):
        widest: dict[Position, RestorableRange] = {}
        for base, steps in _followed(held, branch):
            if steps and steps[-1].run.branch == branch and steps[-1].stretch.size:
                one = _range(held, base, steps)
                known = widest.setdefault(one.ends.position, one)
                if one.begins.position.offset < known.begins.position.offset:
                    widest[one.ends.position] = one
        found += sorted(widest.values(), key=lambda each: each.begins.position.offset)
    return tuple(found)


def holes(held: Holdings) -> tuple[Hole, ...]:
    """Return the holes that are met on the way from any backup, those between runs, and acknowledged losses."""
    view = held.view
    met = [Hole(begins=gap.begins, ends=gap.ends) for gap in view.facts.gaps]
    for branch in _branches(held):
        path = view.path(branch)
        for base, steps in _followed(held, branch):
            hole = view.hole(path, steps[-1].ends if steps else base.recovery_point.position)
            met += [hole] if hole is not None else []
        for one, other in pairwise(view.of(branch)):
            behind, before = one.complete_at(), other.entries[0].latest
            met.append(Hole(begins=one.ends, ends=other.begins, after=behind, before=before))
    widest: list[Hole] = []
    for hole in sorted(met, key=lambda each: (each.begins.offset, -each.size, each.after is None)):
        if not any(_within(hole, each) for each in widest):
            reason = view.reason(hole.begins, hole.ends, {hole.begins.branch, hole.branch})
            widest.append(evolve(hole, lineage=view.facts.lineage, reason=reason))
    return tuple(sorted(widest, key=lambda hole: (len(hole.branch), hole.branch, hole.begins.offset)))


def unusable(held: Holdings, found: Sequence[RestorableRange]) -> tuple[Finding, ...]:
    """Say which runs of the log no backup leads to, if these are the ranges; it matters most for the newest."""
    used = {(each.branch, each.ends.position.offset) for each in found}
    findings: list[Finding] = []
    for branch in held.view.names:
        recorded = held.view.branch(branch)
        fork = recorded.forked_at.offset if recorded is not None and recorded.forked_at is not None else -1
        findings += [
            _useless(held, run, newest=run is held.view.of(branch)[-1])
            for run in held.view.of(branch)
            if (branch, run.ends.offset) not in used and run.ends.offset > fork
        ]
    return tuple(findings)


def _range(held: Holdings, base: Manifest, steps: list[Step]) -> RestorableRange:
    """Return what one backup leads to on the branch of the last step."""
    last = steps[-1]
    entered = next(step for step in steps if step.leg == last.leg)
    begins = entered.stretch.begins
    time, left = None, None
    if begins.offset == base.recovery_point.position.offset and begins.branch == base.recovery_point.position.branch:
        time = settled_at(base)
    elif (recorded := held.view.branch(last.run.branch)) is not None:
        left = recorded.forked_at
    return RestorableRange(
        lineage=held.view.facts.lineage,
        begins=RecoveryPoint(position=begins, time=time),
        ends=RecoveryPoint(position=last.ends, time=last.complete_at),
        left=left,
    )


def _useless(held: Holdings, run: Run, *, newest: bool) -> Finding:
    points = [each.recovery_point.position for each in held.backups]
    overtaken = any(point.branch == run.branch and point.offset >= run.ends.offset for point in points)
    return Finding(
        severity="warning" if newest and not overtaken else "note",
        subject=held.target,
        text=f"the log from {run.begins.text} to {run.ends} ({as_bytes(run.size)}) is of no use: no backup leads to it",
        hint="take a backup now" if newest and not overtaken else "",
    )


def _branches(held: Holdings) -> list[str]:
    names = {*held.view.names, *(each.recovery_point.position.branch for each in held.backups)}
    return sorted(names, key=lambda name: (len(name), name))


def _followed(held: Holdings, branch: str) -> list[tuple[Manifest, list[Step]]]:
    path = held.view.path(branch)
    return [(base, held.view.follow(path, base.recovery_point.position)) for base in held.on(path)]


def _within(one: Hole, other: Hole) -> bool:
    return (
        one.branch == other.branch and other.begins.offset <= one.begins.offset and one.ends.offset <= other.ends.offset
    )
