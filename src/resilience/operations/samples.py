"""Where the samples of a group are kept, and the last one found again.

    failover/<group>/samples/2026-11-22T07/0703.120000Z-5f3a9c1b.json

Each hour has a folder of its own, so that the last one is found quickly however many there are.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import msgspec
from attrs import define, field

from resilience.concurrency import closing
from resilience.model.errors import ObjectMissing, Refused, ResilienceError
from resilience.model.groups import Sample
from resilience.model.ids import checked_name
from resilience.model.json import from_json, to_json
from resilience.primitives import ObjectStore

KEPT = timedelta(hours=24)
HOURS = 3
"""So many hours back it is looked for a sample by its folder, before all of them are listed."""


@define
class Samples:
    """The samples of one group in a store."""

    store: ObjectStore
    group: str
    _refused: bool = field(default=False, init=False)

    @property
    def prefix(self) -> str:
        """What the keys of all samples begin with."""
        return f"failover/{checked_name(self.group)}/samples/"

    async def keep(self, sample: Sample, *, writer: str) -> None:
        """Write a sample. Raises Unavailable."""
        await self.store.put(f"{self.prefix}{_folder(sample.at)}{_name(sample.at)}-{writer}.json", [to_json(sample)])

    async def last(self, *, now: datetime) -> Sample | None:
        """Return the newest sample there is; None without any. One that cannot be read is passed over."""
        hours = [now + timedelta(hours=1) - timedelta(hours=back) for back in range(HOURS + 1)]
        for prefix in (*(f"{self.prefix}{_folder(hour)}" for hour in hours), self.prefix):
            async with closing(self._keys(prefix)) as found:
                keys = [key async for key in found]
            for key in reversed(keys):
                if (sample := await self._read(key)) is not None:
                    return sample
        return None

    async def forget(self, *, before: datetime) -> None:
        """Remove what is older, as far as that is allowed: where nothing may be removed, the samples stay."""
        oldest = f"{self.prefix}{_folder(before)}{_name(before)}"
        async with closing(self._keys(self.prefix)) as keys:
            async for key in keys:
                if key >= oldest or self._refused:
                    return
                try:
                    await self.store.delete(key)
                except Refused as error:
                    self._refused = True
                    logging.getLogger("resilience").info("old samples of %s are kept: %s", self.group, error)

    async def _keys(self, prefix: str) -> AsyncIterator[str]:
        async with closing(self.store.list(prefix)) as infos:
            async for info in infos:
                yield info.key

    async def _read(self, key: str) -> Sample | None:
        try:
            async with self.store.get(key) as chunks:
                sample = from_json(b"".join([chunk async for chunk in chunks]), Sample)
        except ObjectMissing:  # forgotten meanwhile
            return None
        except msgspec.MsgspecError as error:
            logging.getLogger("resilience").warning("the sample %s cannot be read: %s", key, error)
            return None
        return sample if sample.group == self.group else None


async def last_sample(store: ObjectStore, group: str, *, now: datetime) -> tuple[Sample | None, str]:
    """Return the newest sample of a group; where the store does not answer, None and why."""
    try:
        return await Samples(store, group).last(now=now), ""
    except ResilienceError as error:
        return None, str(error)


def _folder(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%dT%H}/"


def _name(at: datetime) -> str:
    return f"{at.astimezone(UTC):%M%S.%f}Z"
