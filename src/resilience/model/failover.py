"""What a failover is to do and what one has done: policies, plans and reports as plain values."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from typing import Literal, get_args

from attrs import field, frozen

from .findings import Finding
from .groups import Fence, GroupFacts, RouteFacts, Sample
from .json import to_json
from .moments import aware, not_negative, positive
from .positions import Position, RecoveryPoint
from .show import Shown, as_span, as_times, when

FailoverKind = Literal["failover", "switchover", "failback"]
StepKind = Literal[
    "prepare",
    "hold",
    "fence",
    "settle",
    "decide",
    "promote",
    "switch",
    "verify",
    "follow",
    "rejoin",
    "require",
    "lift",
    "release",
]
Outcome = Literal["done", "not done", "unknown"]
Phase = Literal["detection", "decision", "promotion", "propagation", "reconnect", "validation"]
Ending = Literal["completed", "stopped"]
Accepted = Literal["split brain", "data loss"]
"""What nobody could prove and somebody took upon himself, by name; the subject of the blockers that this lifts."""


def standing(findings: Iterable[Finding], accepted: Collection[Accepted] = ()) -> tuple[Finding, ...]:
    """Return the blockers that still stand once some risks were accepted by name; such a risk is their subject."""
    return tuple(each for each in findings if each.severity == "blocker" and each.subject not in accepted)


@frozen(kw_only=True)
class FailoverPolicy(Shown):
    """What a failover of a group may cost, and who must agree.

    `max_loss`: writes acknowledged in how long a time may be lost; nothing, unless it says otherwise. `rto`: how long
    it may take from the failure on. `confirmation` are the words to type, to which the plan adds a code of its own. A
    plan is good for `valid`. `witnesses` are how many vantage points must have seen the primary dead. Of equals the
    earlier in `preferred` is promoted; who is in `never` is not. `approvals` are roles whose approval must be on
    record. `recovery_point_age`: a backup proven within it must exist, if it is given. `detection`, `decision` and
    `validation` are what is allotted to those phases; nothing is counted for what is not.
    """

    max_loss: timedelta = field(default=timedelta(0), validator=not_negative)
    rto: timedelta | None = field(default=None, validator=positive)
    confirmation: str = "FAIL OVER"
    valid: timedelta = field(default=timedelta(minutes=15), validator=positive)
    witnesses: int = 2
    preferred: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    approvals: tuple[str, ...] = ()
    recovery_point_age: timedelta | None = field(default=None, validator=positive)
    detection: timedelta | None = field(default=None, validator=positive)
    decision: timedelta | None = field(default=None, validator=positive)
    validation: timedelta | None = field(default=None, validator=positive)


@frozen(kw_only=True)
class Loss(Shown):
    """What is lost at most: nothing, what was acknowledged from `since` to `until`, or nobody can tell (`unknown`).

    Both times are by the clock of who records and fences; without `until` it goes on until the primary is fenced. They
    are of when it was acknowledged: an answer that was on its way when the primary was fenced arrives later.
    `missing` are bytes of history that are known to be lost, a lower bound. `evidence` says what the bound rests on.
    """

    kind: Literal["nothing", "bounded", "unknown"]
    since: datetime | None = field(default=None, validator=aware)
    until: datetime | None = field(default=None, validator=aware)
    missing: int | None = None
    evidence: tuple[str, ...] = ()

    @property
    def at_most(self) -> timedelta | None:
        """How long a time's writes are lost at most; None where nobody can tell, or not yet."""
        if self.kind == "nothing":
            return timedelta(0)
        return None if self.since is None or self.until is None else max(timedelta(0), self.until - self.since)

    def __str__(self) -> str:
        if self.kind == "nothing":
            return "nothing acknowledged is lost"
        if self.kind == "unknown":
            return "nobody can tell what is lost"
        end = f" until {when(self.until)} ({as_span(self.at_most)})" if self.until else " until it is fenced"
        return f"lost at most: what was acknowledged after {when(self.since)}{end}"


@frozen(kw_only=True)
class PhaseFloor(Shown):
    """The least time that one phase takes by live settings, and the arithmetic."""

    phase: Phase
    seconds: float = field(converter=float)  # or a plan would have another code once it has been JSON
    why: str

    def __str__(self) -> str:
        return f"{self.phase} {as_span(self.seconds)}: {self.why}"


