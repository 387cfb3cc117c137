"""What has to be rehydrated before it can be read: objects that lie in Azure's Archive tier.

See learn.microsoft.com/azure/storage/blobs/archive-rehydrate-overview: up to 15 hours with standard priority; with high
priority less than one for an object below 10 GB, and at most 10 GiB an hour for a whole account.
"""

from __future__ import annotations

from datetime import timedelta

from attrs import field, frozen
from attrs.validators import ge

from .show import Shown, as_bytes, as_span

STANDARD = timedelta(hours=15)
URGENT = timedelta(hours=1)
URGENT_AN_HOUR = 10 << 30
"""Bytes."""


@frozen(kw_only=True)
class Rehydration(Shown):
    """What a restore cannot read yet: so many `objects` of so many stored `bytes`."""

    objects: int = field(validator=ge(0))
    bytes: int = field(validator=ge(0))

    @property
    def standard(self) -> timedelta:
        """How long it takes at most with standard priority."""
        return STANDARD if self.objects else timedelta(0)

    @property
    def urgent(self) -> timedelta:
        """About how long it takes with high priority, which costs more; never promised."""
        return max(URGENT, URGENT * (self.bytes / URGENT_AN_HOUR)) if self.objects else timedelta(0)

    def __str__(self) -> str:
        if not self.objects:
            return "everything can be read"
        return (
            f"{self.objects} objects ({as_bytes(self.bytes)}) lie in the Archive tier: to rehydrate them takes up to "
            f"{as_span(self.standard)}, or about {as_span(self.urgent)} if urgent"
        )
