"""What a restore has measured, or why it failed: the archive keeps it, and the next plan estimates from it."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from attrs import field, frozen
from attrs.validators import ge

from .moments import aware
from .show import Shown


@frozen(kw_only=True)
class RestoreMeasured(Shown):
    """One restore that was proven: plain bytes of backups unpacked, of the log replayed, and the seconds of each.

    `backup` is the one that it ended with, `until` what was asked for. `actor` asked for it, for a `reason`. One that
    failed, with the sentence that was raised as its `error`, or was cancelled has measured nothing.
    """

    id: str
    target: str
    system: str
    destination: str
    ended_at: datetime = field(validator=aware)
    unpacked: int = field(validator=ge(0))
    unpack_seconds: float = field(validator=ge(0))
    replayed: int = field(default=0, validator=ge(0))
    replay_seconds: float = field(default=0.0, validator=ge(0))
    backup: str = ""
    until: str = ""
    actor: str = ""
    reason: str = ""
    outcome: Literal["succeeded", "failed", "cancelled"] = "succeeded"
    error: str = ""
