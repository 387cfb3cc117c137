"""switchover(): give the role away without losing anything; the signature, until the engine moves in."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from resilience.model.events import Observer
from resilience.model.failover import FailoverPolicy, FailoverReport
from resilience.model.moments import utc_now

from .group import FailoverGroup

NO_LOSS = FailoverPolicy()


async def switchover(
    group: FailoverGroup,
    *,
    to: str | None = None,
    policy: FailoverPolicy = NO_LOSS,
    actor: str = "",
    reason: str = "",
    observer: Observer | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> FailoverReport:
    """Plan a switchover and carry it out; a plan of one that was approved goes to failover()."""
    raise NotImplementedError
