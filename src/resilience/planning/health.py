"""Does what the archive holds keep to an objective? Pure: facts in, readings and findings out, with the arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from attrs import field, frozen

from resilience.model.diagnosis import Checkup, Reading, judged
from resilience.model.errors import NotRecoverable
from resilience.model.findings import Finding
from resilience.model.log import Gap, LogFacts, Stretch, Watermark
from resilience.model.manifests import Manifest
from resilience.model.moments import aware
from resilience.model.objectives import Objective
from resilience.model.show import Shown, as_bytes, as_span

from .chains import chain_of

GRACE = 1.5
"""A backup is late when it is half as old again as its interval: taking one takes its time too."""
FAST = 100 << 20
"""Bytes a second that a restore does not reach without somebody having measured that it does."""


@frozen(kw_only=True)
class Kept(Shown):
    """What an archive holds of a target, of all lineages. `holes` are missing from the middle of this one's log."""

    looked_at: datetime = field(validator=aware)
    manifests: tuple[Manifest, ...] = ()
    logs: tuple[LogFacts, ...] = ()
    holes: tuple[Stretch, ...] = ()


def examine_archive(
    checkup: Checkup, kept: Kept, objective: Objective
) -> tuple[tuple[Reading, ...], tuple[Finding, ...]]:
    """Hold what the archive has of a system against an objective."""
    case = _Case(checkup=checkup, kept=kept, objective=objective)
    findings = (*case.histories(), *case.backups(), *case.log(), *case.loss(), *case.time())
    return judged(case.readings(), findings), findings


