"""Which backups and which stretches of the log lead to a recovery target, or why none do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime

from attrs import evolve, field, frozen

from resilience.model.errors import NoBackup, NotRecoverable
from resilience.model.findings import Finding
from resilience.model.log import LogEntry, Stretch
from resilience.model.manifests import Manifest
from resilience.model.positions import Position
from resilience.model.show import as_bytes, when
from resilience.model.targets import RecoveryTarget

from .chains import broken_chains, chain_of
from .log import Leg, LogView, Path, Step, clock_jumps, on_path

_NEVER = datetime(1, 1, 1, tzinfo=UTC)
_JUMPED = "the server's clock went back while this was written, so a moment may name two places"


@frozen(kw_only=True)
class Course:
    """What leads to a target: backups, oldest first, and what of the log is to be replayed after them.

    `replay`, `to_the_end` and `replayed` mean what they mean in a `RestorePlan`; `steps` are the runs it lies in.
    """

    until: RecoveryTarget
    chain: tuple[Manifest, ...]
    steps: tuple[Step, ...] = field(default=(), repr=False)
    replay: tuple[Stretch, ...] = ()
    to_the_end: bool = True
    replayed: int = 0
    findings: tuple[Finding, ...] = ()

    @property
    def branch(self) -> str:
        """The branch to end on."""
        return self.replay[-1].branch if self.replay else self.chain[-1].recovery_point.position.branch


@frozen(kw_only=True)
class Holdings:
    """What an archive has of one lineage of a target: `backups` that a log can be replayed on, and the log.

    `known` are all backups, `broken` says of some why they cannot be used.
    """

    target: str
    known: tuple[Manifest, ...] = field(repr=False)
    backups: tuple[Manifest, ...]
    view: LogView
    broken: tuple[Finding, ...] = ()

    def decide(self, until: RecoveryTarget) -> Course:
        """Find what leads to a target. Raises NotRecoverable with the reason, NoBackup if its base is not there."""
        self._check_base(until)
        if until.kind == "latest":
            return self._latest(until)
        courses: dict[str, Course] = {}
        refused: list[NotRecoverable] = []
        for path in self.paths(until):
            try:
                course = self._on_path(until, path)
            except NotRecoverable as error:
                refused.append(error)
            else:
                courses.setdefault(course.branch, course)
        if not courses:
            raise refused[0]
        if len(courses) > 1:
            raise self._ambiguous(until, courses)
        (course,) = courses.values()
        notes = self._others(course.branch, "note") if refused else []
        return evolve(course, findings=(*course.findings, *notes))

    def _check_base(self, until: RecoveryTarget) -> None:
        if until.base is None or until.base in {each.id for each in self.backups}:
            return
        if until.base not in {each.id for each in self.known}:
            raise NoBackup(f"there is no backup {until.base}", operation="restore", subject=self.target)
        why = next((each.text for each in self.broken if each.subject == until.base), "no log can be replayed on it")
        raise self._refusal(f"backup {until.base} cannot be the base: {why}", "name another one, or none")

    def begins(self, until: RecoveryTarget) -> int:
        """Return from where on the log has to be known to decide. Raises NotRecoverable as `decide` does."""
        names = [until.branch] if until.branch else sorted({*self.view.names, *self._with_backups()})
        newest = [found[-1] for name in names if (found := self._bases(until, self.view.path(name)))]
        return min((base.begins.offset for base in newest), default=0)

    def paths(self, until: RecoveryTarget) -> list[Path]:
        """Return the ways the history took that a target may lie on, the one that moved most recently first."""
        known = {*self.view.names, *self._with_backups()}
        if until.branch is not None:
            if until.branch not in known:
                there = ", ".join(sorted(known, key=lambda name: (len(name), name))) or "none"
                raise self._refusal(f"there is no timeline {until.branch}", f"the archive knows {there}")
            return [self.view.path(until.branch)]
        paths = [self.view.path(name) for name in self.leaves()]
        if not paths:
            raise self._refusal("the archive holds neither a usable backup nor a log of it", "take a backup")
        return paths

    def leaves(self) -> list[str]:
        """Return the branches that have something which no other branch goes on from, the last moved first."""
        ends = {name: end for name in {*self.view.names, *self._with_backups()} if (end := self._end(name)) is not None}
        followed = {
            leg.branch
            for name in ends
            for leg in self.view.path(name)[:-1]
            if leg.until is not None and ends.get(leg.branch, 0) <= leg.until.offset
        }
        return sorted(set(ends) - followed, key=lambda name: (self._moved(name), len(name), name), reverse=True)

    def _latest(self, until: RecoveryTarget) -> Course:
        path = self.paths(until)[0]
        branch = path[-1].branch
        if self._end(branch) is None:
            raise self._refusal(f"the archive holds nothing of timeline {branch}", "name another timeline")
        base = self._base(until, path)
        steps = self.view.follow(path, base.recovery_point.position)
        end = steps[-1].ends if steps else base.recovery_point.position
        if (hole := self.view.hole(path, end)) is not None:
            raise self._refusal(
                f"the log goes on after a hole that no backup bridges: {hole}",
                f"{_until(end, hole.after)} it can be restored, if you ask for that: "
                + (f"RecoveryTarget.lsn({end.text!r})" if steps else f"RecoveryTarget.backup({base.id!r})"),
            )
        findings = [] if until.branch else self._others(branch, "warning")
        if not steps and self.view.of(branch):
            findings.append(self._say("note", "its log ends before the newest backup, which is restored alone"))
        return self._course(until, base, steps, to_the_end=True, findings=findings)

    def _on_path(self, until: RecoveryTarget, path: Path) -> Course:
        if until.moment is not None:
            return self._time(until, path, until.moment)
        if until.offset is not None:
            return self._position(until, path, until.offset)
        return self._by_looking(until, path)

    def _time(self, until: RecoveryTarget, path: Path, moment: datetime) -> Course:
        base = self._base(until, path)
        steps = self.view.follow(path, base.recovery_point.position)
        for step in steps:
            if step.complete_at is not None and step.complete_at >= moment:
                return self._at_time(until, base, self._up_to(path, step, base), moment)
        end = steps[-1].ends if steps else base.recovery_point.position
        known = steps[-1].complete_at if steps else base.recovery_point.time
        if (hole := self.view.hole(path, end)) is not None:
            later = [each for each in self.on(path) if each.recovery_point.position.offset >= hole.ends.offset]
            hint = f"the next backup after it, {_named(later[0])}" if later else "no backup was taken after it"
            raise self._refusal(
                f"{until} lies in a hole of the log or after one: {hole}",
                f"{_until(end, hole.after)} and from the end of the next backup on it can be restored: {hint}",
            )
        if not steps:
            raise self._refusal(
                f"{until} lies after {_named(base)}, and the archive has no log that goes on from it",
                f"restore that backup alone with RecoveryTarget.backup({base.id!r})",
            )
        if known is None:
            raise self._refusal(
                f"the log does not say when it was written, so nobody can tell whether {until} is in it",
                "name an LSN, or restore the latest",
            )
        raise self._refusal(
            f"{until} lies beyond what the archive holds: its log is complete until {when(known)}, {end}",
            "wait until it has been archived, or ask for RecoveryTarget.latest()",
        )

    def _at_time(self, until: RecoveryTarget, base: Manifest, steps: Sequence[Step], moment: datetime) -> Course:
        entries = [entry for step in steps for entry in step.run.entries]
        jumped = clock_jumps(entries)
        over = all(entry.latest <= moment for entry in entries if entry.latest is not None)
        warned = [self._say("warning", _JUMPED, "name an LSN to be sure")] if jumped else []
        ended = over and not jumped and steps[-1].run.latest is not None
        return self._course(until, base, steps, to_the_end=ended, findings=warned, stop=_passes(entries, moment))

    def _position(self, until: RecoveryTarget, path: Path, offset: int) -> Course:
        number = next(number for number, leg in enumerate(path) if leg.holds(offset))
        base = self._base(until, path)
        here = base.recovery_point.position
        if here.offset == offset:
            return self._course(until, base, (), to_the_end=True)
        steps: list[Step] = []
        for way in ((*path[:number], Leg(path[number].branch)), path):
            steps = self.view.follow(way, here)
            if steps and steps[-1].ends.offset >= offset:
                return self._course(until, base, steps, to_the_end=steps[-1].ends.offset == offset, stop=offset)
        end = steps[-1].ends if steps else here
        if (hole := self.view.hole(path, end)) is not None and hole.begins.offset < offset:
            raise self._refusal(
                f"{until} lies in a hole of the log or after one: {hole}",
                f"{_until(end, hole.after)} it can be restored, and from a backup on that was taken after the hole",
            )
        raise self._refusal(
            f"{until} lies beyond what the archive holds: " + (f"its log ends at {end}" if steps else f"{end}, no log"),
            "wait until it has been archived, or ask for RecoveryTarget.latest()",
        )

    def _by_looking(self, until: RecoveryTarget, path: Path) -> Course:
        base = self._base(until, path)
        steps = self.view.follow(path, base.recovery_point.position)
        if not steps:
            raise self._refusal(
                f"the archive has no log that goes on from {_named(base)}, so {until} cannot be looked for",
                "name another backup with base=, or restore the latest",
            )
        findings = [self._say("note", f"{until} is looked for after {_named(base)}", "base= names an older backup")]
        if (hole := self.view.hole(path, steps[-1].ends)) is not None:
            findings.append(self._say("warning", f"it is not looked for after a hole of the log: {hole}"))
        return self._course(until, base, steps, to_the_end=False, findings=findings)

    def _course(
        self,
        until: RecoveryTarget,
        base: Manifest,
        steps: Sequence[Step],
        *,
        to_the_end: bool,
        findings: Iterable[Finding] = (),
        stop: int | None = None,
    ) -> Course:
        needed = [step for step in steps if step.stretch.size]
        replay = [step.stretch for step in needed]
        replayed = 0
        if replay:
            replay[0] = _from(needed[0], base.begins)
            ends = replay[-1].ends.offset
            replayed = (ends if stop is None else min(stop, ends)) - replay[0].begins.offset
        newer = [each for each in self.broken if each.subject > base.id]
        return Course(
            until=until,
            chain=chain_of(base, self.known),
            steps=tuple(steps),
            replay=tuple(replay),
            to_the_end=to_the_end or not replay,
            replayed=max(0, replayed),
            findings=(*newer, *findings),
        )

    def _base(self, until: RecoveryTarget, path: Path) -> Manifest:
        """Return the newest backup on a path that a target can be reached from. Raises NotRecoverable."""
        if bases := self._bases(until, path):
            return bases[-1]
        branch = path[-1].branch
        if until.base is not None:
            raise self._refusal(f"{until} cannot be reached from backup {until.base}", "name another one, or none")
        if not (there := self.on(path)):
            raise self._refusal(f"no usable backup lies on the way to timeline {branch}", "name another timeline")
        if until.kind == "transaction":
            raise self._refusal(
                f"no backup is known to have been taken before {until} began",
                f"the id has 64 bits, as pg_current_xact_id() shows it; base={there[0].id!r} names the earliest backup",
            )
        raise self._refusal(
            f"{until} lies before the earliest backup, {_named(there[0])}", "nothing before it can be restored"
        )

    def _bases(self, until: RecoveryTarget, path: Path) -> list[Manifest]:
        return [each for each in self.on(path) if _precedes(each, until)]

    def on(self, path: Path) -> list[Manifest]:
        """Return the backups on a path, in the order of what they bring back."""
        return on_path(self.backups, path)

    def _up_to(self, path: Path, step: Step, base: Manifest) -> list[Step]:
        """Return the way to a step whose end is certain to lie after the target, on that step's own branch."""
        way = (*path[: step.leg], Leg(path[step.leg].branch))
        return self.view.follow(way, base.recovery_point.position)

    def _with_backups(self) -> set[str]:
        return {each.recovery_point.position.branch for each in self.backups}

    def _end(self, branch: str) -> int | None:
        """Return how far the archive has anything of a branch."""
        points = (each.recovery_point.position for each in self.backups)
        ends = [point.offset for point in points if point.branch == branch]
        return max([*ends, *(run.ends.offset for run in self.view.of(branch))], default=None)

    def _moved(self, branch: str) -> datetime:
        taken = [each.ended_at for each in self.backups if each.recovery_point.position.branch == branch]
        found = self.view.of(branch)[-1:]
        times = [moment for run in found for moment in (run.complete_at(), run.latest) if moment is not None]
        return max([*taken, *times], default=_NEVER)

    def _others(self, branch: str, severity: str) -> list[Finding]:
        """Say which other branches have something that the one to end on does not go on from."""
        path = {leg.branch: leg.until for leg in self.view.path(branch)}
        findings = []
        for name in self.leaves():
            if name == branch or (fork := path.get(name, ...)) is None:
                continue
            moved = self._moved(name)
            behind = self._end(name) or 0
            more = f", {as_bytes(behind - fork.offset)} after {fork}" if isinstance(fork, Position) else ""
            time = f" until {when(moved)}" if moved != _NEVER else ""
            text = f"timeline {name} has been written{time}{more}: none of that is part of timeline {branch}"
            loud = severity == "warning"
            findings.append(self._say("warning" if loud else "note", text, f"timeline={name!r} would choose it"))
        return findings

    def _ambiguous(self, until: RecoveryTarget, courses: Mapping[str, Course]) -> NotRecoverable:
        names = sorted(courses, key=lambda name: (len(name), name))
        where = "exists" if until.moment or until.offset is not None else "may be"
        return self._refusal(
            f"{until} {where} on timelines {' and '.join(names)}",
            f"say which one: timeline={names[0]!r} or timeline={names[-1]!r}",
        )

    def _say(self, severity: str, text: str, hint: str = "") -> Finding:
        return Finding(
            severity="warning" if severity == "warning" else "note", subject=self.target, text=text, hint=hint
        )

    def _refusal(self, what: str, hint: str) -> NotRecoverable:
        return NotRecoverable(what, operation="restore", subject=self.target, hint=hint)


