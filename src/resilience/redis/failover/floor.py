"""How long an election takes at least, by the Sentinels' settings and how they are built (sentinel.c). Pure."""

from __future__ import annotations

from collections.abc import Sequence

from resilience.model.failover import PhaseFloor
from resilience.model.show import as_span

from .group import Seen
from .sentinels import Council

PROMOTE_SECONDS = 0.005
FOLLOW_SECONDS = 0.01
LOOK_SECONDS = 1.0
"""A Sentinel asks a replica that it has promoted what it is once a second (sentinel.c)."""


def floor(seen: Sequence[Seen], council: Council) -> tuple[PhaseFloor, ...]:
    """Return the floors of detection, promotion and reconnection."""
    known = council.settings
    if not council.elects or known is None:
        text = "REPLICAOF NO ONE by hand: no majority of Sentinels answers"
        return (PhaseFloor(phase="promotion", seconds=PROMOTE_SECONDS, why=text),)
    down = known.number("down-after-milliseconds") / 1000
    replicas = sum(1 for each in seen if each.look and not each.look.master)
    parallel = max(1, known.number("parallel-syncs"))
    rounds = -(-max(0, replicas - 1) // parallel)
    timeout = as_span(known.number("failover-timeout") / 1000)
    return (
        PhaseFloor(
            phase="detection",
            seconds=down,
            why=f"down-after-milliseconds is {down * 1000:.0f}; a failover that is ordered does not wait for that",
        ),
        PhaseFloor(
            phase="promotion",
            seconds=PROMOTE_SECONDS,
            why=f"an election and REPLICAOF NO ONE; up to {as_span(2 * LOOK_SECONDS)} more until the Sentinels say so, "
            f"and a new attempt only after failover-timeout, {timeout}",
        ),
        PhaseFloor(
            phase="reconnect",
            seconds=FOLLOW_SECONDS * rounds,
            why=f"{max(0, replicas - 1)} replicas follow, {parallel} at a time (parallel-syncs), each stale meanwhile",
        ),
    )
