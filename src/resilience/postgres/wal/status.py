"""What an archiver says about itself."""

from __future__ import annotations

from datetime import datetime, timedelta

from attrs import field, frozen

from resilience.model.findings import Finding
from resilience.model.moments import aware
from resilience.model.positions import Position
from resilience.model.show import Shown, as_bytes


@frozen(kw_only=True)
class ArchiverStatus(Shown):
    """How far a WalArchiver is, at one moment.

    `received_lsn` is how far it has read, `durable_lsn` up to where the archive has everything, `server_lsn` what is
    known of the server's own WAL. Everything acknowledged before `complete_at` (the server's clock) is durable;
    `achieved_rpo` is how long ago that is: what would be lost if the server vanished now. It is None as long as nobody
    can know, as it is with a standby, which cannot tell what its primary has acknowledged. `slot_bytes` is the WAL that
    the slot keeps on the server. `segments`, `slices` and `reconnects` count since the archiver was entered.
    """

    target: str
    lineage: str = ""
    connected: bool = False
    received_lsn: Position | None = None
    durable_lsn: Position | None = None
    server_lsn: Position | None = None
    complete_at: datetime | None = field(default=None, validator=aware)
    achieved_rpo: timedelta | None = None
    slot_bytes: int | None = None
    segments: int = 0
    slices: int = 0
    reconnects: int = 0
    findings: tuple[Finding, ...] = ()
    last_error: str = ""

    @property
    def timeline(self) -> str | None:
        """The timeline that is being archived."""
        return None if self.durable_lsn is None else self.durable_lsn.branch

    def __str__(self) -> str:
        rpo = "RPO unknown" if self.achieved_rpo is None else f"RPO {self.achieved_rpo.total_seconds():.1f} s"
        parts = [
            "connected" if self.connected else "NOT CONNECTED",
            f"durable up to {self.durable_lsn}" if self.durable_lsn else "nothing durable",
            rpo,
            f"the slot keeps {as_bytes(self.slot_bytes)}",
            f"{self.segments} segments and {self.slices} slices archived",
        ]
        lines = [f"{self.target}: {', '.join(parts)}"]
        if self.last_error:
            lines.append(f"failing: {self.last_error}")
        return "\n  ".join(lines + [str(finding) for finding in self.findings])
