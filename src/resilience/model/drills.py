"""Drills: what failed on purpose and the proof that it did, what a writer saw meanwhile, and what came of it."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from typing import Literal

from attrs import field, frozen

from .failover import FailoverReport, Phase
from .findings import Finding
from .moments import aware, not_negative, positive
from .show import Shown, as_span, when

DrillEnding = Literal["passed", "failed", "abandoned"]
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@frozen(kw_only=True)
class FaultProof(Shown):
    """That a fault happened: what, to whom, when, and what shows it."""

    fault: str
    subject: str
    at: datetime = field(validator=aware)
    evidence: str

    def __str__(self) -> str:
        return f"{self.fault} of {self.subject} at {when(self.at)}: {self.evidence}"


@frozen(kw_only=True)
class Criterion(Shown):
    """When a drill has passed: served again within `rto`, and what was acknowledged within `rpo` at most is lost."""

    rto: timedelta = field(validator=positive)
    rpo: timedelta = field(default=timedelta(0), validator=not_negative)

    def __str__(self) -> str:
        lost = f"at most {as_span(self.rpo)} of writes lost" if self.rpo else "no write lost"
        return f"served again within {as_span(self.rto)}, {lost}"


@frozen(kw_only=True)
class Window(Shown):
    """When a drill may be held: on `days` (0 is Monday), between two times of the day in UTC."""

    days: tuple[int, ...]
    begins: time
    ends: time

    def __contains__(self, moment: datetime) -> bool:
        there = moment.astimezone(UTC)
        return there.weekday() in self.days and self.begins <= there.time() < self.ends

    def __str__(self) -> str:
        days = ", ".join(_DAYS[day] for day in self.days)
        return f"{days} {self.begins:%H:%M} to {self.ends:%H:%M} UTC"


@frozen(kw_only=True)
class DrillSchedule(Shown):
    """One line of the calendar: what fails how often, when it may, who takes part, who is `told` beforehand."""

    kind: str
    fault: str
    every: timedelta = field(validator=positive)
    window: Window
    participants: tuple[str, ...]
    told: tuple[str, ...] = ()
    criterion: Criterion

    def due(self, last: datetime | None) -> datetime | None:
        """Tell when the next one is due after the `last` that passed; None: now, since there was none."""
        return None if last is None else last + self.every

    def overdue(self, last: datetime | None, now: datetime) -> bool:
        """Tell whether it should have been held by now."""
        due = self.due(last)
        return due is None or due < now

    def __str__(self) -> str:
        told = f"; told beforehand: {', '.join(self.told)}" if self.told else ""
        people = ", ".join(self.participants)
        return f"{self.kind} every {as_span(self.every)}: {self.fault}; {self.criterion}; {self.window}; {people}{told}"


@frozen(kw_only=True)
class Served(Shown):
    """One server that acknowledged writes through the route: `instance` tells this run of it from every other.

    `first` and `last` are when the first and the last write were acknowledged, `last_sent` when the last was sent.
    """

    instance: str
    first: datetime = field(validator=aware)
    last: datetime = field(validator=aware)
    last_sent: datetime = field(validator=aware)
    writes: int

    def __str__(self) -> str:
        return f"{self.instance}: {self.writes} writes acknowledged from {when(self.first)} to {when(self.last)}"


@frozen(kw_only=True)
class LostWrite(Shown):
    """A write that was acknowledged and is not there: when that was, and by which server."""

    id: int
    at: datetime = field(validator=aware)
    instance: str


@frozen(kw_only=True)
class CanaryFacts(Shown):
    """What a canary has seen: it writes through the route all the while, and counts only what was acknowledged.

    `failed` writes were refused or never sent; of those `in_doubt` nobody was told. `missing` were acknowledged and are
    not there; None: nobody could look. `longest` is the longest time without an acknowledgement.
    """

    canary: str
    began_at: datetime = field(validator=aware)
    ended_at: datetime = field(validator=aware)
    acknowledged: int
    failed: int = 0
    in_doubt: int = 0
    missing: tuple[LostWrite, ...] | None = None
    served: tuple[Served, ...] = ()
    longest: float = 0.0
    quiet_since: datetime | None = field(default=None, validator=aware)
    quiet_until: datetime | None = field(default=None, validator=aware)

    @property
    def two_writers(self) -> tuple[str, ...]:
        """Who took a write although another had begun to: sent after that one's first acknowledgement."""
        return tuple(
            f"{earlier.instance} took a write that was sent at {when(earlier.last_sent)}, although "
            f"{later.instance} had acknowledged one at {when(later.first)}"
            for number, earlier in enumerate(self.served)
            for later in self.served[number + 1 :]
            if earlier.last_sent > later.first
        )

    @property
    def lost(self) -> timedelta | None:
        """How long a time's acknowledged writes are lost, to the last one before the gap; None: nobody could look."""
        if self.missing is None:
            return None
        if not self.missing:
            return timedelta(0)
        from_ = min(each.at for each in self.missing)
        servers = {each.instance for each in self.missing}
        until = max(each.last for each in self.served if each.instance in servers)
        return max(until - from_, timedelta(microseconds=1))

    def __str__(self) -> str:
        lines = [
            f"{self.canary}: {self.acknowledged} writes acknowledged, {self.failed} failed, {self.in_doubt} in doubt",
            *map(str, self.served),
            f"longest time without an acknowledgement: {as_span(self.longest)}",
        ]
        if self.missing is None:
            lines.append("nobody could look which of them are there")
        elif self.missing:
            some = ", ".join(str(each.id) for each in self.missing[:10])
            lines.append(f"LOST: {len(self.missing)} acknowledged writes within {as_span(self.lost)}: {some}")
        else:
            lines.append("every acknowledged write is there")
        lines += [f"TWO WRITERS: {each}" for each in self.two_writers]
        return "\n  ".join(lines)


