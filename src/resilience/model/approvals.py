"""Who agreed to a failover."""

from __future__ import annotations

from datetime import datetime

from attrs import field, frozen

from .moments import aware
from .show import Shown, when


@frozen(kw_only=True)
class Approval(Shown):
    """Somebody in a role agreed to one plan: the one whose code he was shown, as he typed it or a ticket quotes it."""

    role: str
    actor: str
    code: str
    at: datetime = field(validator=aware)

    def __str__(self) -> str:
        return f"{self.role}: {self.actor}, {when(self.at)}"
