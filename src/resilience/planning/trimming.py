"""What of a log goes: what no kept backup leads to, and what something else has made superfluous.

Offsets grow along a path of branches. So from a kept backup on, everything at or after where its replay begins is
needed, on its own branch and on all that leave it later. Records of branches never go.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import accumulate

from attrs import evolve, field, frozen

from resilience.concurrency import in_order_of
from resilience.model.findings import Finding
from resilience.model.log import LogFacts, Stretch
from resilience.model.manifests import Manifest
from resilience.model.pruning import LogKept, LogTrim, PrunePlan
from resilience.model.retention import RetentionPolicy
from resilience.model.stock import LogObjects, StoredEntry

from .log import LogView, leg_of
from .window import Starts, joined, place_of

Planned = tuple[tuple[LogTrim, ...], tuple[LogKept, ...], list[Finding]]


def plan_trims(
    logs: Sequence[LogObjects],
    kept: Sequence[Manifest],
    policy: RetentionPolicy,
    *,
    now: datetime,
    starts: Starts | None = None,
    doubtful: Sequence[str] = (),
) -> Planned:
    """Decide what goes of the logs, if these backups stay that a log can be replayed on.

    With `starts` only their moments are wanted. While there are `doubtful` backups, nothing goes that they might need.
    """
    quiet = now - policy.grace
    oldest = min((each.started_at for each in kept), default=None)
    useless = None if oldest is None else min(quiet, oldest if starts is None else starts.opens)
    wanted = None if starts is None else {each.id for each in starts.bases}
    trims: list[LogTrim] = []
    kept_log: list[LogKept] = []
    for log in logs:
        own = [each for each in kept if each.lineage == log.lineage and (wanted is None or each.id in wanted)]
        one = _Trimming(log, own, quiet, useless, bool(doubtful))
        for branch in one.branches():
            more, stays = one.branch(branch)
            trims += more
            kept_log += stays
        trims += one.files()
    notes = []
    if logs and (oldest is None or doubtful):
        why = f"{doubtful[0]} cannot be read" if doubtful else "no backup is there that it could be replayed on"
        hint = "take one" if not doubtful else "look at it; once its manifest is gone, its objects are leftovers"
        notes.append(Finding(severity="warning", subject="log", text=f"all of the log stays: {why}", hint=hint))
    return tuple(each for each in trims if each.objects), tuple(kept_log), notes


@frozen
class _Trimming:
    """One lineage: `kept` are the backups whose log is wanted; what is older than `quiet` is no longer touched.

    What no kept backup leads to goes once it was written before `useless`.
    """

    log: LogObjects
    kept: Sequence[Manifest]
    quiet: datetime
    useless: datetime | None
    doubtful: bool
    view: LogView = field(init=False)
    _needs: Mapping[str, _Needs] = field(init=False)
    _before: Mapping[str, Sequence[Manifest]] = field(init=False)

    @view.default
    def _make_view(self) -> LogView:
        return LogView(facts=LogFacts(lineage=self.log.lineage, branches=self.log.branches, gaps=self.log.gaps))

    @_needs.default
    def _make_needs(self) -> Mapping[str, _Needs]:
        found: dict[str, list[Manifest]] = defaultdict(list)
        for each in self.kept:
            found[each.recovery_point.position.branch].append(each)
        return {branch: _Needs.of(some) for branch, some in found.items()}

    @_before.default
    def _make_before(self) -> Mapping[str, Sequence[Manifest]]:
        """Of a standby that followed a promotion meanwhile, the backup begins on a branch and ends on a later one."""
        found: dict[str, list[Manifest]] = defaultdict(list)
        for each in self.kept:
            here = each.recovery_point.position
            if each.begins.branch != here.branch:
                path = self.view.path(here.branch)
                first = leg_of(path, each.begins)
                for leg in () if first is None else path[first:-1]:
                    found[leg.branch].append(each)
        return found

    def branches(self) -> list[str]:
        """Return the branches that something lies of."""
        names = {*self.log.entries, *self.log.outdated, *(gap.branch for gap in self.log.gaps)}
        return sorted(names, key=lambda name: (len(name), name))

    def branch(self, name: str) -> tuple[list[LogTrim], list[LogKept]]:
        """Decide what goes of one branch."""
        entries = in_order_of(self.log.entries.get(name, ()), place_of)
        base = self._first_needed(name)
        expired, reason = self._expired(entries, base)
        gone = {*expired}
        rest = [each for each in entries if each not in gone]
        superseded = self._superseded(rest)
        trims = [
            self._trim("expired", name, expired, reason),
            self._trim("superseded", name, superseded, "whole segments have all of them"),
            self._gaps(name, rest, base),
            self._watermarks(name),
        ]
        stays = sum(each.size for each in rest) - sum(each.size for each in superseded)
        why = "all of it: no kept backup leads to it yet" if base is None else f"{base.kind} {base.id} begins there"
        begins = None if base is None else base.begins
        kept = LogKept(lineage=self.log.lineage, branch=name, begins=begins, bytes=stays, reason=why)
        return trims, [kept] if stays else []

    def _first_needed(self, branch: str) -> Manifest | None:
        """Return the kept backup that leads to a branch and begins first; None if none does."""
        found = []
        for leg in self.view.path(branch):
            needs = self._needs.get(leg.branch)
            first = needs.until(leg.until.offset if leg.until is not None else None) if needs is not None else None
            if first is not None:
                found.append(first)
        found += self._before.get(branch, ())
        return min(found, key=lambda each: (each.begins.offset, each.id), default=None)

    def _expired(self, entries: Sequence[StoredEntry], base: Manifest | None) -> tuple[list[StoredEntry], str]:
        if self.doubtful or self.useless is None:
            return [], ""
        if base is not None:
            reason = f"before {base.kind} {base.id}, the oldest kept one that leads on"
            return [each for each in entries if each.ends <= base.begins.offset], reason
        expired = []
        for each in entries:
            if each.modified >= self.useless:
                break
            expired.append(each)
        return expired, "no kept backup leads to it, and all that are kept are younger"

    def _superseded(self, entries: Iterable[StoredEntry]) -> list[StoredEntry]:
        whole = sorted(each for each in entries if each.segment is None and each.modified < self.quiet)
        begins = [each.begins for each in whole]
        superseded = []
        for each in entries:
            if each.segment is not None:
                at = bisect_right(begins, each.begins) - 1
                if at >= 0 and each.ends <= whole[at].ends:
                    superseded.append(each)
        return superseded

    def _gaps(self, branch: str, rest: Sequence[StoredEntry], base: Manifest | None) -> LogTrim:
        first = min((each.begins for each in rest), default=None)
        limits = [offset for offset in (first, None if base is None else int(base.begins.offset)) if offset is not None]
        passed = [
            Stretch(begins=gap.begins, ends=gap.ends)
            for gap in self.log.gaps
            if gap.branch == branch
            and not self.doubtful
            and self.useless is not None
            and gap.noted_at < self.quiet
            and (gap.ends.offset <= min(limits) if limits else gap.noted_at < self.useless)
        ]
        return LogTrim(
            what="gaps",
            lineage=self.log.lineage,
            branch=branch,
            stretches=tuple(passed),
            objects=len(passed),
            reason="nothing of the log before them is kept",
        )

    def _watermarks(self, branch: str) -> LogTrim:
        old = [each for each in self.log.outdated.get(branch, ()) if each.modified < self.quiet]
        return LogTrim(
            what="watermarks",
            lineage=self.log.lineage,
            branch=branch,
            before=self.quiet,
            objects=len(old),
            bytes=sum(each.size for each in old),
            reason="a newer one says how far the log is durable",
        )

    def files(self) -> list[LogTrim]:
        """Decide about the files beside the log; a `.history` file never goes."""
        if self.doubtful or self.useless is None:
            return []
        old = [each for each in self.log.files if each.modified < self.useless and not each.name.endswith(".history")]
        return [
            LogTrim(
                what="files",
                lineage=self.log.lineage,
                before=self.useless,
                objects=len(old),
                bytes=sum(each.size for each in old),
                reason="older than every kept backup",
            )
        ]

    def _trim(self, what: str, branch: str, entries: Sequence[StoredEntry], reason: str) -> LogTrim:
        return LogTrim(
            what="expired" if what == "expired" else "superseded",
            lineage=self.log.lineage,
            branch=branch,
            stretches=joined(branch, entries),
            objects=len(entries),
            bytes=sum(each.size for each in entries),
            reason=reason,
        )


def _first(one: Manifest, other: Manifest) -> Manifest:
    return one if one.begins.offset <= other.begins.offset else other


@frozen
class _Needs:
    """The kept backups on one branch, by what they restore to, and of each run of the first of them the earliest."""

    points: Sequence[int]
    earliest: Sequence[Manifest]

    @staticmethod
    def of(some: Iterable[Manifest]) -> _Needs:
        ordered = sorted(some, key=lambda each: (each.recovery_point.position.offset, each.id))
        earliest = accumulate(ordered, _first)
        return _Needs([each.recovery_point.position.offset for each in ordered], tuple(earliest))

    def until(self, offset: int | None) -> Manifest | None:
        """Return the one that begins first among those that restore to an offset at most."""
        count = len(self.points) if offset is None else bisect_right(self.points, offset)
        return self.earliest[count - 1] if count else None


def common_trims(one: PrunePlan, other: PrunePlan) -> tuple[LogTrim, ...]:
    """Return what both plans remove of the log; what only one of them removes stays."""
    found = {(each.what, each.lineage, each.branch): each for each in other.log}
    both = []
    for each in one.log:
        again = found.get((each.what, each.lineage, each.branch))
        if again is not None:
            if each.what == "gaps":
                same = {(it.begins.offset, it.ends.offset) for it in again.stretches}
                stretches = tuple(it for it in each.stretches if (it.begins.offset, it.ends.offset) in same)
            else:
                stretches = intersection(each.stretches, again.stretches)
            before = None if each.before is None or again.before is None else min(each.before, again.before)
            if stretches or before is not None:
                both.append(evolve(each, stretches=stretches, before=before))
    return tuple(both)


def intersection(some: Sequence[Stretch], others: Sequence[Stretch]) -> tuple[Stretch, ...]:
    """Return what lies in both, of stretches of one branch that are in order and do not overlap."""
    found = []
    left, right = 0, 0
    while left < len(some) and right < len(others):
        one, other = some[left], others[right]
        begins = max(one.begins, other.begins, key=lambda at: at.offset)
        ends = min(one.ends, other.ends, key=lambda at: at.offset)
        if begins.offset < ends.offset:
            found.append(Stretch(begins=begins, ends=ends))
        if one.ends.offset <= other.ends.offset:
            left += 1
        else:
            right += 1
    return tuple(found)
