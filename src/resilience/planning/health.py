"""Does what the archive holds keep to an objective? Pure: facts in, readings and findings out, with the arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from attrs import evolve, field, frozen

from resilience.model.diagnosis import Checkup, Reading, judged
from resilience.model.errors import NoBackup, NotRecoverable
from resilience.model.findings import Finding, blocker
from resilience.model.log import LogFacts
from resilience.model.manifests import Manifest
from resilience.model.measured import RestoreMeasured
from resilience.model.moments import aware
from resilience.model.objectives import Objective
from resilience.model.positions import Position
from resilience.model.show import as_bytes, as_span
from resilience.model.targets import RecoveryTarget

from .course import Course, Holdings, holdings
from .estimate import estimated
from .log import LogView
from .restore import alone

GRACE = 1.5
"""A backup is late when it is half as old again as its interval: taking one takes its time too."""


@frozen(kw_only=True)
class Kept:
    """What an archive holds of a target: backups, what is known of the logs of all lineages, what restores measured.

    `view` is the log of the lineage that the target has now, as far as its newest backup needs it; `damage` is what
    could not be read of it.
    """

    looked_at: datetime = field(validator=aware)
    manifests: tuple[Manifest, ...] = ()
    logs: tuple[LogFacts, ...] = ()
    view: LogView | None = None
    shown: tuple[RestoreMeasured, ...] = ()
    damage: tuple[Finding, ...] = ()


def examine_archive(
    checkup: Checkup, kept: Kept, objective: Objective
) -> tuple[tuple[Reading, ...], tuple[Finding, ...]]:
    """Hold what the archive has of a system against an objective."""
    case = _case(checkup, kept, objective)
    findings = (
        *case.histories(),
        *case.backups(),
        *case.recoverable(),
        *case.log(),
        *case.loss(),
        *case.time(),
        *kept.damage,
    )
    return judged(case.readings(), findings), findings


def held(checkup: Checkup, manifests: Sequence[Manifest], view: LogView) -> Holdings:
    """Return what of an archive's backups and log belongs to a system."""
    return holdings(checkup.target, manifests, view, kinds=checkup.replays)


def latest(checkup: Checkup, view: LogView) -> RecoveryTarget:
    """Return what is asked for if disaster strikes now: all there is on the branch that the system is on."""
    branch = checkup.position.branch if checkup.position is not None else None
    return RecoveryTarget.latest(timeline=branch if branch in view.names else None)


