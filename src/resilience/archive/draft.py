"""A backup while it is being written, and the trace that it leaves, also if it fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Literal

from attrs import define, field, frozen

from resilience.concurrency import finish
from resilience.model.capture import Captured, Part
from resilience.model.errors import AlreadyExists, Conflict, Refused, ResilienceError, Unavailable
from resilience.model.json import to_json
from resilience.model.manifests import FORMAT, SEALED_FORMAT, Manifest, Sealing, StoredPart
from resilience.model.moments import aware
from resilience.model.plans import BackupPlan
from resilience.version import WRITER

from . import layout
from .chain import Chain, digest_of
from .writing import Writer

RECORD_SECONDS = 10.0
Outcome = Literal["succeeded", "failed", "cancelled", "abandoned"]
"""Abandoned: it was never ended, and a prune has given it up."""


@frozen(kw_only=True)
class RunStarted:
    """The record of an attempt, written before any byte is read."""

    id: str
    target: str
    system: str
    kind: str
    started_at: datetime = field(validator=aware)
    writer: str = WRITER
    parent: str | None = None
    actor: str = ""
    reason: str = ""


@frozen(kw_only=True)
class RunEnded:
    """How the attempt ended; an attempt without this record is running, or was killed."""

    id: str
    outcome: Outcome
    ended_at: datetime = field(validator=aware)
    stored: int = 0
    error: str = ""


@define(kw_only=True)
class Draft:
    """Collects parts and publishes them as one backup; see `primitives.Draft`. `sealing` is how they are sealed."""

    plan: BackupPlan
    sealing: Sealing | None
    chain: Chain = field(repr=False)
    clock: Callable[[], datetime] = field(repr=False)
    _writer: Writer = field(repr=False)
    _parts: list[StoredPart] = field(factory=list, init=False)
    _begun: bool = field(default=False, init=False)
    _publishing: bool = field(default=False, init=False)

    async def store(self, part: Part) -> StoredPart:
        """Store one part; its name must be new in this backup. On an error no put is left running."""
        if self._publishing:
            raise ValueError("a published backup takes no more parts")
        if any(stored.name == part.name for stored in self._parts):
            raise ValueError(f"the backup already has a part {part.name!r}")
        self._parts.append(await self._writer.write(part))
        return self._parts[-1]

    async def publish(self, captured: Captured) -> Manifest:
        """Write the manifest; from then on the backup exists. Cancelled: it exists whole, or not at all.

        Raises Conflict if its id is taken, a prune has given it up, or what it builds on is gone.
        """
        if self._publishing:
            raise ValueError("a backup is published once")
        manifest = Manifest(
            format=FORMAT if self.sealing is None else SEALED_FORMAT,
            id=self.plan.id,
            target=self.plan.target,
            system=self.plan.system,
            kind=self.plan.kind,
            lineage=self.plan.lineage,
            parent=self.plan.parent,
            started_at=self.plan.made_at,
            ended_at=self.clock(),
            begins=captured.begins,
            recovery_point=captured.recovery_point,
            parts=tuple(self._parts),
            writer=WRITER,
            actor=self.plan.actor,
            reason=self.plan.reason,
            sealing=self.sealing,
            predecessors=() if self.sealing is None else await self.chain.heads(),
            details=captured.details,
        )
        await self._find_parent()
        data = await self.chain.records.wrapped(self._key, manifest)
        self._publishing = True
        try:
            await self._writer.store.put(self._key, [data])
        except AlreadyExists as error:
            self._publishing = False  # what stands there is not ours
            raise Conflict("a backup of this id exists", operation="publish", subject=manifest.id) from error
        # Once more: now a prune sees the manifest, or this sees that it gave up. The backup exists if nobody answers.
        with suppress(Refused, Unavailable, OSError):
            await self._refuse_given_up()
        if self.sealing is not None:
            await self.chain.published(manifest.id, digest_of(data))
        return manifest

    async def _find_parent(self) -> None:
        """Look whether this backup was given up, or what it builds on retired, while it was written."""
        await self._refuse_given_up()
        parent = self.plan.parent
        if parent is None:
            return
        if await self._writer.store.stat(layout.manifest(self.plan.system, self.plan.target, parent)) is None:
            raise Conflict(
                f"its parent {parent} has been retired meanwhile",
                operation="publish",
                subject=self.plan.id,
                hint="take it again",
            )

    async def _refuse_given_up(self) -> None:
        ended = layout.run(self.plan.system, self.plan.target, self.plan.id, "ended")
        if await self._writer.store.stat(ended) is not None:
            raise Conflict(
                "nothing was written for so long that a prune has given it up",
                operation="publish",
                subject=self.plan.id,
                hint="take it again",
            )

    @property
    def _key(self) -> str:
        return layout.manifest(self.plan.system, self.plan.target, self.plan.id)

    @asynccontextmanager
    async def recorded(self) -> AsyncIterator[Draft]:
        """Record that the attempt began, and on leaving how it ended."""
        try:
            await finish(self._begin())
            yield self
        except asyncio.CancelledError:
            await self._end("cancelled", "")
            raise
        except BaseException as error:
            known = isinstance(error, ResilienceError)
            await self._end("failed", str(error) if known else type(error).__name__)
            raise
        await self._end("failed", "never published")

    async def _begin(self) -> None:
        started = RunStarted(
            id=self.plan.id,
            target=self.plan.target,
            system=self.plan.system,
            kind=self.plan.kind,
            started_at=self.plan.made_at,
            parent=self.plan.parent,
            actor=self.plan.actor,
            reason=self.plan.reason,
        )
        await self._record("started", started)
        self._begun = True

    async def _end(self, outcome: Outcome, error: str) -> None:
        """Record how it ended: well if it was published, whatever came afterwards; else as told."""
        if not self._begun:
            return
        try:
            await finish(asyncio.wait_for(self._record_end(outcome, error), RECORD_SECONDS))
        except Exception as failure:  # noqa: BLE001  # the record is worth an effort, never the result
            logging.getLogger("resilience").warning("the run record of %s was not ended: %s", self.plan.id, failure)

    async def _record_end(self, outcome: Outcome, error: str) -> None:
        if self._publishing and await self._writer.store.stat(self._key) is not None:
            outcome, error = "succeeded", ""
        stored = sum(part.stored for part in self._parts)
        ended = RunEnded(id=self.plan.id, outcome=outcome, ended_at=self.clock(), stored=stored, error=error)
        await self._record("ended", ended)

    async def _record(self, moment: str, record: RunStarted | RunEnded) -> None:
        key = layout.run(self.plan.system, self.plan.target, self.plan.id, moment)
        await self._writer.store.put(key, [to_json(record)])
