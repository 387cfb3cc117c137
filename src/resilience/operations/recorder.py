"""StateRecorder: writes down every few seconds what will be evidence once the primary is gone."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from datetime import datetime, timedelta

from attrs import define, evolve, field

from resilience.model.errors import ResilienceError
from resilience.model.groups import GroupFacts, Sample
from resilience.model.moments import utc_now
from resilience.planning.samples import Watch
from resilience.primitives import Beating

from .group import FailoverGroup
from .samples import KEPT, Samples

AGAIN = 0.25
"""Seconds until a set of synchronous standbys that was just seen for the first time is looked at again."""
NEWS = 2
"""So many heartbeats in a row that fail are worth a warning: one may be the moment in which the primary dies."""
log = logging.getLogger("resilience")


@define
class StateRecorder:
    """Records a group's positions, synchronous standbys and a heartbeat in its store of samples, until it is stopped.

    Run `run()` as a task, where it survives the primary; two at once do no harm. A sample is taken `every` so often and
    `kept` so long. What fails is logged once and tried again: `last` is the newest sample that was stored, `problem`
    why there is no newer one.
    """

    group: FailoverGroup
    every: timedelta = field(default=timedelta(seconds=2), kw_only=True)
    kept: timedelta = field(default=KEPT, kw_only=True)
    clock: Callable[[], datetime] = field(default=utc_now, kw_only=True, repr=False)
    last: Sample | None = field(default=None, init=False)
    problem: str = field(default="", init=False)
    _samples: Samples = field(init=False, repr=False)
    _writer: str = field(factory=lambda: secrets.token_hex(4), init=False, repr=False)
    _watch: Watch = field(factory=Watch, init=False, repr=False)
    _missed: str = field(default="", init=False, repr=False)
    _misses: int = field(default=0, init=False, repr=False)
    _tidied: datetime | None = field(default=None, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if self.every <= timedelta(0):
            raise ValueError("every must be longer than nothing")
        self._samples = Samples(self.group.samples, self.group.name)

    async def run(self) -> None:
        """Record until cancelled. No error ends it: what is broken now may be whole at the next look."""
        while True:
            try:
                await self.once()
                self.problem = self._missed
            except ResilienceError as error:
                self._watch = self._watch.interrupted()
                self._complain(error)
            waits = self.every.total_seconds()
            await asyncio.sleep(waits if self._watch.settled or not self._watch.key else min(AGAIN, waits))

    async def once(self) -> Sample:
        """Leave a heartbeat, look, and store what was seen. Raises Unavailable or Refused.

        Cancelled: the sample is there, or it is not.
        """
        at = self.clock()
        facts = await self._beaten(await self.group.promoter.survey())
        self._watch, sample = self._watch.seen(facts, at=at)
        sample = evolve(sample, group=self.group.name)
        if sample.position is None:
            return sample  # the last one of a primary that lives is worth more than that it is gone
        await self._samples.keep(sample, writer=self._writer)
        self.last = sample
        await self._tidy(at)
        return sample

    async def _beaten(self, facts: GroupFacts) -> GroupFacts:
        """Leave a heartbeat on the primary, for the standbys to have by the next look."""
        primary = facts.member(facts.primary)
        alive = primary is not None and primary.reachable and primary.role == "primary"
        if alive and isinstance(self.group.promoter, Beating):
            try:
                await self.group.promoter.beat(facts.primary)
                self._missed, self._misses = "", 0
            except ResilienceError as error:  # what was seen is worth being recorded without it
                self._missed, self._misses = str(error), self._misses + 1
                if self._misses == NEWS:
                    log.warning("the heartbeat of %s is missing: %s", self.group.name, error)
        return facts

    async def _tidy(self, now: datetime) -> None:
        if self._tidied is None or now - self._tidied > self.kept / 24:
            self._tidied = now
            await self._samples.forget(before=now - self.kept)

    def _complain(self, error: ResilienceError) -> None:
        if not self.problem:
            log.warning("the state of %s is not recorded: %s", self.group.name, error)
        self.problem = str(error)
