"""Archive: keeps backups in any store. The Archiver of this library."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from functools import partial

from attrs import define, field
from attrs.validators import ge

from resilience.concurrency import closing, in_thread
from resilience.model.errors import AlreadyExists, Corrupt, ManifestInvalid, Refused, Unsupported
from resilience.model.findings import Doubt
from resilience.model.ids import checked_name
from resilience.model.json import from_json, to_json
from resilience.model.manifests import Manifest
from resilience.model.measured import RestoreMeasured
from resilience.model.moments import utc_now
from resilience.model.plans import BackupPlan
from resilience.planning.chains import refuse_to_orphan
from resilience.primitives import ObjectStore
from resilience.streams.frames import FRAME_SIZE, Compressor

from . import layout
from .draft import Draft
from .envelope import unwrap, wrap
from .log import ArchiveLog
from .reading import Reader, whole
from .writing import Writer

OBJECT_SIZE = 64 << 20
LARGEST_DYNAMIC_BLOCK = 31 << 20


@define
class Archive:
    """Keeps backups in `store`, laid out as docs/archive-format.md specifies.

    `compression` is the zstd level. `workers` threads compress and expand (default: one a processor). `object_size` is
    about how many stored bytes an object has; memory does not depend on it. `clock` tells run records the time.
    """

    store: ObjectStore
    compression: int = field(default=1, kw_only=True)
    workers: int = field(factory=lambda: os.cpu_count() or 1, kw_only=True, validator=ge(1))
    object_size: int = field(default=OBJECT_SIZE, kw_only=True, validator=ge(1))
    frame_size: int = field(default=FRAME_SIZE, kw_only=True, validator=ge(1))
    clock: Callable[[], datetime] = field(default=utc_now, kw_only=True)

    async def manifests(self, target: str, *, doubts: list[Doubt] | None = None) -> AsyncGenerator[Manifest]:
        """Yield a target's manifests, oldest first; see `Archiver.manifests`.

        Without `doubts` it raises ManifestInvalid if one is damaged and Unsupported if one is of a newer format:
        skipping it could make an older backup look like the newest.
        """
        system = await self._system_of(target)
        if system is None:
            return
        async with closing(self.store.list(layout.manifests(system, target))) as infos:
            async for info in infos:
                try:
                    data = await whole(self.store, info.key)
                    manifest = None if data is None else await _unwrapped(data, info.key)
                except (Corrupt, Unsupported) as error:
                    if doubts is None:
                        raise
                    doubts.append(_doubt(info.key, error))
                else:
                    if manifest is not None:
                        yield manifest

    async def targets(self) -> list[str]:
        """Return the names of all targets that were ever backed up into this archive."""
        prefix = layout.TARGETS
        return [info.key.removeprefix(prefix).removesuffix(".json") async for info in self.store.list(prefix)]

    async def manifest(self, target: str, backup: str) -> Manifest | None:
        """Return one manifest by its id, None if there is none; raises as `manifests` does."""
        system = await self._system_of(target)
        if system is None:
            return None
        key = layout.manifest(system, target, backup)
        data = await whole(self.store, key)
        return None if data is None else await _unwrapped(data, key)

    @asynccontextmanager
    async def draft(self, plan: BackupPlan) -> AsyncIterator[Draft]:
        """Begin a backup; see `Archiver.draft`. The run record is begun here and ended on leaving."""
        prefix = layout.backup(plan.system, plan.target, plan.kind, plan.id)
        await self._register(plan.target, plan.system)
        with _frame_threads(self.workers) as pool:
            writer = Writer(
                store=self.store,
                prefix=prefix,
                pool=pool,
                ahead=self.workers + 2,
                compressor=Compressor(self.compression),
                frame_size=self.frame_size,
                object_size=self.object_size,
            )
            async with Draft(plan=plan, writer=writer, clock=self.clock).recorded() as draft:
                yield draft

    @asynccontextmanager
    async def open(self, manifest: Manifest) -> AsyncIterator[Reader]:
        """Open a published backup for reading; nothing is fetched yet."""
        with _frame_threads(self.workers) as pool:
            yield Reader(store=self.store, manifest=manifest, pool=pool, ahead=self.workers + 2)

    async def retire(self, manifest: Manifest) -> None:
        """Remove a backup: its manifest first, then its objects. May be repeated after an interruption.

        Raises Refused, naming them, while there are backups that build on it: they go first.
        """
        refuse_to_orphan(manifest, [each async for each in self.manifests(manifest.target)])
        await self.store.delete(layout.manifest(manifest.system, manifest.target, manifest.id))
        prefix = layout.backup(manifest.system, manifest.target, manifest.kind, manifest.id)
        async with closing(self.store.list(prefix)) as infos:
            async for info in infos:
                await self.store.delete(info.key)

    @asynccontextmanager
    async def log(self, target: str, *, system: str, lineage: str) -> AsyncIterator[ArchiveLog]:
        """Open the log of one lineage of a target, to read it or to go on writing it; nothing is fetched yet."""
        with _frame_threads(self.workers) as pool:
            yield ArchiveLog(
                store=self.store,
                target=target,
                system=system,
                lineage=lineage,
                pool=pool,
                compressor=Compressor(self.compression),
                frame_size=self.frame_size,
                clock=self.clock,
                register=partial(self._register, target, system),
            )

    async def lineages(self, target: str) -> tuple[str, ...]:
        """Return the lineages that a target has a log of, in alphabetical order."""
        system = await self._system_of(target)
        if system is None:
            return ()
        prefix = layout.histories(system, target)
        keys = [info.key async for info in self.store.list(prefix)]
        return tuple(sorted({key.removeprefix(prefix).partition("/")[0] for key in keys}))

    async def remember(self, measured: RestoreMeasured) -> None:
        """Keep what a restore has measured; see `Archiver.remember`."""
        await self.store.put(layout.restore(measured.system, measured.target, measured.id), [wrap(measured)])

    async def measured(self, target: str, *, last: int = 5) -> tuple[RestoreMeasured, ...]:
        """Return what the last restores have measured, newest first. Raises ManifestInvalid if one is damaged."""
        system = await self._system_of(target)
        if system is None:
            return ()
        newest: deque[str] = deque(maxlen=last)
        async with closing(self.store.list(layout.restores(system, target))) as infos:
            async for info in infos:
                newest.append(info.key)
        found = [(key, await whole(self.store, key)) for key in reversed(newest)]
        return tuple(unwrap(data, key, RestoreMeasured) for key, data in found if data is not None)

    async def _register(self, target: str, system: str) -> None:
        key = layout.registration(target)
        if await self.store.stat(key) is None:
            # Another backup may register it this very moment; whose it is, is looked at below.
            with suppress(AlreadyExists):
                await self.store.put(key, [to_json({"system": system})])
        registered = await self._system_of(target)
        if registered != system:
            raise Refused(
                f"the name belongs to a {registered} target in this archive",
                operation="backup",
                subject=target,
                hint="give this target another name",
            )

    async def _system_of(self, target: str) -> str | None:
        key = layout.registration(target)
        data = await whole(self.store, key)
        if data is None:
            return None
        try:
            return checked_name(from_json(data, dict[str, str])["system"])
        except (ValueError, KeyError) as error:
            raise ManifestInvalid("it does not name a system", operation="read", subject=key) from error


def _frame_threads(workers: int) -> ThreadPoolExecutor:
    # Until a block of this size has been freed once, glibc gives every frame's memory back to the kernel as soon as it
    # is freed, and the next one is mapped and zeroed again, page by page; see M_MMAP_THRESHOLD in mallopt(3). The block
    # itself is never touched and costs nothing; without it a restore takes ten times the page faults.
    block = bytes(LARGEST_DYNAMIC_BLOCK)
    del block
    return ThreadPoolExecutor(workers, "resilience-frames")


async def _unwrapped(data: bytes, key: str) -> Manifest:
    # The manifest of a terabyte has megabytes.
    return _checked(await in_thread(unwrap, data, key, Manifest), key)


def _doubt(key: str, error: Corrupt | Unsupported) -> Doubt:
    return Doubt(
        backup=layout.backup_of(key),
        subject=key,
        text=f"the manifest {key} cannot be used: {error.what}",
        hint=error.hint,
    )


def _checked(manifest: Manifest, key: str) -> Manifest:
    with suppress(ValueError):
        if layout.manifest(manifest.system, manifest.target, manifest.id) == key:
            return manifest
    raise ManifestInvalid("it belongs under another name", operation="read manifest", subject=key)
