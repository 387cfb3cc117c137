"""Removes what a plan says, manifest first, and goes on where the store does not let an object go."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import datetime

from attrs import define, evolve, field, frozen

from resilience.concurrency import closing, finish, stop_tasks
from resilience.model.errors import (
    AlreadyExists,
    Corrupt,
    KeyMissing,
    NotRehydrated,
    Refused,
    ResilienceError,
    Unsupported,
)
from resilience.model.json import to_json
from resilience.model.log import LogEntry, Stretch
from resilience.model.manifests import Manifest
from resilience.model.pruning import Held, LogTrim, Removed
from resilience.model.stock import BackupObjects
from resilience.planning.window import place
from resilience.primitives import Log, ObjectInfo, ObjectStore, Opened

from . import layout
from .chain import Chain
from .draft import Outcome, RunEnded, RunStarted
from .stocktaking import outdated

DELETES_AT_ONCE = 8
PRUNE = "prune"


@define(kw_only=True)
class Pruning:
    """Removes backups, leftovers and log of one target; see `primitives.Pruning`."""

    store: ObjectStore
    system: str
    target: str
    chain: Chain = field(repr=False)
    log: Callable[[str], Opened[Log]] = field(repr=False)
    clock: Callable[[], datetime] = field(repr=False)
    id: str
    actor: str = ""
    reason: str = ""
    now: datetime = field(init=False)

    @asynccontextmanager
    async def recorded(self) -> AsyncIterator[Pruning]:
        """Record that the prune began, and on leaving how it ended. When it began says the store's clock."""
        await finish(self._begin())
        outcome: Outcome = "failed"
        said = ""
        try:
            yield self
            outcome = "succeeded"
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except BaseException as error:
            said = str(error) if isinstance(error, ResilienceError) else type(error).__name__
            raise
        finally:
            ended = RunEnded(id=self.id, outcome=outcome, ended_at=self.clock(), error=said)
            with suppress(ResilienceError):  # the record is worth an effort, never the result
                await finish(self._run("ended", ended))

    async def _begin(self) -> None:
        begun = RunStarted(
            id=self.id,
            target=self.target,
            system=self.system,
            kind=PRUNE,
            started_at=self.clock(),
            actor=self.actor,
            reason=self.reason,
        )
        self.now = (await self._run("started", begun)).modified

    async def _run(self, moment: str, record: RunStarted | RunEnded, *, of: str = "") -> ObjectInfo:
        return await self.store.put(layout.run(self.system, self.target, of or self.id, moment), [to_json(record)])

    async def added(self, known: Collection[str]) -> tuple[Manifest, ...]:
        """Return the backups that have appeared meanwhile; see `primitives.Pruning.added`."""
        passed: frozenset[str | None] = frozenset([*known, None])  # what is named as no backup is none
        async with closing(self.store.list(layout.manifests(self.system, self.target))) as infos:
            keys = [info.key async for info in infos if layout.backup_of(info.key) not in passed]
        found = [await self.chain.records.read(key, Manifest) for key in keys]
        return tuple(each for each in found if each is not None)

    async def retire(self, manifest: Manifest) -> Removed:
        """Remove a backup; see `primitives.Pruning.retire`."""
        key = layout.manifest(self.system, self.target, manifest.id)
        removed = Removed()
        if (info := await self.store.stat(key)) is not None:
            await self.chain.retired(manifest, actor=self.actor, reason=self.reason)
            removed = await self._delete(info)
            if removed.held:
                return evolve(removed, gone=False)
        return removed + await self._objects(manifest.kind, manifest.id)

    async def abandon(self, leftover: BackupObjects, *, quiet: datetime) -> Removed:
        """Remove what no manifest names; see `primitives.Pruning.abandon`."""
        if not leftover.retired and not await self._give_up(leftover, quiet):
            return Removed(gone=False)
        # Looked at after the run was ended: whoever publishes looks for that first.
        if await self.store.stat(layout.manifest(self.system, self.target, leftover.id)) is not None:
            return Removed(gone=False)
        removed = await self._objects(leftover.kind, leftover.id)
        # Who had looked before that and published only now is told so too: what stands there has lost its objects.
        if (late := await self.store.stat(layout.manifest(self.system, self.target, leftover.id))) is not None:
            removed += await self._delete(late)
        return removed

    async def _give_up(self, leftover: BackupObjects, quiet: datetime) -> bool:
        """End a run that nobody ended, so that it can no longer publish; False if it writes."""
        async with aclosing(self._of(leftover.kind, leftover.id)) as infos:
            async for info in infos:
                if info.modified >= quiet:
                    return False
        said = f"given up by prune {self.id}"
        ended = RunEnded(id=leftover.id, outcome="abandoned", ended_at=self.clock(), error=said)
        with suppress(AlreadyExists):
            await self._run("ended", ended, of=leftover.id)
        return True

    async def _objects(self, kind: str, backup: str) -> Removed:
        return await self._remove(self._of(kind, backup))

    async def _of(self, kind: str, backup: str) -> AsyncGenerator[ObjectInfo]:
        """Yield the objects of a backup; the data key that they are sealed with comes last."""
        prefixes = [layout.data_key(self.system, self.target, layout.backup_key(backup))]
        if kind:
            prefixes.insert(0, layout.backup(self.system, self.target, kind, backup))
        for prefix in prefixes:
            async with closing(self.store.list(prefix)) as infos:
                async for info in infos:
                    yield info

    async def trim(self, trim: LogTrim) -> Removed:
        """Remove what a plan says of a log; see `primitives.Pruning.trim`."""
        async with aclosing(self._trimmed(trim)) as infos:
            return await self._remove(infos)

    def _trimmed(self, trim: LogTrim) -> AsyncGenerator[ObjectInfo]:
        if trim.what == "expired":
            return self._expired(trim)
        if trim.what == "superseded":
            return self._superseded(trim)
        return self._gaps(trim) if trim.what == "gaps" else self._records(trim)

    async def _expired(self, trim: LogTrim) -> AsyncGenerator[ObjectInfo]:
        whose = (self.system, self.target, trim.lineage, trim.branch)
        for prefix in (layout.segments(*whose), layout.slices(*whose)):
            async with aclosing(self._within(prefix, trim.stretches)) as infos:
                async for info in infos:
                    yield info

    async def _gaps(self, trim: LogTrim) -> AsyncGenerator[ObjectInfo]:
        prefix = layout.gaps(self.system, self.target, trim.lineage, trim.branch)
        for gap in trim.stretches:
            info = await self.store.stat(prefix + layout.gap(gap.begins.offset, gap.ends.offset))
            if info is not None:
                yield info

    async def _within(self, prefix: str, stretches: tuple[Stretch, ...]) -> AsyncGenerator[ObjectInfo]:
        spans = _Spans.of(stretches)
        async with closing(self.store.list(prefix)) as infos:
            async for info in infos:
                stretch = layout.stretch(info.key)
                if stretch and spans.around(*stretch):
                    yield info

    async def _superseded(self, trim: LogTrim) -> AsyncGenerator[ObjectInfo]:
        """Yield slices that a whole segment has; all of that is read first: nothing is believed unseen."""
        whose = (self.system, self.target, trim.lineage, trim.branch)
        async with closing(self.store.list(layout.segments(*whose))) as infos:
            segments = [stretch async for info in infos if (stretch := layout.stretch(info.key))]
        heads = _Spans(tuple(sorted(segments)))
        readable: dict[tuple[int, int], bool] = {}
        async with (
            self.log(trim.lineage) as log,
            aclosing(self._within(layout.slices(*whose), trim.stretches)) as infos,
        ):
            async for info in infos:
                segment = heads.around(*(layout.stretch(info.key) or (0, 0)))
                if segment is not None and segment not in readable:
                    readable[segment] = await _readable(log, trim.branch, *segment)
                if segment is not None and readable[segment]:
                    yield info

    async def _records(self, trim: LogTrim) -> AsyncGenerator[ObjectInfo]:
        whose = (self.system, self.target, trim.lineage)
        files = trim.what == "files"
        prefix = layout.files(*whose) if files else layout.watermarks(*whose, trim.branch)
        async with closing(self.store.list(prefix)) as infos:
            listed = [info async for info in infos if files or layout.until(info.key) is not None]
        for info in listed if files else await outdated(self.chain.records, listed):
            if trim.before is not None and info.modified < trim.before and not info.key.endswith(".history.zst"):
                yield info

    async def _remove(self, infos: AsyncIterator[ObjectInfo]) -> Removed:
        """Remove objects, several at once. Cancelled: every one is there or gone, and none is on its way."""
        total = Removed()
        running: set[asyncio.Task[Removed]] = set()
        try:
            async with closing(infos) as listed:
                async for info in listed:
                    running.add(asyncio.create_task(self._delete(info)))
                    if len(running) >= DELETES_AT_ONCE:
                        total += await _some_of(running)
            while running:
                total += await _some_of(running)
        finally:
            await stop_tasks(running)
        return total

    async def _delete(self, info: ObjectInfo) -> Removed:
        try:
            await self.store.delete(info.key)
        except Refused as error:
            return Removed(held=(Held(key=info.key, why=error.what),))
        return Removed(objects=1, bytes=info.size)