@frozen(kw_only=True)
class RtoBudget(Shown):
    """How long a failover takes at least, phase by phase, beside how long it may take (None: nobody said)."""

    group: str
    floor: tuple[PhaseFloor, ...]
    objective: timedelta | None = field(default=None, validator=positive)
    findings: tuple[Finding, ...] = ()

    @property
    def seconds(self) -> float:
        """The least time it takes, from the failure on."""
        return sum(each.seconds for each in self.floor)

    @property
    def possible(self) -> bool:
        """Whether the objective can be met at all, with everything going well."""
        return self.objective is None or self.seconds <= self.objective.total_seconds()

    def __str__(self) -> str:
        allowed = f", of {as_span(self.objective)} at most" if self.objective is not None else ""
        head = f"a failover of {self.group} takes at least {as_span(self.seconds)}{allowed}"
        return "\n  ".join([head, *map(str, self.floor), *map(str, self.findings)])


@frozen(kw_only=True)
class Step(Shown):
    """One step of a failover, and what it is about: a member or a route."""

    kind: StepKind
    subject: str = ""
    text: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, [self.kind, self.subject])) + (f": {self.text}" if self.text else "")


@frozen(kw_only=True)
class PromotionOrder(Shown):
    """Whom to promote, in which epoch; the candidate is None where the group elects its own.

    `fences` are the proofs that nobody else can write. `sync` are the members that a write must reach before it is
    acknowledged from then on, `sync_needed` how many of them.
    """

    candidate: str | None
    epoch: int
    fences: tuple[Fence, ...] = ()
    sync: tuple[str, ...] = ()
    sync_needed: int = 0


@frozen(kw_only=True)
class Promoted(Shown):
    """A promotion that happened: who is primary, and where its history left the old one (`forked_at`).

    `loss` is what was lost, where that has turned out to be more than was decided on.
    """

    primary: str
    epoch: int
    instance: str
    point: RecoveryPoint
    forked_at: Position | None = None
    at: datetime = field(validator=aware)
    loss: Loss | None = None
    findings: tuple[Finding, ...] = ()


@frozen(kw_only=True)
class Divergence(Shown):
    """How a member can come back behind `primary`, from its own end and what it has that the primary does not.

    `way`: it only has to `follow`, to `rewind`, or to be `rebuild`-t from a fresh base; `none`: nobody can tell yet.
    """

    member: str
    primary: str
    way: Literal["follow", "rewind", "rebuild", "none"]
    forked_at: Position | None = None
    end: Position | None = None
    lost: int | None = None
    why: str = ""

    def __str__(self) -> str:
        return f"{self.member}: {self.way}: {self.why}"


@frozen(kw_only=True)
class FailoverPlan(Shown):
    """One failover that was decided and not begun; it shows itself, travels as JSON and expires.

    `candidate` is promoted (None where the group elects its own), for the reason `why`. `fences` are the members that
    must be proven unable to write. `floor` is what it takes at least. With `asked` the candidate was asked for by name:
    nobody else is promoted. From the promotion on a write waits for `sync_needed` of `sync`, and for `required_needed`
    of `required` once the old primary is back, where it comes back. `sample` is what was last recorded of the primary.
    With `blockers` it cannot be carried out.

    A failback first brings the members of `divergences` back behind the primary, and ends there if nobody is to be
    promoted (`candidate` is None, and there is no step `promote`).
    """

    id: str
    group: str
    system: str
    kind: FailoverKind
    policy: FailoverPolicy
    candidate: str | None = None
    why: str = ""
    asked: bool = False
    primary: str = ""
    epoch: int
    steps: tuple[Step, ...] = ()
    fences: tuple[str, ...] = ()
    sync: tuple[str, ...] = ()
    sync_needed: int = 0
    required: tuple[str, ...] = ()
    required_needed: int = 0
    loss: Loss
    floor: tuple[PhaseFloor, ...] = ()
    divergences: tuple[Divergence, ...] = ()
    facts: GroupFacts
    routes: tuple[RouteFacts, ...] = ()
    sample: Sample | None = None
    made_at: datetime = field(validator=aware)
    expires_at: datetime = field(validator=aware)
    findings: tuple[Finding, ...] = ()

    @property
    def blockers(self) -> tuple[Finding, ...]:
        """Why it cannot be carried out."""
        return standing(self.findings)

    @property
    def code(self) -> str:
        """Four hexadecimal digits of the plan's digest: who types them has this very plan before him."""
        return hashlib.sha256(to_json(self)).hexdigest()[:4]

    @property
    def confirmation(self) -> str:
        """The words that confirm this plan and no other."""
        return f"{self.policy.confirmation} {self.code}".strip()

    @property
    def floor_seconds(self) -> float:
        """The least time it takes, from the failure on."""
        return sum(each.seconds for each in self.floor)

    def __str__(self) -> str:
        lines = [f"{self.kind} of {self.group} {self._way()}"]
        lines += map(str, self.facts.sightings)
        lines += [f"because {self.why}"] if self.why else []
        lines += [f"{number}. {step}" for number, step in enumerate(self.steps, 1)]
        lines += [str(self.loss), *(f"  {each}" for each in self.loss.evidence)]
        lines += map(str, self.divergences)
        if self.floor:
            lines += [f"takes at least {as_span(self.floor_seconds)}", *(f"  {each}" for each in self.floor)]
        lines += map(str, self.findings)
        return "\n  ".join([*lines, f"{self._last()} (expires {when(self.expires_at)})"])

    def _last(self) -> str:
        risks: tuple[Accepted, ...] = get_args(Accepted)
        if standing(self.findings, risks):
            return "it cannot be carried out"
        named = dict.fromkeys(each.subject.replace(" ", "_") for each in self.blockers)
        only = f"; it is carried out only with {' and '.join(f'accept_{each}=True' for each in named)}" if named else ""
        return f"confirm with: {self.confirmation}{only}"

    def _way(self) -> str:
        if self.kind == "failback" and self.candidate is None:
            return f"behind {self.primary}"
        return f"from {self.primary or 'nobody known'} to {self.candidate or 'whom it elects'}"


