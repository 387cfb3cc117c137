"""What an archiver keeps count of, and when it writes down how far it is."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from itertools import chain

from attrs import define, evolve, field

from resilience.model.events import Notifier
from resilience.model.findings import Finding
from resilience.model.log import Watermark
from resilience.postgres.lsn import position
from resilience.primitives import Log

from .assembly import Assembly
from .messages import moment
from .status import ArchiverStatus

SEGMENTS_A_MARK = 16
SECONDS_A_MARK = 60.0
FINDINGS_AT_MOST = 20


@define(kw_only=True)
class Progress:
    """All that a status is made of.

    The server's clock is taken from its messages and goes on with our monotonic one, so that nothing depends on what
    our own clock says.
    """

    notifier: Notifier
    connected: bool = False
    lineage: str = ""
    assembly: Assembly | None = None
    reconnects: int = 0
    last_error: str = ""
    slot_bytes: int | None = None
    _found: list[Finding] = field(factory=list, init=False)
    _watched: dict[str, tuple[Finding, ...]] = field(factory=dict, init=False)
    _server: int | None = field(default=None, init=False)
    _heard: tuple[int, float] | None = field(default=None, init=False)
    _segments: int = field(default=0, init=False)
    _slices: int = field(default=0, init=False)

    def begin(self, assembly: Assembly, lineage: str) -> None:
        """A stream has begun."""
        if self.assembly is not None:
            self._segments += self.assembly.segments
            self._slices += self.assembly.slices
        self.assembly, self.lineage, self.connected, self.last_error = assembly, lineage, True, ""
        self._server = assembly.received
        self.notifier.tell("progress", f"streaming from {position(assembly.branch, assembly.received)}")

    def heard(self, reaches: int, sent_at: int) -> None:
        """The server said how far its WAL reaches, and what time it is."""
        self._server = reaches
        self._heard = (sent_at, time.monotonic())

    def failed(self, error: BaseException) -> None:
        """Something failed that is tried again."""
        if str(error) != self.last_error:
            self.last_error = str(error)
            self.notifier.tell("progress", self.last_error)

    def found(self, finding: Finding) -> None:
        """Something is to be known."""
        if finding not in self._found:
            self._found = [*self._found, finding][-FINDINGS_AT_MOST:]
            self.notifier.tell("progress", str(finding))

    def watched(self, what: str, findings: tuple[Finding, ...]) -> None:
        """A look at something found this; the next look at it replaces it. What is new is told, a blocker is logged."""
        known = {(finding.severity, finding.hint) for finding in self._watched.get(what, ())}
        self._watched[what] = findings
        for finding in findings:
            if (finding.severity, finding.hint) not in known:
                self.notifier.tell("progress", str(finding))
                if finding.severity == "blocker":
                    logging.getLogger("resilience").error("%s", finding)

    def status(self) -> ArchiverStatus:
        """Return how it is now."""
        assembly = self.assembly
        status = ArchiverStatus(
            target=self.notifier.subject,
            lineage=self.lineage,
            connected=self.connected,
            slot_bytes=self.slot_bytes,
            reconnects=self.reconnects,
            findings=(*self._found, *chain.from_iterable(self._watched.values())),
            last_error=self.last_error,
        )
        if assembly is None:
            return status
        complete = assembly.proofs.upto(assembly.durable)
        behind = None if self._server is None else max(0, self._server - assembly.durable)
        return evolve(
            status,
            received_lsn=position(assembly.branch, max(assembly.received, assembly.durable)),
            durable_lsn=position(assembly.branch, assembly.durable),
            server_lsn=None if self._server is None else position(assembly.branch, self._server),
            complete_at=None if complete is None else moment(complete),
            achieved_rpo=self._since(complete),
            slot_bytes=behind if self.slot_bytes is None else self.slot_bytes,
            segments=self._segments + assembly.segments,
            slices=self._slices + assembly.slices,
        )

    def _since(self, complete: int | None) -> timedelta | None:
        """Return how long ago a moment of the server's clock is, by that clock."""
        if complete is None or self._heard is None:
            return None
        said, heard = self._heard
        return timedelta(microseconds=max(0, said - complete), seconds=time.monotonic() - heard)


@define(kw_only=True)
class Marks:
    """Writes down now and then how far one stream has come, so that it is found again without reading the log."""

    log: Log
    assembly: Assembly
    _last: Watermark | None = field(default=None, init=False)
    _segments: int = field(default=0, init=False)
    _at: float = field(factory=time.monotonic, init=False)

    async def record(self, *, due: bool = False) -> None:
        """Write down how far it is, if that has changed; with `due` only if enough has happened."""
        enough = (
            self.assembly.segments - self._segments >= SEGMENTS_A_MARK or time.monotonic() - self._at >= SECONDS_A_MARK
        )
        watermark = self.assembly.watermark
        if watermark == self._last or (due and not enough):
            return
        await self.log.record(watermark)
        self._last, self._segments, self._at = watermark, self.assembly.segments, time.monotonic()