@frozen(kw_only=True)
class DrillRecord(Shown):
    """What is written down before anything is made to fail: who heals what, if the drill itself dies.

    `comes_back`: the member that was struck joins again behind the new primary.
    """

    id: str
    group: str
    fault: str
    canary: str
    clean_up: tuple[str, ...]
    comes_back: bool = True
    began_at: datetime = field(validator=aware)
    actor: str = ""
    reason: str = ""

    def __str__(self) -> str:
        who = f" by {self.actor}" if self.actor else ""
        todo = "; ".join(self.clean_up)
        return f"drill {self.id} of {self.group} begun at {when(self.began_at)}{who}: {self.fault}; to clean up: {todo}"


@frozen(kw_only=True)
class DrillReport(Shown):
    """What a drill has shown, measured.

    `rto` are the seconds from the fault to the first write that another server acknowledged; `phases` split them up, as
    far as the failover measured them. `rpo`: writes acknowledged in how long a time are lost. `abandoned`: the drill
    died, and somebody cleaned up after it. `cleaned` is what was put back.
    """

    id: str
    group: str
    system: str
    ending: DrillEnding
    criterion: Criterion | None = None
    proof: FaultProof | None = None
    rto: float | None = None
    phases: tuple[tuple[Phase, float], ...] = ()
    rpo: timedelta | None = None
    canary: CanaryFacts | None = None
    failover: FailoverReport | None = None
    cleaned: tuple[str, ...] = ()
    began_at: datetime = field(validator=aware)
    ended_at: datetime = field(validator=aware)
    actor: str = ""
    reason: str = ""
    findings: tuple[Finding, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the criterion was met."""
        return self.ending == "passed"

    def __str__(self) -> str:
        lines = [f"drill {self.id} of {self.group}: {self.ending.upper()}"]
        lines += [f"wanted: {self.criterion}"] if self.criterion else []
        lines += [str(self.proof)] if self.proof else ["nothing was made to fail"]
        split = ", ".join(f"{phase} {as_span(seconds)}" for phase, seconds in self.phases)
        lines.append(f"served again after {as_span(self.rto)}" + (f" ({split})" if split else ""))
        lines.append(f"acknowledged writes lost: {'none' if self.rpo == timedelta(0) else as_span(self.rpo)}")
        lines += str(self.canary).split("\n  ") if self.canary else []
        lines += [f"cleaned up: {each}" for each in self.cleaned]
        return "\n  ".join([*lines, *map(str, self.findings)])
