"""Archive: keeps backups in any store. The Archiver of this library."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import datetime
from functools import cache, partial

from attrs import define, field
from attrs.validators import ge

from resilience.concurrency import closing
from resilience.model.errors import (
    AlreadyExists,
    Corrupt,
    KeyMissing,
    ManifestInvalid,
    NoBackup,
    Refused,
    SealBroken,
    Unsupported,
)
from resilience.model.findings import Doubt
from resilience.model.ids import checked_name, is_name
from resilience.model.json import from_json, to_json
from resilience.model.keys import Rewrapped
from resilience.model.manifests import Manifest, Predecessor, Sealing
from resilience.model.measured import RestoreMeasured
from resilience.model.moments import utc_now
from resilience.model.plans import BackupPlan
from resilience.model.stock import ArchiveFacts
from resilience.planning.chains import refuse_to_orphan
from resilience.primitives import KeyEncryptionKey, ObjectInfo, ObjectStore
from resilience.streams.frames import FRAME_SIZE, Compressor
from resilience.streams.seals import Sealer

from . import layout
from .catalogue import catalogue, manifest_in, sealed_with_its_own
from .chain import Chain
from .draft import Draft
from .keys import DataKey, Keyring
from .log import ArchiveLog
from .offline import made_readable, unreadable
from .packing import Packing
from .pruning import Pruning
from .reading import Reader
from .records import Records, unsealed
from .small import whole
from .stocktaking import Stock
from .writing import Writer

OBJECT_SIZE = 64 << 20
LARGEST_DYNAMIC_BLOCK = 31 << 20


@define
class Archive:
    """Keeps backups in `store`, laid out as docs/archive-format.md specifies.

    `compression` is the zstd level. `workers` threads compress and expand (default: one a processor). `object_size` is
    about how many stored bytes an object has; memory does not depend on it. `clock` tells run records the time.

    With a `key` all that is written is sealed, and nothing else is trusted; what was sealed with an `older` key is read
    too. Without one nothing sealed can be read, and nothing is written beside it. `witness` is another store that is
    told of every sealed backup, so that the newest cannot be hidden either: who can change `store` must not be able to
    change that one. docs/encryption.md says what this protects from, and what a lost key means.
    """

    store: ObjectStore
    compression: int = field(default=1, kw_only=True)
    workers: int = field(factory=lambda: os.cpu_count() or 1, kw_only=True, validator=ge(1))
    object_size: int = field(default=OBJECT_SIZE, kw_only=True, validator=ge(1))
    frame_size: int = field(default=FRAME_SIZE, kw_only=True, validator=ge(1))
    clock: Callable[[], datetime] = field(default=utc_now, kw_only=True)
    key: KeyEncryptionKey | None = field(default=None, kw_only=True)
    older: Sequence[KeyEncryptionKey] = field(default=(), kw_only=True)
    witness: ObjectStore | None = field(default=None, kw_only=True, repr=False)
    _keyring: Keyring = field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        self._keyring = Keyring(store=self.store, key=self.key, older=self.older, clock=self.clock)

    async def manifests(self, target: str, *, doubts: list[Doubt] | None = None) -> AsyncGenerator[Manifest]:
        """Yield a target's manifests, oldest first; see `Archiver.manifests`.

        Without `doubts` it raises ManifestInvalid if one is damaged and Unsupported if one is of a newer format:
        skipping it could make an older backup look like the newest.
        """
        system = await self._system_of(target)
        if system is None:
            return
        chain, found, told = self._chain(system, target), dict[str, str](), set[str]()
        named: dict[Predecessor, str] = {}
        async with aclosing(catalogue(chain.records)) as looks:
            async for each in looks:
                if each.problem is not None:
                    if doubts is None:
                        raise each.problem
                    doubts.append(_doubt(each.key, each.problem))
                    told.add(layout.backup_of(each.key) or "")
                elif each.manifest is not None:
                    found[each.manifest.id] = each.digest
                    named.update(dict.fromkeys(each.manifest.predecessors, each.manifest.id))
                    yield each.manifest
        for doubt in await chain.doubts(found, named, told) if self.key is not None else ():
            if doubts is None and doubt.backup is None:
                continue
            if doubts is None:
                raise SealBroken(doubt.text, operation="list", subject=doubt.subject, hint=doubt.hint)
            doubts.append(doubt)

    async def targets(self) -> list[str]:
        """Return the names of all targets that were ever backed up into this archive."""
        prefix = layout.TARGETS
        names = [info.key.removeprefix(prefix).removesuffix(".json") async for info in self.store.list(prefix)]
        return [name for name in names if is_name(name)]

    async def manifest(self, target: str, backup: str) -> Manifest | None:
        """Return one manifest by its id, None if there is none; raises as `manifests` does."""
        system = await self._system_of(target)
        if system is None:
            return None
        key = layout.manifest(system, target, backup)
        data = await whole(self.store, key)
        return None if data is None else await manifest_in(self._records(system, target), data, key)

    @asynccontextmanager
    async def draft(self, plan: BackupPlan) -> AsyncIterator[Draft]:
        """Begin a backup; see `Archiver.draft`. The run record is begun here and ended on leaving."""
        prefix = layout.backup(plan.system, plan.target, plan.kind, plan.id)
        await self._register(plan.target, plan.system)
        key = await self._keyring.for_backup(plan.system, plan.target, plan.id)
        place = (plan.target, plan.system, plan.kind, plan.id)
        with _frame_threads(self.workers) as pool:
            writer = Writer(
                store=self.store,
                prefix=prefix,
                pool=pool,
                ahead=self.workers + 1,
                compressor=Compressor(self.compression),
                frame_size=self.frame_size,
                object_size=self.object_size,
                sealer=None if key is None else partial(_sealer, key, place),
            )
            unrecorded = Draft(
                plan=plan,
                writer=writer,
                clock=self.clock,
                sealing=None if key is None else Sealing(key=key.name),
                chain=self._chain(plan.system, plan.target),
            )
            async with unrecorded.recorded() as draft:
                yield draft

    @asynccontextmanager
    async def open(self, manifest: Manifest) -> AsyncIterator[Reader]:
        """Open a published backup for reading; of what was stored only its key is fetched yet.

        Raises KeyMissing if it is sealed with a key that is not here, Corrupt if that is damaged, or nothing is sealed
        although this archive has a key.
        """
        key = await self._key_of(manifest)
        place = (manifest.target, manifest.system, manifest.kind, manifest.id)
        with _frame_threads(self.workers) as pool:
            yield Reader(
                store=self.store,
                manifest=manifest,
                pool=pool,
                ahead=self.workers + 2,
                records=self._records(manifest.system, manifest.target),
                sealer=None if key is None else lambda part: _sealer(key, place, part.name, part.number),
            )

    async def retire(self, manifest: Manifest, *, actor: str = "", reason: str = "") -> None:
        """Remove a backup: its manifest first, then its objects. May be repeated after an interruption.

        Raises Refused, naming them, while there are backups that build on it: they go first; and for an object that
        the store does not let go, when the others are gone. While that is the manifest nothing is.
        """
        refuse_to_orphan(manifest, [each async for each in self.manifests(manifest.target)])
        pruning = self._pruning(manifest.system, manifest.target, actor=actor, reason=reason)
        for held in (await pruning.retire(manifest)).held:
            raise Refused(held.why, operation="retire", subject=held.key)

    async def rewrap(self, target: str) -> AsyncGenerator[Rewrapped]:
        """Wrap every data key of a target with `key` too; see `Archiver.rewrap` and `resilience.rotate`."""
        system = await self._system_of(target)
        if system is not None:
            async with aclosing(self._keyring.rewrap(system, target)) as ended:
                async for each in ended:
                    yield each

    async def survey(self, target: str) -> ArchiveFacts:
        """Look at all that lies there of a target; see `Archiver.survey`. Of a log only its records are read.

        Raises ManifestInvalid or SealBroken if a record of a log is damaged.
        """
        system = await self._system_of(target)
        if system is None:
            return ArchiveFacts(target=target, system="")
        stock, records = Stock(store=self.store, system=system, target=target), self._records(system, target)
        await stock.take()
        logs = []
        for lineage in await self.lineages(target):
            async with self.log(target, system=system, lineage=lineage) as log:
                logs.append(await stock.log(await log.survey(), records))
        backups = await stock.backups(records)
        return ArchiveFacts(target=target, system=system, backups=backups, logs=tuple(logs))

    @asynccontextmanager
    async def pruning(self, target: str, *, id: str, actor: str = "", reason: str = "") -> AsyncIterator[Pruning]:
        """Begin to remove what a plan says; see `Archiver.pruning`. The run record is begun here and ended on leaving.

        Raises NoBackup if the archive does not know the target.
        """
        system = await self._system_of(target)
        if system is None:
            raise NoBackup("the archive holds nothing of it", operation="prune", subject=target)
        async with self._pruning(system, target, id=id, actor=actor, reason=reason).recorded() as pruning:
            yield pruning

    def _pruning(self, system: str, target: str, *, id: str = "", actor: str = "", reason: str = "") -> Pruning:
        return Pruning(
            store=self.store,
            system=system,
            target=target,
            chain=self._chain(system, target),
            log=lambda lineage: self.log(target, system=system, lineage=lineage),
            clock=self.clock,
            id=id,
            actor=actor,
            reason=reason,
        )

    @asynccontextmanager
    async def log(self, target: str, *, system: str, lineage: str) -> AsyncIterator[ArchiveLog]:
        """Open the log of one lineage of a target, to read it or to go on writing it; nothing is fetched yet."""
        with _frame_threads(self.workers) as pool:
            records = self._records(system, target)
            packing = Packing(
                records=records,
                lineage=lineage,
                pool=pool,
                compressor=Compressor(self.compression),
                frame_size=self.frame_size,
            )
            yield ArchiveLog(
                records=records,
                lineage=lineage,
                packing=packing,
                clock=self.clock,
                register=partial(self._register, target, system),
            )

    async def offline(self, manifest: Manifest) -> AsyncGenerator[ObjectInfo]:
        """Yield the objects of a backup that cannot be read; see `Archiver.offline`."""
        prefix = layout.backup(manifest.system, manifest.target, manifest.kind, manifest.id)
        async with aclosing(unreadable(self.store, prefix)) as infos:
            async for info in infos:
                yield info

    async def rehydrate(self, key: str, *, urgent: bool = False) -> bool:
        """Begin to make an object readable; see `Archiver.rehydrate`. Raises Unsupported if the store cannot."""
        return await made_readable(self.store, key, urgent=urgent)

    async def lineages(self, target: str) -> tuple[str, ...]:
        """Return the lineages that a target has a log of, in alphabetical order."""
        system = await self._system_of(target)
        if system is None:
            return ()
        prefix = layout.histories(system, target)
        keys = [info.key async for info in self.store.list(prefix)]
        names = {key.removeprefix(prefix).partition("/")[0] for key in keys}
        return tuple(sorted(name for name in names if is_name(name)))

    async def remember(self, measured: RestoreMeasured) -> None:
        """Keep what a restore has measured; see `Archiver.remember`."""
        failed = measured.outcome != "succeeded"
        key = layout.restore(measured.system, measured.target, measured.id, failed=failed)
        await self._records(measured.system, measured.target).put(key, measured)

    async def measured(self, target: str, *, last: int = 5) -> tuple[RestoreMeasured, ...]:
        """Return what the last restores have measured, newest first. Raises ManifestInvalid if one is damaged."""
        system = await self._system_of(target)
        if system is None:
            return ()
        newest: deque[str] = deque(maxlen=last)
        async with closing(self.store.list(layout.restores(system, target))) as infos:
            async for info in infos:
                if not info.key.endswith(f"{layout.FAILED}.json"):
                    newest.append(info.key)
        records = self._records(system, target)
        found = [await records.read(key, RestoreMeasured) for key in reversed(newest)]
        return tuple(each for each in found if each is not None)

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
        if self.key is None and await self._keyring.sealed(system, target):
            raise KeyMissing(
                "what is there is sealed, and without a key this would not be",
                operation="write to",
                subject=target,
                hint="give the archive its key, or this target another name",
            )

    async def _key_of(self, manifest: Manifest) -> DataKey | None:
        if manifest.sealing is not None:
            sealed_with_its_own(manifest)
            return await self._keyring.find(manifest.system, manifest.target, manifest.sealing.key)
        if self.key is not None:
            raise unsealed(layout.manifest(manifest.system, manifest.target, manifest.id))
        return None

    def _records(self, system: str, target: str) -> Records:
        return Records(store=self.store, keyring=self._keyring, system=system, target=target)

    def _chain(self, system: str, target: str) -> Chain:
        return Chain(records=self._records(system, target), witness=self.witness, clock=self.clock)

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
    _keep_freed_memory()
    return ThreadPoolExecutor(workers, "resilience-frames")


@cache
def _keep_freed_memory() -> None:
    # Until a block of this size has been freed once, glibc gives every frame's memory back to the kernel as soon as it
    # is freed, and the next one is mapped and zeroed again, page by page; see M_MMAP_THRESHOLD in mallopt(3). The block
    # itself is never touched and costs nothing; without it a restore takes ten times the page faults. A second one
    # would be zeroed.
    block = bytes(LARGEST_DYNAMIC_BLOCK)
    del block


def _sealer(key: DataKey, place: tuple[str, ...], part: str, number: int) -> Sealer:
    return Sealer(key.for_frames(), *place, part, number=number)


def _doubt(key: str, error: Corrupt | KeyMissing | Unsupported) -> Doubt:
    return Doubt(
        backup=layout.backup_of(key),
        subject=key,
        text=f"the manifest {key} cannot be used: {error.what}",
        hint=error.hint,
    )
