"""Which backups bring a target back, and whether the destination can take them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from resilience.model.errors import DestinationNotEmpty, DiskTooSmall, NoBackup, Refused
from resilience.model.facts import DestinationFacts
from resilience.model.manifests import Manifest
from resilience.model.plans import RestorePlan
from resilience.model.show import as_bytes

from .backup import refuse_blockers


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


def plan_restore(chain: Sequence[Manifest], facts: DestinationFacts) -> RestorePlan:
    """Plan to restore a chain, oldest first. Raises DestinationNotEmpty, DiskTooSmall or Refused."""
    target = chain[-1].target
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
    if len({manifest.lineage for manifest in chain}) > 1:
        raise Refused("the backups of the chain belong to different lineages", operation="restore", subject=target)
    return RestorePlan(
        target=target,
        destination=facts.destination,
        chain=tuple(manifest.id for manifest in chain),
        read=sum(manifest.stored for manifest in chain),
        written=sum(manifest.size for manifest in chain),
        findings=facts.findings,
    )