async def _some_of(running: set[asyncio.Task[Removed]]) -> Removed:
    done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    running -= done
    if failed := [error for task in done if (error := task.exception()) is not None]:
        raise failed[0]  # the others were looked at: asyncio would complain of them
    return sum((task.result() for task in done), Removed())


async def _readable(log: Log, branch: str, begins: int, ends: int) -> bool:
    """Read a segment from end to end: slices are what is left of one that is damaged, so they go last."""
    try:
        await log.read(LogEntry(begins=place(branch, begins), ends=place(branch, ends)))
    except (Corrupt, KeyMissing, NotRehydrated, Unsupported):
        return False
    return True


@frozen
class _Spans:
    """Stretches of one branch that do not overlap, as offsets."""

    spans: tuple[tuple[int, int], ...]

    @staticmethod
    def of(stretches: tuple[Stretch, ...]) -> _Spans:
        return _Spans(tuple(sorted((each.begins.offset, each.ends.offset) for each in stretches)))

    def around(self, begins: int, ends: int) -> tuple[int, int] | None:
        """Return the one that a stretch lies wholly within; None if it lies in none."""
        at = bisect_right(self.spans, (begins, 1 << 65)) - 1
        return self.spans[at] if at >= 0 and begins < ends <= self.spans[at][1] else None
