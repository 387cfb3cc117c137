"""What a log covers: its runs without a hole, the branches that lead to one another, and how far one can follow them.

A branch's entries begin at the start of the segment that it left its parent in, with a copy of the parent's bytes. So
what is covered on a path of branches is what any of them has of it, each up to where the next one leaves it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import pairwise

from attrs import evolve, field, frozen

from resilience.concurrency import in_order_of
from resilience.model.log import Branch, Gap, Hole, LogEntry, LogFacts, Stretch
from resilience.model.manifests import Manifest
from resilience.model.positions import Position


@frozen(kw_only=True)
class Run(Stretch):
    """Entries of one branch that follow each other without a hole, oldest first; some of them may be described."""

    entries: tuple[LogEntry, ...] = field(repr=False)

    @property
    def latest(self) -> datetime | None:
        """Nothing in it was written later; None if its last entry does not say."""
        return self.entries[-1].latest

    def complete_at(self, until: int | None = None) -> datetime | None:
        """Return a moment: all that was acknowledged before it lies before `until` (or the end); None if unknown."""
        limit = self.ends.offset if until is None else min(until, self.ends.offset)
        for entry in reversed(self.entries):
            if entry.complete_at is not None and entry.ends.offset <= limit:
                return entry.complete_at
        return None

    def described(self, told: Callable[[LogEntry], LogEntry]) -> Run:
        """Return it with what is `told` of its entries; where it begins and ends is written as they write it."""
        entries = tuple(map(told, self.entries))
        first, last = entries[0].begins, entries[-1].ends
        return Run(
            begins=first if first.offset == self.begins.offset else self.begins,
            ends=last if last.offset == self.ends.offset else self.ends,
            entries=entries,
        )


@frozen
class Leg:
    """A branch on a path, up to where the next one leaves it (None: to its end)."""

    branch: str
    until: Position | None = None

    def holds(self, offset: int) -> bool:
        """Tell whether a position lies before the next branch leaves this one."""
        return self.until is None or offset <= self.until.offset


Path = tuple[Leg, ...]


@frozen
class Step:
    """A stretch of the leg of that number, covered by a run; empty where the log goes exactly so far."""

    leg: int
    run: Run
    stretch: Stretch

    @property
    def ends(self) -> Position:
        """Where it ends."""
        return self.stretch.ends

    @property
    def complete_at(self) -> datetime | None:
        """All that was acknowledged before this moment lies before its end."""
        return self.run.complete_at(self.ends.offset)


def runs(entries: Iterable[LogEntry], gaps: Iterable[Gap] = ()) -> tuple[Run, ...]:
    """Join the entries of one branch to runs. What was acknowledged as lost is lost, whatever entries have of it."""
    found: list[list[LogEntry]] = []
    reach = -1
    for entry in in_order_of([*entries], lambda each: (each.begins.offset, each.ends.offset)):
        if found and entry.begins.offset <= reach:
            found[-1].append(entry)
        else:
            found.append([entry])
            reach = -1
        reach = max(reach, entry.ends.offset)
    joined = [_run(each) for each in found]
    for gap in gaps:
        joined = [piece for run in joined for piece in _without(run, gap)]
    return tuple(joined)


@frozen(kw_only=True)
class LogView:
    """The log of one lineage as it was listed: `runs` of every branch, in order."""

    facts: LogFacts
    runs: Mapping[str, tuple[Run, ...]] = field(factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The branches that are recorded, and those that they came from."""
        recorded = [branch.name for branch in self.facts.branches]
        parents = [branch.parent for branch in self.facts.branches if branch.parent is not None]
        return tuple(dict.fromkeys([*recorded, *parents]))

    def branch(self, name: str) -> Branch | None:
        """Return what is recorded of a branch."""
        return next((branch for branch in self.facts.branches if branch.name == name), None)

    def of(self, name: str) -> tuple[Run, ...]:
        """Return the runs of a branch."""
        return self.runs.get(name, ())

    def path(self, name: str) -> Path:
        """Return the branches that lead to one, the oldest first, as far back as they are recorded."""
        legs = [Leg(name)]
        while (branch := self.branch(legs[0].branch)) is not None and branch.parent is not None:
            if any(leg.branch == branch.parent for leg in legs):
                break  # a record that leads back to itself leads nowhere
            fork = branch.forked_at
            if fork is not None and legs[0].until is not None and legs[0].until.offset < fork.offset:
                # It was left before it had begun: whoever followed it stopped on its parent already.
                fork = evolve(legs[0].until, branch=branch.parent)
            legs.insert(0, Leg(branch.parent, fork))
        return tuple(legs)

    def follow(self, path: Path, start: Position) -> list[Step]:
        """Return what the log has of a path from `start` on, in order, up to the first hole."""
        first = leg_of(path, start)
        steps: list[Step] = []
        at = start
        for number, leg in enumerate(path):
            if first is None or number < first:
                continue
            for run in self.of(leg.branch):
                ends = run.ends if leg.until is None or run.ends.offset <= leg.until.offset else leg.until
                if run.begins.offset <= at.offset <= ends.offset:
                    begins, at = evolve(at, branch=leg.branch), evolve(ends, branch=leg.branch)
                    steps.append(Step(number, run, Stretch(begins=begins, ends=at)))
        return steps

    def hole(self, path: Path, at: Position) -> Hole | None:
        """Return the first hole at or after a position where `follow` ended; None if there the log ends."""
        first = leg_of(path, at) or 0
        behind = [
            run
            for leg in path[first:]
            for run in self.of(leg.branch)
            if run.begins.offset > at.offset and leg.holds(run.begins.offset)
        ]
        if not behind:
            return None
        nearest = min(behind, key=lambda run: run.begins.offset)
        before = [
            (run.ends.offset, moment)
            for leg in path[: first + 1]
            for run in self.of(leg.branch)
            if run.begins.offset <= at.offset and (moment := run.complete_at(at.offset)) is not None
        ]
        return Hole(
            begins=at,
            ends=nearest.begins,
            reason=self.reason(at, nearest.begins, {leg.branch for leg in path}),
            after=max(before)[1] if before else None,
            before=nearest.entries[0].latest,
        )

    def reason(self, begins: Position, ends: Position, branches: Collection[str]) -> str:
        """Return why a stretch was acknowledged as lost; empty if it was not."""
        return "; ".join(
            gap.reason
            for gap in self.facts.gaps
            if gap.branch in branches and gap.begins.offset < ends.offset and gap.ends.offset > begins.offset
        )