@frozen(kw_only=True)
class _Case:
    """One system, what is kept of it, what was promised."""

    checkup: Checkup
    kept: Kept
    objective: Objective

    @property
    def own(self) -> Sequence[Manifest]:
        """The backups of this very system, oldest first."""
        mine = (self.checkup.system, self.checkup.lineage)
        return [each for each in self.kept.manifests if (each.system, each.lineage) == mine]

    @property
    def newest(self) -> Manifest | None:
        """The newest backup that the log continues; any other where there is none."""
        continued = [each for each in self.own if each.kind in self.checkup.replays]
        return next(reversed(continued or self.own), None)

    @property
    def facts(self) -> LogFacts | None:
        """What is known of this system's log; None if it has none."""
        found = [each for each in self.kept.logs if each.lineage == self.checkup.lineage]
        return found[0] if found and (found[0].branches or found[0].watermarks) else None

    @property
    def watermark(self) -> Watermark | None:
        """How far the branch that the system is on is durable."""
        if self.facts is None or self.checkup.position is None:
            return None
        branch = self.checkup.position.branch
        return next((each for each in self.facts.watermarks if each.branch == branch), None)

    @property
    def behind(self) -> int | None:
        """Bytes of log that the system has and the archive has not."""
        if self.checkup.position is None or self.watermark is None:
            return None
        return max(0, self.checkup.position.offset - self.watermark.ends.offset)

    @property
    def durable_at(self) -> datetime | None:
        """The last moment that can be recovered, by the system's clock; None if nothing says."""
        if self.behind == 0 and self.checkup.writes:
            return self.checkup.now
        moments = [self.watermark.complete_at] if self.watermark is not None else []
        moments += [self.newest.recovery_point.time] if self.newest is not None else []
        return max((moment for moment in moments if moment is not None), default=None)

    def readings(self) -> Iterator[Reading]:
        newest, objective = self.newest, self.objective
        yield Reading(
            name="backups",
            value=f"{len(self.own)}, newest {self._age(newest)} old" if newest is not None else "none",
            reference=f"every {as_span(objective.every)}" if objective.every is not None else "",
        )
        if self.watermark is not None:
            yield Reading(name="log", value=f"durable to {self.watermark.ends}", reference=f"{self.checkup.position}")
        elif objective.needs_log:
            yield Reading(name="log", value="none", reference="kept continuously", standing="blocker")
        lost = self.checkup.now - self.durable_at if newest is not None and self.durable_at is not None else None
        yield Reading(
            name="achieved RPO",
            value=as_span(max(timedelta(0), lost)) if lost is not None else "nothing comes back",
            reference=f"at most {as_span(objective.rpo)}",
            standing="good" if lost is not None else "blocker",
        )
        if (size := self._to_restore()) is not None:
            value = f"{as_bytes(size)} + {as_bytes(self._to_replay())} of log to replay"
            yield Reading(name="to restore", value=value, reference=f"within {as_span(objective.recovery)}")

    def histories(self) -> Iterator[Finding]:
        """Is this the system whose backups these are, and the only one?"""
        mine = self.checkup.lineage
        theirs = {each.lineage for each in self.kept.manifests} | {each.lineage for each in self.kept.logs} - {mine}
        others = ", ".join(sorted(theirs - {mine}))
        if not others:
            return
        if not self.own and self.facts is None:
            yield Finding(
                severity="blocker",
                subject="lineage",
                text=f"the archive holds nothing of this server ({mine}), only of {others}",
                hint="is this the right server? If it was made anew or upgraded: take a full backup now",
            )
            return
        last = self.kept.manifests[-1].lineage if self.kept.manifests else mine
        yield Finding(
            severity="note" if last == mine else "warning",
            subject="lineage",
            text=f"the archive also holds {others} under this name"
            + ("" if last == mine else ", with the newest backup of all: another server writes under this name"),
            hint="" if last == mine else "give each server a name of its own",
        )

    def backups(self) -> Iterator[Finding]:
        """Are there backups, as often as promised?"""
        newest, objective = self.newest, self.objective
        if newest is None:
            yield Finding(
                severity="blocker",
                subject="backups",
                text="there is none: nothing of this server can be restored",
                hint="await backup(target, archive)",
            )
            return
        full = [each for each in self.own if each.parent is None]
        every = objective.every if not self.checkup.only_full else (objective.full_every or objective.every)
        yield from self._late(newest, "backup", every, "await backup(target, archive, incremental=True)")
        if full and objective.incremental and not self.checkup.only_full:
            yield from self._late(full[-1], "full backup", objective.full_every, "await backup(target, archive)")
        try:
            chain_of(newest, self.own)
        except NotRecoverable as error:
            yield Finding(severity="blocker", subject="backups", text=error.what, hint="take a full backup now")

    def log(self) -> Iterator[Finding]:
        """Does the log continue the newest backup up to now, without a hole?"""
        if self.facts is None:
            if self.objective.needs_log and self.newest is not None:
                yield Finding(
                    severity="blocker",
                    subject="log",
                    text="the archive has none of this server: what was committed since the newest backup, "
                    f"{self._age(self.newest)} ago, would be lost",
                    hint=self.checkup.unarchived.hint if self.checkup.unarchived else "does it go to another archive?",
                )
            return
        if (position := self.checkup.position) is not None and self.watermark is None:
            known = ", ".join(branch.name for branch in self.facts.branches) or "none"
            yield Finding(
                severity="blocker",
                subject="log",
                text=f"the server is on timeline {position.branch}, the log knows {known}: nobody archives it any more",
                hint="start the archiver against this server; it follows the switch",
            )
        for hole in self.kept.holes:
            yield Finding(
                severity="blocker",
                subject="log",
                text=f"missing from {hole}, though it goes on behind it: nothing can be recovered across it",
                hint="archive the missing segments if the server still has them; else take a full backup now",
            )
        for gap in self.facts.gaps:
            yield self._gap(gap)
        yield from self._joined()

    def loss(self) -> Iterator[Finding]:
        """The RPO that a disaster now would show, against the one that was promised (R2)."""
        if self.newest is None or self.durable_at is None:
            return
        lost, rpo = self.checkup.now - self.durable_at, self.objective.rpo
        if lost <= rpo / 2:
            return
        behind = f", {as_bytes(self.behind)} behind" if self.behind else ""
        relation = ">" if lost > rpo else "of"
        yield Finding(
            severity="blocker" if lost > rpo else "warning",
            subject="achieved RPO",
            text=f"{self.checkup.now:%H:%M:%S} now - {self.durable_at:%H:%M:%S} durable = {as_span(lost)} {relation} "
            f"{as_span(rpo)}{behind}",
            hint="is the archiver running, and is the archive reachable? What it says is in its status",
        )

    def time(self) -> Iterator[Finding]:
        """The speed that a recovery within the RTO needs (R2)."""
        if (restored := self._to_restore()) is None:
            return
        budget, every = self.objective.recovery, self.objective.every
        grown = int((self.checkup.log_rate or 0) * every.total_seconds()) if every is not None else 0
        replayed = max(self._to_replay(), grown)
        speed = (restored + replayed) / budget.total_seconds()
        if speed > FAST:
            yield Finding(
                severity="warning",
                subject="to restore",
                text=f"({as_bytes(restored)} + {as_bytes(replayed)} of log) / {as_span(budget)} = "
                f"{as_bytes(int(speed))}/s, all the time: has a drill shown that?",
                hint="measure it with a restore; more frequent backups leave less to replay",
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

    def _gap(self, gap: Gap) -> Finding:
        """Judge a stretch that is lost: it does no harm to what the newest backup and the log behind it bring back."""
        newest = self.newest
        start = newest.recovery_point.position if newest is not None else None
        past = start is not None and start.branch == gap.branch and start.offset >= gap.ends.offset
        return Finding(
            severity="note" if past else "blocker",
            subject="log",
            text=f"lost from {gap} ({gap.reason}): no moment in it can be restored"
            + ("" if past else ", nor any after it, since no backup was taken after it"),
            hint="" if past else "take a full backup now",
        )

    def _joined(self) -> Iterator[Finding]:
        """Whether the log begins before the newest backup ends."""
        newest, watermark = self.newest, self.watermark
        if newest is None or watermark is None:
            return
        end = newest.recovery_point.position
        if end.branch == watermark.branch and end.offset < watermark.begins.offset and not self.facts_gap_before():
            yield Finding(
                severity="blocker",
                subject="log",
                text=f"it begins at {watermark.begins}, the newest backup ends at {end}: what lies between is missing",
                hint="take a full backup now",
            )

    def facts_gap_before(self) -> bool:
        """Whether the log's beginning is explained by a gap, which was told already."""
        watermark = self.watermark
        gaps = self.facts.gaps if self.facts is not None else ()
        return watermark is not None and any(
            gap.branch == watermark.branch and gap.ends.offset >= watermark.begins.offset for gap in gaps
        )

    def _age(self, manifest: Manifest | None) -> str:
        return as_span(self.kept.looked_at - manifest.ended_at) if manifest is not None else "unknown"

    def _to_restore(self) -> int | None:
        if self.newest is None:
            return None
        try:
            return sum(each.size for each in chain_of(self.newest, self.own))
        except NotRecoverable:
            return None

    def _to_replay(self) -> int:
        newest, watermark = self.newest, self.watermark
        if newest is None or watermark is None or newest.begins.branch != watermark.branch:
            return 0
        return max(0, watermark.ends.offset - newest.begins.offset)
