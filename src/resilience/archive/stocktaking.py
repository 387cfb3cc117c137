"""What lies in an archive for one target, found in one listing of all that it has. Only a few records are read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime

import msgspec
from attrs import define, evolve, field

from resilience.concurrency import closing
from resilience.model.errors import Corrupt, KeyMissing, Unsupported
from resilience.model.ids import checked_id
from resilience.model.json import from_json
from resilience.model.log import LogFacts, Watermark
from resilience.model.stock import BackupObjects, LogObjects, StoredEntry, StoredRecord
from resilience.primitives import ObjectInfo, ObjectStore

from . import layout
from .chain import Retired
from .draft import RunEnded, RunStarted
from .records import Records
from .small import RECORD, whole


@define
class Lineage:
    """The objects of one lineage's log, by branch; of watermarks the newest are first."""

    entries: dict[str, list[StoredEntry]] = field(factory=lambda: defaultdict(list))
    watermarks: dict[str, list[ObjectInfo]] = field(factory=lambda: defaultdict(list))
    files: list[StoredRecord] = field(factory=list)


@define(kw_only=True)
class Stock:
    """All objects of one target, sorted by what they belong to."""

    store: ObjectStore
    system: str
    target: str
    lineages: dict[str, Lineage] = field(factory=lambda: defaultdict(Lineage))
    _backups: dict[str, _Found] = field(factory=dict, init=False)

    async def take(self) -> None:
        """List everything."""
        place = layout.everything(self.system, self.target)
        async with closing(self.store.list(place)) as infos:
            async for info in infos:
                first, *rest = info.key.removeprefix(place).split("/")
                # Not one of a million objects stops the others from being found: what has no known name is passed over.
                with suppress(ValueError):
                    self._sort(info, first, rest)

    async def backups(self, records: Records) -> tuple[BackupObjects, ...]:
        """Return what lies under every id. What is no backup has records, which are read: how it began, was retired."""
        found = []
        for backup, each in self._backups.items():
            lies = each.of(backup)
            if lies.running and not lies.manifest:
                lies = await self._running(lies)
            if lies.retired and lies.objects and not lies.manifest:
                lies = evolve(lies, retired=await self._retired(backup, records))
            if lies.objects and not (lies.manifest or lies.running or lies.published):
                lies = evolve(lies, published=await self._succeeded(backup))
            if lies.objects or lies.manifest or lies.running:
                found.append(lies)
        return tuple(found)

    async def _retired(self, backup: str, records: Records) -> bool:
        """Tell whether the record that a backup was retired can be trusted."""
        try:
            return await records.read(layout.retired(self.system, self.target, backup), Retired) is not None
        except (Corrupt, KeyMissing, Unsupported):
            return False

    async def log(self, facts: LogFacts, records: Records) -> LogObjects:
        """Return what lies of one lineage's log; the newest record of a watermark is read."""
        lies = self.lineages[facts.lineage]
        old = {branch: await outdated(records, infos) for branch, infos in lies.watermarks.items()}
        return LogObjects(
            lineage=facts.lineage,
            branches=facts.branches,
            gaps=facts.gaps,
            watermarks=facts.watermarks,
            entries=dict(lies.entries),
            outdated={name: [StoredRecord(each.key, each.size, each.modified) for each in old[name]] for name in old},
            files=lies.files,
        )

    async def _running(self, lies: BackupObjects) -> BackupObjects:
        with suppress(msgspec.MsgspecError, ValueError, Corrupt):
            data = await whole(self.store, layout.run(self.system, self.target, lies.id, "started"), at_most=RECORD)
            started = from_json(data or b"", RunStarted)
            return evolve(lies, kind=lies.kind or started.kind, parent=started.parent)
        return lies

    async def _succeeded(self, backup: str) -> bool:
        """Tell whether a run ended well: its manifest was there."""
        with suppress(msgspec.MsgspecError, ValueError, Corrupt):
            data = await whole(self.store, layout.run(self.system, self.target, backup, "ended"), at_most=RECORD)
            return from_json(data or b"", RunEnded).outcome == "succeeded"
        return False

    def _sort(self, info: ObjectInfo, first: str, rest: list[str]) -> None:
        match first, rest:
            case "manifests", [name]:
                self._found(name.removesuffix(".json"), info).manifest = info
            case "runs", [backup, moment]:
                self._found(backup, info).moments.add(moment.removesuffix(".json"))
            case "retired", [name]:
                self._found(name.removesuffix(".json"), info).retired = True
            case "log", [lineage, branch, _, _] if stretch := layout.stretch(info.key):
                self._entries(lineage, branch).append(StoredEntry(*stretch, info.size, info.modified))
            case "slices", [lineage, branch, _, _] if sliced := layout.sliced(info.key):
                begins, ends, segment = sliced
                self._entries(lineage, branch).append(StoredEntry(begins, ends, info.size, info.modified, segment))
            case "watermarks", [lineage, branch, *_] if layout.until(info.key) is not None:
                self.lineages[lineage].watermarks[branch].append(info)
            case "files", [lineage, name]:
                record = StoredRecord(name.removesuffix(".zst"), info.size, info.modified)
                self.lineages[lineage].files.append(record)
            case "keys", [name, _] if name.startswith("backup-"):
                self._found(name.removeprefix("backup-"), info).add(info)
            case kind, [backup, _, *_] if layout.is_kind(kind):
                self._found(backup, info).add(info, kind)

    def _entries(self, lineage: str, branch: str) -> list[StoredEntry]:
        return self.lineages[lineage].entries[branch]

    def _found(self, backup: str, info: ObjectInfo) -> _Found:
        found = self._backups.get(backup)
        if found is None:
            found = self._backups[checked_id(backup)] = _Found(newest=info.modified)
        found.newest = max(found.newest, info.modified)
        return found


@define
class _Found:
    """What was found under one id."""

    newest: datetime
    kind: str = ""
    objects: int = 0
    bytes: int = 0
    manifest: ObjectInfo | None = None
    retired: bool = False
    held: str = ""
    moments: set[str] = field(factory=set)

    def add(self, info: ObjectInfo, kind: str = "") -> None:
        """Count an object."""
        self.kind = self.kind or kind
        self.objects += 1
        self.bytes += info.size
        self.held = self.held or info.held

    def of(self, backup: str) -> BackupObjects:
        """Return it as a value."""
        return BackupObjects(
            id=backup,
            kind=self.kind,
            objects=self.objects,
            bytes=self.bytes + (0 if self.manifest is None else self.manifest.size),
            newest=self.newest,
            manifest=self.manifest is not None,
            retired=self.retired,
            published=self.manifest is None and "published" in self.moments,
            running="started" in self.moments and "ended" not in self.moments,
            held=self.held or ("" if self.manifest is None else self.manifest.held),
        )


async def outdated(records: Records, newest_first: Sequence[ObjectInfo]) -> list[ObjectInfo]:
    """Return the records of watermarks behind the newest one that can be trusted; none if there is no such."""
    for number, info in enumerate(newest_first):
        try:
            if await records.read(info.key, Watermark) is not None:
                return list(newest_first[number + 1 :])
        except (Corrupt, KeyMissing, Unsupported):
            continue  # what it says is known only from those behind it
    return []
