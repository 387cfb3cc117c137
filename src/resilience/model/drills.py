"""Drills: what failed on purpose, and the proof that it did."""

from __future__ import annotations

from datetime import datetime

from attrs import field, frozen

from .moments import aware
from .show import Shown


@frozen(kw_only=True)
class FaultProof(Shown):
    """That a fault happened: what, to whom, when, and what shows it."""

    fault: str
    subject: str
    at: datetime = field(validator=aware)
    evidence: str

    def __str__(self) -> str:
        return f"{self.fault} of {self.subject}: {self.evidence}"
