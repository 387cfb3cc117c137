"""Which backups bring a target back, and whether the destination can take them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import reduce

from resilience.model.errors import DestinationNotEmpty, DiskTooSmall, NoBackup, NotRecoverable, Refused
from resilience.model.facts import DestinationFacts
from resilience.model.findings import Finding
from resilience.model.manifests import Manifest
from resilience.model.measured import RestoreMeasured
from resilience.model.plans import RestorePlan
from resilience.model.rehydration import Rehydration
from resilience.model.show import as_bytes
from resilience.model.targets import RecoveryTarget

from .backup import refuse_blockers
from .chains import broken_chains, chain_of
from .course import Course
from .estimate import estimated


def newer(a: Manifest, b: Manifest) -> Manifest:
    """Return the one that brings back the later state; `b` where nothing tells them apart.

    On one branch of one history the position says so: the clocks of the hosts that take backups may disagree. Positions
    of different histories or branches cannot be compared, there the clock has to do.
    """
    here, there = a.recovery_point.position, b.recovery_point.position
    if (a.lineage, here.branch) == (b.lineage, there.branch) and here.offset != there.offset:
        return a if here.offset > there.offset else b
    return a if a.ended_at > b.ended_at else b


def choose(
    manifests: Sequence[Manifest], *, target: str, system: str, accepts: Sequence[str], backup: str | None = None
) -> Manifest:
    """Choose the newest backup that the destination accepts, or the one named. Raises NoBackup."""
    if not manifests:
        raise NoBackup("the archive holds no backup of it", operation="restore", subject=target)
    if backup is not None:
        named = [manifest for manifest in manifests if manifest.id == backup]
        if not named:
            raise NoBackup(
                f"there is no backup {backup}",
                operation="restore",
                subject=target,
                hint=f"the newest is {reduce(newer, manifests).id}",
            )
        manifests = named
    fitting = [manifest for manifest in manifests if manifest.system == system and manifest.kind in accepts]
    if not fitting:
        kinds = ", ".join(sorted({f"{manifest.system} {manifest.kind}" for manifest in manifests}))
        raise NoBackup(
            f"the archive holds only {kinds}, the destination takes {system} {' or '.join(accepts)}",
            operation="restore",
            subject=target,
            hint="restore into a destination for that kind",
        )
    return reduce(newer, fitting)


def alone(
    until: RecoveryTarget, known: Sequence[Manifest], *, target: str, system: str, accepts: Sequence[str]
) -> Course:
    """Choose a backup that is restored by itself: the one that was named, or the newest whose chain is whole.

    Raises NoBackup, or NotRecoverable where only a log could lead to the target.
    """
    named = until.base if until.kind == "backup" else None
    newest = choose(known, target=target, system=system, accepts=accepts, backup=named)
    if until.kind not in ("backup", "latest"):
        raise NotRecoverable(
            f"{until} needs a log to be replayed, and there is none for it here: backups bring back single moments",
            operation="restore",
            subject=target,
            hint=_neighbours(until, [each for each in known if each.kind in accepts]),
        )
    fitting = [each for each in known if each.system == system and each.kind in accepts]
    if until.branch is not None:
        fitting = [each for each in fitting if each.recovery_point.position.branch == until.branch]
        if not fitting:
            raise NotRecoverable(f"no backup lies on timeline {until.branch}", operation="restore", subject=target)
        newest = reduce(newer, fitting)
    try:
        return Course(until=until, chain=chain_of(newest, known))
    except NotRecoverable:
        why = broken_chains(known)  # all at once: looking for the newest whole one in turn takes the square of it
        whole = [each for each in fitting if each.id not in why]
        if until.kind == "backup" or not whole:
            raise
    newest = reduce(newer, whole)
    passed = [each for each in fitting if each.id in why and newer(newest, each) is each]
    findings = [
        Finding(severity="warning", subject=each.id, text=f"not usable: {why[each.id]}") for each in reversed(passed)
    ]
    return Course(until=until, chain=chain_of(newest, known), findings=tuple(findings))


def lineage_for(until: RecoveryTarget, known: Sequence[Manifest], logs: Sequence[str]) -> tuple[str, list[Finding]]:
    """Choose the lineage that a target lies in, and say which others there are.

    It is that of the named base, of the newest backup before a moment, or else of the newest backup.
    """
    before = [each for each in known if until.moment is not None and each.ended_at <= until.moment]
    named = [each for each in known if until.base is not None and each.id == until.base]
    chosen = max(named or before or known, key=lambda each: each.ended_at).lineage
    others = sorted({*logs, *(each.lineage for each in known)} - {chosen})
    text = f"the archive holds several histories under this name; this is {chosen}, not {', '.join(others)}"
    finding = Finding(severity="warning", subject=chosen, text=text, hint="give every server a target name of its own")
    return chosen, [finding] if others else []


def refuse_destination(facts: DestinationFacts, *, target: str) -> None:
    """Raise DestinationNotEmpty, DiskTooSmall or Refused if a destination cannot take what it was surveyed for."""
    if not facts.empty:
        raise DestinationNotEmpty(
            f"{facts.destination} is not empty",
            operation="restore",
            subject=target,
            hint=next((f.hint for f in facts.findings if f.hint), "choose an empty place or empty this one yourself"),
        )
    refuse_blockers(facts.findings, operation="restore", subject=target)
    if facts.needed is not None and facts.free is not None and facts.needed > facts.free:
        raise DiskTooSmall(
            f"{facts.destination} has {as_bytes(facts.free)} free and needs {as_bytes(facts.needed)}",
            operation="restore",
            subject=target,
            hint="make room or choose another place",
        )


def plan_restore(
    chain: Sequence[Manifest],
    facts: DestinationFacts,
    *,
    course: Course | None = None,
    shown: Sequence[RestoreMeasured] = (),
    rto: timedelta | None = None,
    waiting: Rehydration | None = None,
) -> RestorePlan:
    """Plan to restore a chain, oldest first, alone or on the course that was decided on.

    `shown` is what earlier restores have measured, `waiting` what has to be rehydrated first. Raises
    DestinationNotEmpty, DiskTooSmall or Refused.
    """
    target = chain[-1].target
    refuse_destination(facts, target=target)
    if len({manifest.lineage for manifest in chain}) > 1:
        raise Refused("the backups of the chain belong to different lineages", operation="restore", subject=target)
    course = course or Course(until=RecoveryTarget.backup(chain[-1].id), chain=tuple(chain))
    estimate = estimated(chain, course.replayed, shown=shown, rto=rto, waiting=waiting)
    return RestorePlan(
        target=target,
        destination=facts.destination,
        chain=tuple(manifest.id for manifest in chain),
        until=course.until,
        replay=course.replay,
        to_the_end=course.to_the_end,
        read=sum(manifest.stored for manifest in chain),
        written=sum(manifest.size for manifest in chain),
        replayed=course.replayed,
        rehydration=waiting if waiting is not None and waiting.objects else None,
        seconds=estimate.seconds,
        arithmetic=estimate.arithmetic,
        findings=(*course.findings, *facts.findings, *estimate.findings),
    )


def _neighbours(until: RecoveryTarget, known: Sequence[Manifest]) -> str:
    """Say which backups lie before and after a target."""
    moment = until.moment
    before = [each for each in known if moment is not None and each.ended_at <= moment]
    after = [each for each in known if moment is not None and each.ended_at > moment]
    said = (
        [f"the last one before it is {reduce(newer, before).id}, {reduce(newer, before).recovery_point}"]
        if before
        else []
    )
    if after:
        first = min(after, key=lambda each: each.ended_at)
        said.append(f"the first one after it is {first.id}, {first.recovery_point}")
    said = said or [f"the newest is {reduce(newer, known).id}, {reduce(newer, known).recovery_point}"]
    return f"{'; '.join(said)}: ask for one with RecoveryTarget.backup(id)"
