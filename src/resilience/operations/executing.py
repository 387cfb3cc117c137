"""The engine of a failover: what the table says comes next is written down, done, and written down again."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

from attrs import define, evolve, field

from resilience.journal import Journal
from resilience.model.errors import (
    FencedOff,
    Interrupted,
    JournalConflict,
    Refused,
    ResilienceError,
    RouteMoved,
)
from resilience.model.events import Notifier
from resilience.model.failover import FailoverReport, Outcome, Step, StepDone
from resilience.model.groups import Sample
from resilience.model.journal import Record
from resilience.planning.deciding import decided
from resilience.planning.failover_report import reported
from resilience.planning.transitions import FINAL, TRIES, Execution, State, after, steps

from .checklist import looked
from .group import FailoverGroup
from .steps import Came, Effects

PAUSE = 0.2
"""Seconds between these."""
STOOD_STILL = 1.0
"""Seconds between a record and what it announces; after that somebody may have taken over, so it is looked first."""
UNDOING: tuple[State, ...] = ("stopping", "lifted")


@define
class Engine:
    """Carries one execution on from where it is."""

    group: FailoverGroup
    journal: Journal
    execution: Execution
    told: Notifier
    clock: Callable[[], datetime]
    actor: str
    reason: str
    _cancelled: asyncio.Event = field(factory=asyncio.Event, init=False)
    _running: tuple[asyncio.Task[tuple[StepDone, Came]], ...] = field(default=(), init=False)
    _tries: int = field(default=0, init=False)
    _written: float = field(default=0.0, init=False)

    def cancel(self) -> None:
        """Ask for an end: what is under way finishes in its own time or says that nobody can tell, and is recorded."""
        self._cancelled.set()
        for task in self._running:
            task.cancel()

    async def run(self, first: Record) -> FailoverReport:
        """Write the record that begins it, or takes it over, and go on to the end, or as far as one can get.

        Raises Unavailable if nothing could be written and nothing was touched, Interrupted where resume() has to go on,
        JournalConflict and FencedOff if somebody else acts.
        """
        self._written = time.time()  # from before it is there: who stops just after it must notice
        await self.journal.append(first)
        while (state := self.execution.state) not in FINAL:
            if self._cancelled.is_set() and state not in UNDOING:
                if not self.execution.undoable:
                    raise self._interrupted("it was cancelled")
                await self.stop("it was cancelled")
                continue
            came = await self._carried(steps(self.execution)) if state != "settled" else []
            await self._recorded(await self._outcome(came))
        return await self._ended()

    async def stop(self, why: str) -> None:
        """Undo what was done from here on, where that is still possible."""
        await self._recorded(self._intending(self._record(stop=why)))

    async def _carried(self, todo: Sequence[Step]) -> list[tuple[StepDone, Came]]:
        """Carry steps out side by side, and wait for all of them."""
        if time.time() - self._written > STOOD_STILL:
            await self._served(self.journal.confirm(self.execution.number), "the journal cannot be read")
        effects = Effects(self.group, self.execution, self.actor, self.clock)
        self._running = tuple(asyncio.create_task(self._one(effects, step)) for step in todo)
        await asyncio.wait(self._running)
        tasks, self._running = self._running, ()
        errors = [error for task in tasks if (error := task.exception()) is not None]
        if errors:
            raise errors[0]
        return [task.result() for task in tasks]

    async def _one(self, effects: Effects, step: Step) -> tuple[StepDone, Came]:
        at, began = self.clock(), time.monotonic()
        self.told.tell("progress", str(step))
        came, text = Came(), ""
        outcome: Outcome = "done"
        try:
            came = await effects.of(step)
            text = came.text
        except (FencedOff, JournalConflict):
            raise  # whoever acts now knows better
        except asyncio.CancelledError:
            outcome, text = "unknown", "it was cancelled"
        except Exception as error:  # noqa: BLE001  # whatever it is, it is written down
            moved = isinstance(error, RouteMoved) and step.kind != "promote"
            outcome = "not done" if moved or isinstance(error, Refused) else "unknown"
            text = _said(error, step)
        return StepDone(step=step, outcome=outcome, at=at, seconds=time.monotonic() - began, text=text), came

    async def _outcome(self, came: Sequence[tuple[StepDone, Came]]) -> Record:
        """Return the record of what came of some steps, with what is decided from it and what begins next."""
        record = evolve(
            self._record(),
            done=tuple(done for done, _ in came),
            fences=tuple(each.fence for _, each in came if each.fence is not None),
            routes=tuple(each.route for _, each in came if each.route is not None),
            settled=next((each.settled for _, each in came if each.settled is not None), None),
            promoted=next((each.promoted for _, each in came if each.promoted is not None), None),
            findings=tuple(finding for _, each in came for finding in each.findings),
        )
        ahead = after(self.execution, record)
        if ahead.undoable and self._cancelled.is_set():
            record = evolve(record, stop="it was cancelled")
        elif ahead.state == "settled":
            record = self._decided(record, ahead, next((each.sample for _, each in came if each.sample), None))
        return self._intending(record)

    def _decided(self, record: Record, ahead: Execution, sample: Sample | None) -> Record:
        """Return a record with whom to promote, now that nothing moves any more."""
        at, began = self.clock(), time.monotonic()
        decision, order = decided(ahead, sample=sample)
        done = StepDone(
            step=Step(kind="decide"),
            outcome="done" if order is not None else "not done",
            at=at,
            seconds=time.monotonic() - began,
            text=decision.why,
        )
        return evolve(record, done=(*record.done, done), decision=decision, order=order)

    def _intending(self, record: Record) -> Record:
        """Return a record with the steps that begin once it is durable; none if this is left to resume()."""
        ahead = after(self.execution, record)
        left = ahead.state == self.execution.state and self._tries + 1 >= TRIES
        return record if left or ahead.state in FINAL else evolve(record, next=steps(ahead))

    async def _recorded(self, record: Record) -> None:
        """Write a record, and see where that leads; nothing is begun that is not written down."""
        before, written = self.execution.state, time.time()
        await self._served(self.journal.append(record), "the journal cannot be written")
        self.execution, self._written = after(self.execution, record), written
        self._tries = self._tries + 1 if self.execution.state == before else 0
        if self._tries >= TRIES:
            failures = [f"{each.step.kind} {each.step.subject}: {each.text}" for each in record.done]
            raise self._interrupted("; ".join(failures))
        if self._tries:
            await self._pause()

    async def _pause(self) -> None:
        waiting = asyncio.create_task(self._cancelled.wait())
        await asyncio.wait([waiting], timeout=PAUSE)
        waiting.cancel()

    async def _let_go(self) -> None:
        """Let clients go that only wait: that changes nothing, so it needs no record that nobody could write."""
        if not self.execution.only_held:
            return
        effects = Effects(self.group, self.execution, self.actor, self.clock)
        held = [step.subject for step in self.execution.touched if step.kind == "hold"]
        releases = [asyncio.create_task(effects.release(Step(kind="release", subject=name))) for name in held]
        if releases:
            await asyncio.wait(releases)
        for each in releases:
            each.exception()

    async def _ended(self) -> FailoverReport:
        began = time.monotonic()
        completed = self.execution.state == "completed"
        findings = await looked(self.group.after, self.execution.plan, unable="warning") if completed else ()
        execution = evolve(self.execution, findings=(*self.execution.findings, *findings))
        report = reported(execution, now=self.clock(), checking=time.monotonic() - began)
        ended = self.journal.append(evolve(self._record(), kind="ended", report=report))
        await self._served(ended, "all is done, and the journal cannot be written")
        return report

    async def _served(self, asked: Awaitable[None], why: str) -> None:
        """Wait for the journal once something was begun: then whatever it refuses is told as Interrupted."""
        try:
            await asked
        except (JournalConflict, FencedOff):
            raise  # whoever acts now knows better
        except ResilienceError as error:
            await self._let_go()
            raise self._interrupted(f"{why}: {error}") from error

    def _record(self, *, stop: str = "") -> Record:
        return Record(
            group=self.group.name,
            number=self.execution.number + 1,
            epoch=self.execution.epoch,
            kind="went on",
            at=self.clock(),
            operator=self.execution.operator,
            nonce=secrets.token_hex(8),
            actor=self.actor,
            stop=stop,
        )

    def _interrupted(self, why: str) -> Interrupted:
        return Interrupted(
            f"{STANDS[self.execution.state]}: {why}",
            operation=self.execution.plan.kind,
            subject=self.group.name,
            hint="resume() looks again and goes on from there",
        )


def _said(error: Exception, step: Step) -> str:
    """Say in one line what went wrong with a step, without naming its subject twice."""
    if not isinstance(error, ResilienceError):
        return f"{type(error).__name__}: {error}"
    if error.subject != step.subject:
        return str(error)
    return f"{error.what} ({error.hint})" if error.hint else error.what


STANDS: dict[State, str] = {
    "begun": "nothing was touched yet",
    "returned": "the members are back behind the primary, and nothing else was touched",
    "prepared": "clients may wait",
    "held": "clients wait, and the primary may be fenced",
    "fenced": "clients wait, and the primary is fenced",
    "settled": "clients wait, the primary is fenced and the standbys have settled",
    "decided": "clients wait, and nobody can tell whether the candidate was promoted",
    "in doubt": "clients wait, and nobody can tell whether the candidate was promoted",
    "promoted": "there is a new primary, and not all clients were led to it",
    "switched": "there is a new primary, and it could not be proven that it takes writes",
    "verified": "the new primary serves, and the old one may not be back yet",
    "rejoined": "the new primary serves, and it may not wait for its standbys yet",
    "completed": "the new primary serves",
    "stopping": "nobody was promoted, and the primary may still be fenced",
    "lifted": "nobody was promoted, and clients may still wait",
    "stopped": "nobody was promoted",
}
"""How things stand in a state, for who finds them so."""
