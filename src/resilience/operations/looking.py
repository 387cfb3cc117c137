"""Looks into an archive and decides which backups and which stretches of the log lead to a target."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

from attrs import define, evolve, field, frozen

from resilience.concurrency import closing, in_thread, let_go, pondered, uncollected
from resilience.model.errors import Corrupt, KeyMissing, NotRehydrated, ResilienceError, Unsupported
from resilience.model.findings import Doubt, Finding
from resilience.model.log import LogEntry, LogFacts, Stretch
from resilience.model.manifests import Manifest
from resilience.model.measured import RestoreMeasured
from resilience.model.targets import RecoveryTarget
from resilience.planning.course import Course, Holdings, holdings
from resilience.planning.doubts import as_findings, explained, refuse_asked_for, refuse_doubtful
from resilience.planning.log import LogView, heads_wanted, runs, with_heads
from resilience.planning.restore import alone, lineage_for
from resilience.primitives import Archiver, Log, RestoreDestination

Live = TypeVar("Live")


@frozen
class Decided:
    """What leads to a target, and the log that continues it, also where nothing of it is replayed; None without one."""

    course: Course
    log: Log | None = None


@asynccontextmanager
async def known_backups(archive: Archiver, target: str, doubts: list[Doubt]) -> AsyncIterator[list[Manifest]]:
    """Read all manifests of a target, and let go of them on leaving: there may be a hundred thousand."""
    with uncollected():
        known = [manifest async for manifest in archive.manifests(target, doubts=doubts)]
        try:
            yield known
        finally:
            await let_go(known)


@asynccontextmanager
async def decided(
    archive: Archiver, target: str, *, into: RestoreDestination[Live], until: RecoveryTarget
) -> AsyncIterator[Decided]:
    """Decide how `until` is reached, and hold the log open. Raises NoBackup or NotRecoverable with the reason.

    Backups that cannot be used are findings, unless one of them could change the answer.
    """
    doubts: list[Doubt] = []
    async with AsyncExitStack() as opened:
        async with known_backups(archive, target, doubts) as known:
            refuse_asked_for(until, known, doubts, target=target)
            looking = _Looking(archive, target, known, doubts, opened)
            found = await looking.decide(until, into=into)
        yield found


@frozen
class _Looking:
    """What is known while it is looked for a way to a target; the log stays open in `opened`."""

    archive: Archiver
    target: str
    known: Sequence[Manifest] = field(repr=False)
    doubts: list[Doubt]
    opened: AsyncExitStack

    async def decide(self, until: RecoveryTarget, *, into: RestoreDestination[Live]) -> Decided:
        """Choose between backups alone and with the log of their lineage."""
        logs = await self.archive.lineages(self.target)
        kinds = [kind for kind in into.accepts if kind in into.replays]
        lineage, findings = lineage_for(until, self.known, logs) if self.known else ("", [])
        own = [each for each in self.known if each.lineage == lineage]
        replayable = any(each.kind in kinds and each.system == into.system for each in own)
        if until.kind != "backup" and lineage in logs and replayable:
            log = await self._log(into.system, lineage)
            course = await self._with_log(log, until, kinds)
            return Decided(evolve(course, findings=(*findings, *course.findings, *as_findings(self.doubts))), log)
        some = self.known if until.kind == "backup" else own
        with explained(self.doubts):
            course = await pondered(alone, until, some, target=self.target, system=into.system, accepts=into.accepts)
        refuse_doubtful(course, self.known, self.doubts, None)
        course = evolve(course, findings=(*findings, *course.findings, *as_findings(self.doubts)))
        last = course.chain[-1]
        continued = last.kind in kinds and last.lineage in logs
        return Decided(course, await self._log(into.system, last.lineage) if continued else None)

    async def _with_log(self, log: Log, until: RecoveryTarget, kinds: Sequence[str]) -> Course:
        facts = await log.survey()
        # Of a hundred thousand backups that takes a second: the event loop does not wait for it.
        held = await pondered(holdings, self.target, self.known, LogView(facts=facts), kinds=kinds)
        heads = Heads(log)
        with explained(self.doubts):
            view = await listed(log, facts, heads, begins=await in_thread(held.begins, until))
            held = evolve(held, view=view)
            course = await _decide(heads, held, until)
        refuse_doubtful(course, self.known, self.doubts, facts)
        heads.refuse(course)
        return evolve(course, findings=(*course.findings, *heads.findings))

    async def _log(self, system: str, lineage: str) -> Log:
        return await self.opened.enter_async_context(self.archive.log(self.target, system=system, lineage=lineage))


async def shown_by_restores(archive: Archiver, target: str) -> tuple[RestoreMeasured, ...]:
    """Return what restores have measured; nothing fails for want of an estimate."""
    try:
        return await archive.measured(target)
    except ResilienceError as error:
        logging.getLogger("resilience").warning("what restores have measured cannot be read: %s", error)
        return ()


@define
class Heads:
    """Reads the heads of entries. Of one that is damaged the times are not known; `findings` says so."""

    log: Log
    findings: list[Finding] = field(factory=list, init=False)
    _unreadable: dict[LogEntry, ResilienceError] = field(factory=dict, init=False)

    async def read(self, entries: Iterable[LogEntry]) -> dict[LogEntry, LogEntry]:
        """Return what the heads of entries say, without those that cannot be read."""
        return {entry: head for entry in entries if (head := await self._read(entry)) is not None}

    async def _read(self, entry: LogEntry) -> LogEntry | None:
        if entry in self._unreadable:
            return None
        try:
            return await self.log.describe(entry)
        except (Corrupt, NotRehydrated, KeyMissing, Unsupported) as error:
            self._unreadable[entry] = error
            text = f"when this part of the log was written is not known: {error.what}"
            hint = "what lies before it can be restored; take a backup, so that nothing later depends on it"
            if isinstance(error, NotRehydrated):
                hint = "rehydrate() makes it readable; then plan again"
            if isinstance(error, KeyMissing | Unsupported):
                hint = error.hint
            self.findings.append(Finding(severity="warning", subject=error.subject or str(entry), text=text, hint=hint))
            return None

    def refuse(self, course: Course) -> None:
        """Raise KeyMissing or Unsupported if that is why an entry on the way to the end cannot be read."""
        for entry, error in self._unreadable.items():
            sealed = course.to_the_end and isinstance(error, KeyMissing | Unsupported)
            if sealed and any(_holds(each, entry) for each in course.replay):
                raise error


def _holds(stretch: Stretch, entry: LogEntry) -> bool:
    begins, ends = entry.begins.offset, entry.ends.offset
    return stretch.branch == entry.branch and begins < stretch.ends.offset and stretch.begins.offset < ends


async def listed(log: Log, facts: LogFacts, heads: Heads, *, begins: int = 0) -> LogView:
    """List the entries of all branches from an offset on; the ends of every run are described.

    What the survey found goes to the findings of `heads`.
    """
    heads.findings += facts.findings
    found = {}
    for name in LogView(facts=facts).names:
        async with closing(log.entries(name, begins=begins)) as entries:
            listing = [entry async for entry in entries]
        # Of a month of log there are a hundred thousand: the event loop does not wait for them.
        found[name] = await in_thread(runs, listing, [gap for gap in facts.gaps if gap.branch == name])
    view = LogView(facts=facts, runs=found)
    known = await heads.read(heads_wanted(view))
    for run in (run for name in view.names for run in view.of(name)):
        known |= await _before(heads, run.entries, known)
    return await in_thread(with_heads, view, known)


async def _before(
    heads: Heads, entries: Sequence[LogEntry], known: Mapping[LogEntry, LogEntry]
) -> Mapping[LogEntry, LogEntry]:
    """Describe the last entry of a run that can be read: up to there the log is known to be complete."""
    for entry in reversed(entries):
        if entry in known:
            return {}
        if read := await heads.read([entry]):
            return read
    return {}


async def _decide(heads: Heads, held: Holdings, until: RecoveryTarget) -> Course:
    """Decide; for a moment look into the log where it lies, so that the clock and the amount are known better."""
    course = await pondered(held.decide, until)
    if until.moment is None or not course.steps:
        return course
    known: dict[LogEntry, LogEntry] = {}
    for step in course.steps:
        known.update(await _around(heads, step.run.entries, until))
    described = evolve(held, view=await in_thread(with_heads, held.view, known))
    return await pondered(described.decide, until)


async def _around(heads: Heads, entries: Sequence[LogEntry], until: RecoveryTarget) -> Mapping[LogEntry, LogEntry]:
    """Describe the entries that a search for a moment comes by: as many as the number of entries has binary digits.

    One that cannot be read is passed over: its neighbours say nearly the same.
    """
    known: dict[LogEntry, LogEntry] = {}
    left = list(entries)
    first, last = 0, len(left) - 1
    while first < last:
        middle = (first + last) // 2
        read = await heads.read([left[middle]])
        if not read:
            del left[middle]
            last -= 1
            continue
        known.update(read)
        (head,) = read.values()
        passed = head.complete_at or head.latest
        if until.moment is not None and passed is not None and passed >= until.moment:
            last = middle
        else:
            first = middle + 1
    return known
