"""failover(): carry out a plan; the signature, until the engine moves in."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from resilience.model.events import Observer
from resilience.model.failover import FailoverPlan, FailoverReport
from resilience.model.moments import utc_now

from .group import FailoverGroup


async def failover(
    group: FailoverGroup,
    plan: FailoverPlan,
    *,
    confirm: str,
    accept_split_brain: bool = False,
    accept_data_loss: bool = False,
    failed_at: datetime | None = None,
    actor: str = "",
    reason: str = "",
    observer: Observer | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> FailoverReport:
    """Carry out a plan that was confirmed by its words."""
    raise NotImplementedError
