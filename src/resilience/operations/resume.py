"""resume(): go on after the operator's own process died; the signature, until the engine moves in."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime

from resilience.model.events import Observer
from resilience.model.failover import FailoverReport
from resilience.model.moments import utc_now

from .group import FailoverGroup


async def resume(
    group: FailoverGroup,
    *,
    stop: bool = False,
    give_up: Collection[str] = (),
    accept_split_brain: bool = False,
    accept_data_loss: bool = False,
    actor: str = "",
    reason: str = "",
    observer: Observer | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> FailoverReport:
    """Finish what the journal holds unfinished; with `stop` undo it where that is still possible."""
    raise NotImplementedError