@frozen(kw_only=True)
class Decision(Shown):
    """Whom to promote, decided again once the primary was fenced and the standbys had settled.

    With a blocker among the findings nobody is.
    """

    candidate: str | None
    why: str
    loss: Loss
    sync: tuple[str, ...] = ()
    sync_needed: int = 0
    findings: tuple[Finding, ...] = ()

    @property
    def blockers(self) -> tuple[Finding, ...]:
        """Why nobody is promoted."""
        return standing(self.findings)

    def __str__(self) -> str:
        head = f"{self.candidate or 'nobody'} is promoted: {self.why}"
        lost = [str(self.loss), *(f"  {each}" for each in self.loss.evidence)]
        return "\n  ".join([head, *lost, *map(str, self.findings)])


@frozen(kw_only=True)
class StepDone(Shown):
    """One step as it was carried out; `seconds` of wall time."""

    step: Step
    outcome: Outcome
    at: datetime = field(validator=aware)
    seconds: float
    text: str = ""

    def __str__(self) -> str:
        name = " ".join(filter(None, [self.step.kind, self.step.subject]))
        came = f"{name}: {self.outcome}, {self.seconds:.3f} s"
        return f"{came}: {self.text}" if self.text else came


@frozen(kw_only=True)
class FailoverReport(Shown):
    """What a failover did, measured (R39).

    `stopped`: nothing was promoted, and clients were let go where they were; `why` says why. `phases` are measured
    seconds of wall time; detection is None where nobody told when the failure was. `resumed` counts the operators that
    died on the way.
    """

    group: str
    system: str
    kind: FailoverKind
    ending: Ending
    epoch: int
    plan: FailoverPlan
    primary: str
    promoted: Promoted | None = None
    fences: tuple[Fence, ...] = ()
    loss: Loss
    steps: tuple[StepDone, ...] = ()
    phases: tuple[tuple[Phase, float], ...] = ()
    began_at: datetime = field(validator=aware)
    ended_at: datetime = field(validator=aware)
    cause: str = ""
    why: str = ""
    resumed: int = 0
    actor: str = ""
    reason: str = ""
    findings: tuple[Finding, ...] = ()

    @property
    def seconds(self) -> float:
        """From the decision to the end."""
        return (self.ended_at - self.began_at).total_seconds()

    @property
    def rto(self) -> float | None:
        """Seconds from the failure until the new primary was proven to serve; None if nobody told when it failed."""
        phases = dict(self.phases)
        return sum(phases.values()) if "detection" in phases else None

    def __str__(self) -> str:
        way = f"from {self.plan.primary or 'nobody known'} to {self.primary}" if self.promoted else f"of {self.primary}"
        head = f"{self.kind} of {self.group} {way}: {self.ending} in {self.seconds:.3f} s, epoch {self.epoch}"
        lines = [head, *([f"because: {self.why}"] if self.why else [])]
        lines += [f"cause: {self.cause}"] if self.cause else []
        lines += [f"by {self.actor or 'somebody'}: {self.reason or 'no reason was given'}"]
        lines += [f"taken over {as_times(self.resumed)}"] if self.resumed else []
        lines += [f"{each.at:%H:%M:%S}.{each.at.microsecond // 1000:03d}  {each}" for each in self.steps]
        lines += [str(self.loss), *(f"  {each}" for each in self.loss.evidence)] if self.promoted else []
        lines += [", ".join(f"{phase} {seconds:.3f} s" for phase, seconds in self.phases)] if self.phases else []
        return "\n  ".join([*lines, *map(str, self.findings)])