def leg_of(path: Path, position: Position) -> int | None:
    """Return the number of the leg that a position lies on; None if it lies on none."""
    for number, leg in enumerate(path):
        if leg.branch == position.branch:
            return number if leg.holds(position.offset) else None
    return None


def on_path(backups: Iterable[Manifest], path: Path) -> list[Manifest]:
    """Return the backups on a path, in the order of what they bring back."""
    legs: list[list[Manifest]] = [[] for _ in path]
    numbers = {leg.branch: number for number, leg in reversed([*enumerate(path)])}
    for each in backups:
        here = each.recovery_point.position
        number = numbers.get(here.branch)
        if number is not None and path[number].holds(here.offset):
            legs[number].append(each)
    return [each for some in legs for each in in_order_of(some, _order)]


def _order(each: Manifest) -> tuple[int, datetime, str]:
    return each.recovery_point.position.offset, each.ended_at, each.id


def heads_wanted(view: LogView) -> list[LogEntry]:
    """Return the entries whose times a decision may need: both ends of every run, and what precedes every fork."""
    forks: dict[str, list[int]] = {}
    for branch in view.facts.branches:
        if branch.parent is not None and branch.forked_at is not None:
            forks.setdefault(branch.parent, []).append(branch.forked_at.offset)
    wanted: dict[LogEntry, None] = {}
    for name, found in view.runs.items():
        for run in found:
            wanted.update(dict.fromkeys((run.entries[0], run.entries[-1])))
            for fork in forks.get(name, ()):
                if (before := [entry for entry in run.entries if entry.ends.offset <= fork]) != []:
                    wanted[before[-1]] = None
    return list(wanted)


def with_heads(view: LogView, heads: Mapping[LogEntry, LogEntry]) -> LogView:
    """Return the view with what the heads of some entries say, and what the watermarks say of where entries end.

    While a server is idle nothing is appended: only the watermark says that it is still complete.
    """
    complete = {(each.branch, each.ends.offset): each.complete_at for each in view.facts.watermarks}

    def told(entry: LogEntry) -> LogEntry:
        head = heads.get(entry, entry)
        known, later = head.complete_at, complete.get((head.branch, head.ends.offset))
        return head if later is None or (known is not None and known >= later) else evolve(head, complete_at=later)

    return evolve(view, runs={name: tuple(run.described(told) for run in found) for name, found in view.runs.items()})


def clock_jumps(entries: Sequence[LogEntry]) -> bool:
    """Tell whether the server's clock went back between entries whose times are known."""
    known = [entry.latest for entry in entries if entry.latest is not None]
    return any(later < earlier for earlier, later in pairwise(known))


def _run(entries: Sequence[LogEntry]) -> Run:
    last = max(entries, key=lambda entry: entry.ends.offset)
    ordered = in_order_of(entries, lambda entry: (entry.ends.offset, entry.begins.offset))
    return Run(begins=entries[0].begins, ends=last.ends, entries=tuple(ordered))


def _without(run: Run, gap: Gap) -> list[Run]:
    """Return what remains of a run where a gap was acknowledged."""
    first, last = gap.begins.offset, gap.ends.offset
    if gap.branch != run.branch or last <= run.begins.offset or first >= run.ends.offset:
        return [run]
    pieces = []
    before = tuple(entry for entry in run.entries if entry.begins.offset < first)
    behind = tuple(entry for entry in run.entries if entry.ends.offset > last)
    if run.begins.offset < first and before:
        pieces.append(Run(begins=run.begins, ends=gap.begins, entries=before))
    if last < run.ends.offset and behind:
        pieces.append(Run(begins=gap.ends, ends=run.ends, entries=behind))
    return pieces
