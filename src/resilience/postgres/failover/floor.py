"""How long promotion and reconnection take at least, by what the members say. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from resilience.model.failover import PhaseFloor
from resilience.model.show import as_bytes

from .group import Seen

PROMOTE_SECONDS = 0.05
"""What a standby needs that has replayed everything: a few syncs (measured on PostgreSQL 15 to 18)."""
FOLLOW_SECONDS = 0.02
CONNECT_SECONDS = 0.01
REPLAY_BYTES_A_SECOND = 100 << 20
"""Replay is one process; few disks and loads let it be faster than this."""


def floor(seen: Sequence[Seen]) -> tuple[PhaseFloor, ...]:
    """Return the floors of promotion and reconnection."""
    behind = [each.look.durable - each.look.applied for each in seen if each.look and each.look.standby]
    backlog = max(0, min(behind, default=0))
    why = "a standby ends its recovery"
    if backlog:
        why += f", after it has replayed {as_bytes(backlog)} that it has received"
    reconnect, waits = CONNECT_SECONDS, "clients connect anew"
    if any(each.look and not each.look.standby and each.look.sync.needed for each in seen):
        reconnect += FOLLOW_SECONDS
        waits += ", and commits wait until a standby follows the new primary"
    return (
        PhaseFloor(phase="promotion", seconds=PROMOTE_SECONDS + backlog / REPLAY_BYTES_A_SECOND, why=why),
        PhaseFloor(phase="reconnect", seconds=reconnect, why=waits),
    )