def holdings(target: str, known: Sequence[Manifest], view: LogView, *, kinds: Sequence[str]) -> Holdings:
    """Sort out which backups of a log's lineage can be used: those of `kinds` whose chain is whole."""
    own = [each for each in known if each.lineage == view.facts.lineage and each.kind in kinds]
    why = broken_chains(known)
    usable = [each for each in own if each.id not in why]
    broken = [
        Finding(severity="warning", subject=each.id, text=f"not usable: {why[each.id]}")
        for each in own
        if each.id in why
    ]
    return Holdings(target=target, known=tuple(known), backups=tuple(usable), view=view, broken=tuple(broken))


def _precedes(base: Manifest, until: RecoveryTarget) -> bool:
    """Tell whether a backup ends where the target can still be reached from it."""
    if until.base is not None and base.id != until.base:
        return False
    point = base.recovery_point
    if until.moment is not None:
        return settled_at(base) <= until.moment
    if until.offset is not None:
        return point.position.offset <= until.offset
    if until.kind == "transaction" and until.base is None:
        following = base.details.get("next_xid")
        return isinstance(following, str) and following.isdecimal() and int(following) <= int(until.value)
    return True


def settled_at(base: Manifest) -> datetime:
    """Return a moment from which on everything committed lies behind what a backup restores to.

    Moments are told by the server's clock, and `ended_at` is told by that of the host which took the backup. If the
    server's was ahead of it, as the survey just before the start has seen, then all of it was that much later.
    """
    times = [base.ended_at, base.recovery_point.time or base.ended_at]
    with suppress(TypeError, ValueError):
        ahead = datetime.fromisoformat(str(base.details.get("server_time"))) - base.started_at
        times.append(base.ended_at + ahead)
    return max(times)


def _from(step: Step, begins: Position) -> Stretch:
    """Return the stretch of a step from where the replay begins, if the log has that too."""
    stretch = step.stretch
    if begins.offset >= stretch.begins.offset:
        return stretch
    earlier = begins if begins.offset >= step.run.begins.offset else step.run.begins
    return evolve(stretch, begins=evolve(earlier, branch=stretch.branch))


def _passes(entries: Iterable[LogEntry], moment: datetime) -> int | None:
    """Return how far the log has been written at a moment, as far as entries are described."""
    return next((e.ends.offset for e in entries if e.complete_at is not None and e.complete_at >= moment), None)


def _named(base: Manifest) -> str:
    return f"{base.kind} {base.id}, which ended at {when(base.ended_at)} and restores to {base.recovery_point}"


def _until(end: Position, complete: datetime | None) -> str:
    return f"until {when(complete)}, {end}," if complete else f"up to {end}"
