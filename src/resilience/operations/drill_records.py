"""What is kept of drills in a group's journal store: that one began, before anything failed, and what it showed.

    failover/<group>/drills/<id>/began.json
    failover/<group>/drills/<id>/ended.json

One that began and has not ended was abandoned, or runs.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
from attrs import define

from resilience.concurrency import closing, finish
from resilience.model.drills import DrillRecord, DrillReport
from resilience.model.errors import AlreadyExists, ManifestInvalid
from resilience.model.ids import checked_name
from resilience.model.json import from_json, to_json
from resilience.primitives import ObjectStore

T = TypeVar("T")


@define
class DrillRecords:
    """The drills of one group."""

    store: ObjectStore
    group: str

    async def began(self, record: DrillRecord) -> None:
        """Keep that a drill begins; durable when this returns. Raises Unavailable: then nothing may be made to fail."""
        await finish(self.store.put(self._key(record.id, "began"), [to_json(record)]))

    async def ended(self, report: DrillReport) -> None:
        """Keep what a drill has shown. Who comes second changes nothing."""
        try:
            await finish(self.store.put(self._key(report.id, "ended"), [to_json(report)]))
        except AlreadyExists:
            return

    async def open(self) -> list[DrillRecord]:
        """Return the drills that began and have not ended, the oldest first. Raises ManifestInvalid."""
        known = await self._known()
        return [
            await self._read(self._key(each, "began"), DrillRecord)
            for each, names in known.items()
            if names == {"began"}
        ]

    async def reports(self) -> list[DrillReport]:
        """Return what the drills have shown that have ended, the oldest first. Raises ManifestInvalid."""
        known = await self._known()
        return [
            await self._read(self._key(each, "ended"), DrillReport) for each, names in known.items() if "ended" in names
        ]

    async def _known(self) -> dict[str, set[str]]:
        known: dict[str, set[str]] = {}
        async with closing(self.store.list(self._prefix)) as infos:
            async for info in infos:
                drill, _, name = info.key.removeprefix(self._prefix).partition("/")
                known.setdefault(drill, set()).add(name.removesuffix(".json"))
        return known

    async def _read(self, key: str, kind: type[T]) -> T:
        async with self.store.get(key) as chunks:
            data = b"".join([chunk async for chunk in chunks])
        try:
            return from_json(data, kind)
        except msgspec.MsgspecError as error:
            hint = "it says what has to be put right: look at it"
            raise ManifestInvalid(f"it cannot be read: {error}", operation="read", subject=key, hint=hint) from error

    @property
    def _prefix(self) -> str:
        return f"failover/{checked_name(self.group)}/drills/"

    def _key(self, id: str, name: str) -> str:
        return f"{self._prefix}{id}/{name}.json"