@frozen(kw_only=True)
class _Case:
    """One system, what is kept of it, what was promised; `course` leads to now, or `refused` says why nothing does."""

    checkup: Checkup
    kept: Kept
    objective: Objective
    own: tuple[Manifest, ...]
    course: Course | None = None
    refused: NotRecoverable | NoBackup | None = None

    @property
    def newest(self) -> Manifest | None:
        """The newest backup of this very system."""
        return self.own[-1] if self.own else None

    @property
    def facts(self) -> LogFacts | None:
        """What is known of its log; None if it has none."""
        found = self.kept.view.facts if self.kept.view is not None else None
        return found if found is not None and (found.branches or found.watermarks) else None

    @property
    def reached(self) -> Position | None:
        """How far a restore would come."""
        if self.course is None:
            return None
        return self.course.steps[-1].ends if self.course.steps else self.course.chain[-1].recovery_point.position

    @property
    def behind(self) -> int | None:
        """Bytes of log that the system has and a restore would not; None if they cannot be compared."""
        at, reached = self.checkup.position, self.reached
        if at is None or reached is None or at.branch != reached.branch:
            return None
        return max(0, at.offset - reached.offset)

    @property
    def durable_at(self) -> datetime | None:
        """The last moment that can be recovered, by the system's clock; None if nothing says."""
        if self.course is None or self.reached is None:
            return None
        if self.behind == 0 and self.checkup.writes:
            return self.checkup.now
        moments = [self.course.chain[-1].recovery_point.time]
        moments += [step.complete_at for step in self.course.steps[-1:]]
        # A watermark is recorded also when nothing was written and only time has passed.
        marks = self.facts.watermarks if self.facts is not None else ()
        moments += [
            mark.complete_at
            for mark in marks
            if mark.branch == self.reached.branch and mark.ends.offset <= self.reached.offset
        ]
        return max((moment for moment in moments if moment is not None), default=None)

    def readings(self) -> Iterator[Reading]:
        """What was seen, beside what was promised."""
        newest, objective, course = self.newest, self.objective, self.course
        yield Reading(
            name="backups",
            value=f"{len(self.own)}, newest {self._age(newest)} old" if newest is not None else "none",
            reference=f"every {as_span(objective.every)}" if objective.every is not None else "",
        )
        if objective.needs_log or self.facts is not None:
            none = self.facts is None
            value = "none" if none else f"restores to {self.reached or 'nowhere'}"
            at = f"the server is at {self.checkup.position}"
            yield Reading(name="log", value=value, reference=at, standing="blocker" if none else "good")
        durable = self.durable_at
        lost = None if durable is None else max(timedelta(0), self.checkup.now - durable)
        unknown = "unknown" if self.own else "nothing comes back"
        yield Reading(
            name="achieved RPO",
            value=unknown if lost is None else as_span(lost),
            reference=f"at most {as_span(objective.rpo)}",
            standing="good" if lost is not None else ("unseen" if course is not None else "blocker"),
        )
        if course is not None:
            size = sum(each.size for each in course.chain)
            value = f"{as_bytes(size)} + {as_bytes(course.replayed)} of log to replay"
            yield Reading(name="to restore", value=value, reference=f"within {as_span(objective.recovery)}")

    def histories(self) -> Iterator[Finding]:
        """Is this the system whose backups these are, and the only one?"""
        mine = self.checkup.lineage
        theirs = {each.lineage for each in self.kept.manifests} | {each.lineage for each in self.kept.logs}
        others = ", ".join(sorted(theirs - {mine}))
        if not others:
            return
        if not self.own and self.facts is None:
            yield blocker(
                "lineage",
                f"the archive holds nothing of this server ({mine}), only of {others}",
                "is this the right server? If it was made anew or upgraded: take a full backup now",
            )
            return
        last = self.kept.manifests[-1].lineage if self.kept.manifests else mine
        theirs_now = ", with the newest backup of all: another server writes under this name"
        yield Finding(
            severity="note" if last == mine else "warning",
            subject="lineage",
            text=f"the archive also holds {others} under this name" + ("" if last == mine else theirs_now),
            hint="" if last == mine else "give each server a name of its own",
        )

    def backups(self) -> Iterator[Finding]:
        """Are there backups, as often as promised?"""
        newest, objective = self.newest, self.objective
        if newest is None:
            yield blocker(
                "backups", "there is none: nothing of this server can be restored", "await backup(target, archive)"
            )
            return
        full = [each for each in self.own if each.parent is None]
        every = (objective.full_every or objective.every) if self.checkup.only_full else objective.every
        again = "" if self.checkup.only_full else ", incremental=True"
        yield from self._late(newest, "backup", every, f"await backup(target, archive{again})")
        if full and objective.incremental and not self.checkup.only_full:
            yield from self._late(full[-1], "full backup", objective.full_every, "await backup(target, archive)")

    def recoverable(self) -> Iterator[Finding]:
        """Would a restore come back with all there is?"""
        if self.refused is not None and self.own:
            yield blocker("to restore", self.refused.what, "take a full backup now")
        if self.course is not None:
            for finding in self.course.findings:
                yield evolve(finding, subject="to restore")

    def log(self) -> Iterator[Finding]:
        """Is there a log of the branch that the system is on, and what of it is lost?"""
        if self.facts is None:
            if self.objective.needs_log and self.newest is not None:
                yield blocker(
                    "log",
                    "the archive has none of this server: what was committed since the newest backup, "
                    f"{self._age(self.newest)} ago, would be lost",
                    self.checkup.unarchived.hint if self.checkup.unarchived else "does it go to another archive?",
                )
            return
        marked = {mark.branch for mark in self.facts.watermarks}
        if (position := self.checkup.position) is not None and position.branch not in marked:
            known = ", ".join(sorted(marked)) or "none"
            yield blocker(
                "log",
                f"the server is on timeline {position.branch}, the log has {known}: nobody archives it any more",
                "start the archiver against this server; it follows the switch",
            )
        for gap in self.facts.gaps:
            text = f"lost from {gap} ({gap.reason}): no moment in it can be restored"
            yield Finding(severity="note", subject="log", text=text)

    def loss(self) -> Iterator[Finding]:
        """The RPO that a disaster now would show, against the one that was promised (R2)."""
        if self.durable_at is None:
            return
        lost, rpo = self.checkup.now - self.durable_at, self.objective.rpo
        alone = self.facts is None and not self.objective.needs_log
        if lost <= (rpo if alone else rpo / 2):
            return
        hint = "is the archiver running, and does the archive answer? Its status says"
        if alone:
            hint = "take backups more often: until the next one is complete, a backup's age is what would be lost"
        behind = f", {as_bytes(self.behind)} behind" if self.behind else ""
        yield Finding(
            severity="blocker" if lost > rpo else "warning",
            subject="achieved RPO",
            text=f"{self.checkup.now:%H:%M:%S} now - {self.durable_at:%H:%M:%S} durable = {as_span(lost)}"
            f"{' >' if lost > rpo else ', of'} {as_span(rpo)}{behind}",
            hint=hint,
        )

    def time(self) -> Iterator[Finding]:
        """Would a recovery keep to the RTO, by what restores have shown (R2)?

        Just before the next backup there is most to replay.
        """
        if self.course is None:
            return
        every = self.objective.full_every if self.checkup.only_full else self.objective.every
        grown = int((self.checkup.log_rate or 0) * every.total_seconds()) if every is not None else 0
        replayed = max(self.course.replayed, grown)
        budget = self.objective.recovery
        estimate = estimated(self.course.chain, replayed, shown=self.kept.shown, rto=budget)
        for finding in estimate.findings:
            yield Finding(
                severity="warning" if estimate.seconds is not None else "note",
                subject="to restore",
                text="; ".join(estimate.arithmetic),
                hint="a restore into a scratch server measures it" if estimate.seconds is None else finding.hint,
            )

    def _late(self, manifest: Manifest, what: str, every: timedelta | None, hint: str) -> Iterator[Finding]:
        age = self.kept.looked_at - manifest.ended_at
        if every is not None and age > GRACE * every:
            yield Finding(
                severity="warning",
                subject="backups",
                text=f"the newest {what} is {as_span(age)} old, one is due every {as_span(every)}",
                hint=hint,
            )

    def _age(self, manifest: Manifest) -> str:
        return as_span(self.kept.looked_at - manifest.ended_at)


def _case(checkup: Checkup, kept: Kept, objective: Objective) -> _Case:
    """Decide what a restore would do, as a restore does."""
    mine = (checkup.system, checkup.lineage)
    own = tuple(each for each in kept.manifests if (each.system, each.lineage) == mine)
    view = kept.view or LogView(facts=LogFacts(lineage=checkup.lineage))
    case = _Case(checkup=checkup, kept=kept, objective=objective, own=own)
    try:
        if not checkup.replays:  # no log continues its backups: each is restored by itself
            kinds = sorted({each.kind for each in own})
            until = RecoveryTarget.latest()
            return evolve(case, course=alone(until, own, target=checkup.target, system=checkup.system, accepts=kinds))
        return evolve(case, course=held(checkup, own, view).decide(latest(checkup, view)))
    except (NotRecoverable, NoBackup) as error:
        return evolve(case, refused=error)
